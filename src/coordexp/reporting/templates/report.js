"use strict";
// The page works without this script, which adds filters and sorting.
document.documentElement.classList.add("scripted");
const gallery = document.querySelector("#examples");
if (gallery) {
  for (const box of gallery.querySelectorAll("[data-kind]")) {
    box.addEventListener("change", () => gallery.classList.toggle("hide-" + box.dataset.kind, !box.checked));
  }
  const slider = gallery.querySelector("#min-score");
  const category = gallery.querySelector("#only-category"), error = gallery.querySelector("#only-error");
  const filter = () => {
    const minimum = Number(slider.value);
    gallery.querySelector("#min-score-value").textContent = minimum.toFixed(2);
    for (const shape of gallery.querySelectorAll(".shape[data-score]")) {
      shape.classList.toggle("low", Number(shape.dataset.score) < minimum);
    }
    const filtered = category.value || error.value;
    let count = 0;
    for (const figure of gallery.querySelectorAll("figure.image")) {
      const fits = (shape) => (!category.value || shape.dataset.category === category.value)
        && (!error.value || shape.dataset.error === error.value) && !shape.classList.contains("low");
      figure.hidden = Boolean(filtered) && ![...figure.querySelectorAll(".shape[data-category]")].some(fits);
      count += !figure.hidden;
    }
    gallery.querySelector("#images-shown").textContent = filtered ? `${count} images` : "";
  };
  for (const control of [slider, category, error]) control.addEventListener("input", filter);
}
const chosen = document.querySelector("#class-threshold");
if (chosen) {
  chosen.addEventListener("input", () => {
    const t = Number(chosen.value);
    for (const output of document.querySelectorAll(".class-threshold")) output.textContent = (0.05 * t).toFixed(2);
    for (const row of document.querySelector("#class-table").tBodies[0].rows) {
      const tp = Number(row.dataset.tp.split(",")[t]), fp = Number(row.dataset.fp.split(",")[t]);
      const objects = Number(row.dataset.objects);
      const write = (cell, value) => {
        cell.dataset.value = value ?? -1;
        cell.textContent = value === null ? "\u2013" : value.toFixed(3);
      };
      write(row.cells[3], tp + fp ? tp / (tp + fp) : null);
      write(row.cells[4], objects ? tp / objects : null);
      [tp, fp, objects - tp].forEach((value, i) => { row.cells[5 + i].textContent = value; });
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

// Downloads: every table as CSV, every figure and image as PNG.
const save = (name, blob) => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.toLowerCase().replace(/[^a-z0-9]+/g, "_").replace(/^_|_$/g, "");
  link.download += blob.type === "image/png" ? ".png" : ".csv";
  link.click();
  document.dispatchEvent(new CustomEvent("saved", { detail: { name: link.download, size: blob.size } }));
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
const csv = (table) => [...table.rows].map((row) => [...row.cells].map((cell) => {
  const text = cell.textContent.trim().replace(/\s+/g, " ").replace(/^\u2013$/, "");
  return /[",]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}).join(",")).join("\n") + "\n";
const styled = (svg) => {
  const copy = svg.cloneNode(true);
  const from = [svg, ...svg.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  const names = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "font", "display", "opacity"];
  from.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of names) to[i].style.setProperty(name, style.getPropertyValue(name));
  });
  return copy;
};
const loaded = (source) => new Promise((resolve, reject) => {
  const image = new Image();
  image.onload = () => resolve(image);
  image.onerror = reject;
  image.src = source;
});
const png = async (figure) => {
  const svg = figure.querySelector("svg"), photo = figure.querySelector("img");
  const view = svg.viewBox.baseVal, scale = photo ? 2 : 3;
  const copy = styled(svg);
  copy.setAttribute("width", view.width * scale);
  copy.setAttribute("height", view.height * scale);
  const canvas = document.createElement("canvas");
  canvas.width = view.width * scale;
  canvas.height = view.height * scale;
  const pen = canvas.getContext("2d");
  pen.fillStyle = getComputedStyle(document.body).backgroundColor;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (photo) pen.drawImage(photo, 0, 0, canvas.width, canvas.height);
  const text = new XMLSerializer().serializeToString(copy);
  const scheme = "data:";  // the only one for images that the page allows
  pen.drawImage(await loaded(`${scheme}image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`), 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
};
const button = (text, label, action) => {
  const made = document.createElement("button");
  made.type = "button";
  made.className = "download";
  made.textContent = text;
  made.setAttribute("aria-label", label);
  made.addEventListener("click", action);
  return made;
};
document.querySelectorAll("table").forEach((table, i) => {
  const name = table.dataset.name ?? `table ${i + 1}`;
  const action = () => save(name, new Blob([csv(table)], { type: "text/csv" }));
  table.closest(".wide").after(button("CSV", `Download ${name} as CSV`, action));
});
for (const figure of document.querySelectorAll("figure.plot, figure.image")) {
  const caption = figure.querySelector("figcaption");
  const name = caption.querySelector("strong")?.textContent ?? caption.textContent;
  caption.append(" ", button("PNG", `Download ${name} as PNG`, async () => save(name, await png(figure))));
}
