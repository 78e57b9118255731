"""The built site in a real browser: pages load, pictures show, nothing overflows a phone. Run by `make book`."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import build_book
import pytest
from conftest import ROOT

pytestmark = pytest.mark.site
SITE = ROOT / "_build" / "html"
BROWSER = next(
    (b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if b), None
)

# A page that opens others in a frame of a given width and notes what a reader would see there.
PROBE = """<!doctype html><body><script>
const found = {};
function inside(frame) {
  const d = frame.contentDocument.documentElement, plot = frame.contentDocument.querySelector("#surface-plot");
  return {
    clipped: d.scrollWidth - d.clientWidth,
    filled: plot ? plot.getBoundingClientRect().height / frame.clientHeight : 0,
  };
}
async function look(page, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = page;
  document.body.append(frame);
  await new Promise(done => frame.onload = done);
  await new Promise(done => setTimeout(done, 600));
  const d = frame.contentDocument;
  d.querySelectorAll("details").forEach(e => e.open = true);  // what is folded must fit, too
  await new Promise(done => setTimeout(done, 100));
  const pictures = [...d.querySelectorAll("main img")];
  found[page + "@" + width] = {
    title: d.querySelector("h1") ? d.querySelector("h1").innerText : "",
    pictures: pictures.length,
    broken: pictures.filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    wide: pictures.filter(i => i.getBoundingClientRect().width > width).length,
    overflow: d.documentElement.scrollWidth - frame.clientWidth,
    widest: [...d.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > width + 1)
      .slice(0, 4).map(e => e.tagName + "." + e.className + " " + e.innerText.slice(0, 40)),
    players: d.querySelectorAll("audio").length,
    frames: [...d.querySelectorAll("main iframe")].map(inside),
    cut: [...d.querySelectorAll("main pre")].filter(e => e.scrollWidth > e.clientWidth + 1)
      .map(e => e.innerText.slice(0, 60)),
    fixed: [...d.querySelectorAll("div.cell_output img")].filter(i => !i.closest("a.enlarge")).length,
    type: Math.min(99, ...[...d.querySelectorAll("main td")].map(e => parseFloat(getComputedStyle(e).fontSize))),
    text: d.querySelector("main").innerText.length,
    formulas: d.querySelectorAll("main math").length,
    raw: /\\\\[(\\[]/.test([...d.querySelectorAll("main p, main li")].map(e => e.innerText).join(" ")),
    asked: frame.contentWindow.performance.getEntriesByType("resource").map(e => e.name)
      .filter(name => !name.startsWith(location.origin) && !/^(data|blob|about):/.test(name)),
  };
  frame.remove();
}
(async () => {
  for (const page of PAGES) for (const width of [1280, 390]) await look(page, width);
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.replaceChildren(out);
})();
</script></body>"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    if BROWSER is None:
        pytest.skip("no chromium on this machine")
    assert SITE.is_dir(), "no site: run make book"
    pages = [f"/{p}.html" for p in build_book.pages()]
    probe = SITE / "_probe.html"
    probe.write_text(PROBE.replace("PAGES", json.dumps(pages)))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
    ]
    flags += [
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1400,1000",
        "--virtual-time-budget=90000",
    ]
    flags += [f"--user-data-dir={tmp_path_factory.mktemp('browser')}", "--dump-dom"]
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/_probe.html"
        done = subprocess.run([BROWSER, *flags, url], capture_output=True, text=True, timeout=240)
    finally:
        server.shutdown()
        probe.unlink()
    match = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert match, f"the browser did not finish: {done.stderr[-500:]}"
    return json.loads(match[1].replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">"))


def test_every_page_has_its_title_and_text(seen):
    assert len(seen) == 2 * len(build_book.pages())
    for page, look in seen.items():
        assert look["title"].strip() and look["text"] > 100, page


def test_no_picture_is_broken_or_wider_than_the_page(seen):
    for page, look in seen.items():
        assert not look["broken"] and not look["wide"], (page, look)


def test_nothing_makes_a_phone_scroll_sideways(seen):
    for page, look in seen.items():
        assert look["overflow"] <= 1, (page, look["overflow"], look["widest"])


def test_no_line_of_code_or_output_is_cut(seen):
    for page, look in seen.items():
        if page.startswith("/notebooks/") and page.endswith("@1280"):
            assert not look["cut"], page


def test_a_figure_opens_in_full_size_and_a_table_is_legible_on_a_phone(seen):
    for page, look in seen.items():
        assert not look["fixed"] and look["type"] >= 11, (page, look["fixed"], look["type"])


def test_the_turnable_cortex_is_neither_clipped_nor_followed_by_a_blank(seen):
    for width in (1280, 390):
        (frame,) = seen[f"/notebooks/02_ridge_encoding.html@{width}"]["frames"]
        assert frame["clipped"] <= 1 and frame["filled"] > 0.65, (width, frame)


def test_notebook_pages_have_figures_a_player_and_a_cortex_to_turn(seen):
    assert seen["/notebooks/01_data_loading.html@1280"]["pictures"] >= 6
    assert seen["/notebooks/01_data_loading.html@1280"]["players"] == 1
    assert seen["/notebooks/02_ridge_encoding.html@1280"]["pictures"] >= 6
    assert len(seen["/notebooks/02_ridge_encoding.html@1280"]["frames"]) == 1


def test_no_page_asks_for_anything_from_elsewhere(seen):
    for page, look in seen.items():
        assert not look["asked"], (page, look["asked"])


def test_formulas_are_drawn_without_a_network(seen):
    assert seen["/notebooks/02_ridge_encoding.html@1280"]["formulas"] >= 3
    for page, look in seen.items():
        assert not look["raw"], page
