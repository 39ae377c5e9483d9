"""The pages in a browser: no errors, no requests, filters and sorting work, and they fit a phone."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from evaluation_cases import generated
from PIL import Image
from report_cases import report_inputs

from coordexp.evaluation.compare import Run, compare
from coordexp.evaluation.evaluate import EvaluateOptions
from coordexp.reporting.comparison import write_comparison
from coordexp.reporting.report import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no browser found")]

# Runs at the end of the page and reports through the document title.
PROBE = """
<script>
const found = {};
const seen = (shape) => getComputedStyle(shape).display !== 'none';
const drawn = (kind) => [...document.querySelectorAll('.shape.' + kind)].filter(seen).length;
for (const kind of ['matched', 'missed', 'correct', 'wrong']) {
  const box = document.querySelector(`[data-kind=${kind}]`);
  if (!box) continue;
  const before = drawn(kind);
  box.click(); const off = drawn(kind);
  box.click(); found[kind] = [before, off, drawn(kind)];
}
const slider = document.querySelector('#min-score');
if (slider) {
  const count = () => drawn('correct') + drawn('wrong');
  const before = count();
  slider.value = 0.5; slider.dispatchEvent(new Event('input'));
  found.slider = [before, count()];
}
const only = document.querySelector('#only-error');
if (only) {
  const figures = [...document.querySelectorAll('figure.image')];
  const visible = () => figures.filter((f) => f.offsetParent !== null).length;
  only.value = 'missed'; only.dispatchEvent(new Event('input'));
  const missed = figures.filter((f) => f.querySelector('.shape.missed')).length;
  found.filter = [figures.length, visible(), missed];
  only.value = ''; only.dispatchEvent(new Event('input'));
}
const threshold = document.querySelector('#class-threshold');
if (threshold) {
  const rows = [...document.querySelector('#class-table').tBodies[0].rows];
  const positives = () => rows.map((r) => Number(r.cells[5].textContent)).reduce((a, b) => a + b);
  const at = (t) => { threshold.value = t; threshold.dispatchEvent(new Event('input')); return positives(); };
  found.positives = [at(0), at(10), at(19)];
}
found.saved = [];
HTMLAnchorElement.prototype.click = () => {};
document.addEventListener('saved', (event) => { found.saved.push([event.detail.name, event.detail.size]); });
for (const download of document.querySelectorAll('button.download')) download.click();
found.downloads = document.querySelectorAll('button.download').length;
for (const details of document.querySelectorAll('details')) details.open = true;
const table = [...document.querySelectorAll('table.sortable')].at(-1);
const heads = [...table.querySelectorAll('thead button')];
const column = heads.findIndex((b) => ['AP', 'change'].includes(b.textContent));
const values = () => [...table.tBodies[0].rows].map((r) => Number(r.cells[column].dataset.value));
table.querySelectorAll('thead button')[column].click(); found.down = values();
table.querySelectorAll('thead button')[column].click(); found.up = values();
found.width = [document.documentElement.scrollWidth, innerWidth];
found.tallest = Math.max(...[...document.querySelectorAll('tr')].map((r) => r.offsetHeight));
found.requests = performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('data:')).length;
found.images = [...document.images].filter((i) => i.complete && i.naturalWidth > 0).length;
const finish = () => {
  document.title = 'PROBE' + JSON.stringify(found);
  parent.postMessage(document.title, '*');
};
const wait = (left) => found.saved.length === found.downloads || !left ? finish() : setTimeout(wait, 50, left - 1);
wait(40);
</script></body>"""

# A browser window has a minimum width, a frame has none; the frame reports to the outer page.
PHONE = """<body><script>addEventListener('message', (event) => { document.title = event.data; });</script>
<iframe src="probed.html" style="width:375px;height:800px;border:0"></iframe></body>"""


def browse(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess:
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        f"--user-data-dir={profile}",
    ]
    command = [BROWSER, *flags, "--enable-logging=stderr", "--virtual-time-budget=3000", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def probe(page: Path, profile: Path, *, phone: bool = False) -> dict:
    probed, framed = page.with_name("probed.html"), page.with_name("phone.html")
    probed.write_text(page.read_text().replace("</body>", PROBE))
    framed.write_text(PHONE)
    done = browse(framed if phone else probed, profile, "--dump-dom")
    assert not console(done)
    return json.loads(html.unescape(re.search(r"<title>PROBE(.*?)</title>", done.stdout).group(1)))


def console(done: subprocess.CompletedProcess) -> list[str]:
    return re.findall(r"CONSOLE.*", done.stderr)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("browser")
    write_report(folder / "report.html", **report_inputs(generated(0, lvis=True), folder))
    return folder / "report.html"


def test_filters_sorting_and_images(page, tmp_path):
    found = probe(page, tmp_path / "profile")
    for kind in ("matched", "missed", "correct", "wrong"):
        before, off, again = found[kind]
        assert before == again > 0 and off == 0
    before, after = found["slider"]
    assert 0 < after < before
    assert found["down"] == sorted(found["down"], reverse=True) and found["up"] == sorted(found["up"])
    assert len(set(found["up"])) > 2
    assert found["requests"] == 0 and found["images"] == 6
    every, shown, missed = found["filter"]
    assert 0 < shown == missed < every
    low, middle, high = found["positives"]
    assert low > middle > high >= 0


def test_every_figure_and_table_can_be_downloaded(page, tmp_path):
    found = probe(page, tmp_path / "profile")
    names = [name for name, _ in found["saved"]]
    assert len(names) == found["downloads"] > 20
    assert {"metrics.csv", "confusion_matrix.csv", "categories.csv", "training_loss.png"} <= set(names)
    assert all(size > (1000 if name.endswith(".png") else 10) for name, size in found["saved"])


def test_script_errors_are_detected(page, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text().replace("</body>", "<script>nothing.like.this()</script></body>"))
    assert "nothing is not defined" in "".join(console(browse(broken, tmp_path / "profile", "--dump-dom")))


def test_page_fits_a_phone(page, tmp_path):
    found = probe(page, tmp_path / "profile", phone=True)
    needed, available = found["width"]
    assert needed <= available == 375
    assert found["tallest"] < 150


def test_screenshot_is_not_blank_and_it_prints(page, tmp_path):
    browse(page, tmp_path / "a", "--window-size=900,1200", f"--screenshot={tmp_path / 'page.png'}")
    with Image.open(tmp_path / "page.png") as image:
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50
    browse(page, tmp_path / "b", "--no-pdf-header-footer", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    printed = (tmp_path / "page.pdf").read_bytes()
    assert printed.startswith(b"%PDF") and 2 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 30


def test_comparison_page(page, tmp_path):
    folder = page.parent
    other = tmp_path / "other.jsonl"
    lines = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    for line in lines:
        line["detections"] = line["detections"][::2]
    other.write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = [Run("first", folder / "predictions.jsonl"), Run("second", other)]
    out = tmp_path / "compare.json"
    compare(runs, folder / "annotations.json", EvaluateOptions(bootstrap=20), dataset="generated", split="val", out=out)
    write_comparison(tmp_path / "compare.html", compare_json=out)
    found = probe(tmp_path / "compare.html", tmp_path / "profile", phone=True)
    assert found["down"] == sorted(found["down"], reverse=True)
    assert found["width"][0] <= found["width"][1] and found["requests"] == 0
