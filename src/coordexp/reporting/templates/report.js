"use strict";
// The page works without this script, which adds filters and sorting.
const gallery = document.querySelector("#examples");
if (gallery) {
  for (const box of gallery.querySelectorAll("[data-kind]")) {
    box.addEventListener("change", () => gallery.classList.toggle("hide-" + box.dataset.kind, !box.checked));
  }
  const slider = gallery.querySelector("#min-score");
  const shown = gallery.querySelector("#min-score-value");
  slider.addEventListener("input", () => {
    const minimum = Number(slider.value);
    shown.textContent = minimum.toFixed(2);
    for (const shape of gallery.querySelectorAll(".shape[data-score]")) {
      shape.classList.toggle("low", Number(shape.dataset.score) < minimum);
    }
  });
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead button").forEach((button, column) => {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const down = head.getAttribute("aria-sort") !== "descending";
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const x = value(a), y = value(b), p = Number(x), q = Number(y);
        const number = x !== "" && y !== "" && !Number.isNaN(p) && !Number.isNaN(q);
        return number ? p - q : x.localeCompare(y);
      };
      const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      body.append(...rows);
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.print").forEach((d) => { d.open = true; }));
