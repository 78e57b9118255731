"""The built site in a real browser, as readers meet it: on a screen, on a phone, in the dark. Run by `make book`."""

import functools
import http.server
import shutil
import threading

import address as public
import build_book
import pytest
import single
import yaml
from axe_playwright_python.sync_playwright import Axe
from conftest import ROOT
from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.site
SITE = ROOT / "_build" / "html"
SCREEN = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
PAGES = build_book.pages()
ALL_BUT_CONTRAST = {"rules": {"color-contrast": {"enabled": False}}}
SCROLLERS = {"runOnly": ["scrollable-region-focusable"]}  # on a phone more scrolls than elsewhere
NOTEBOOKS = [page for page in PAGES if page.startswith("notebooks/")]

# what a reader sees of a page, with everything unfolded: what is folded must fit, too
LOOK = r"""async () => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  all("details").forEach((fold) => (fold.open = true));
  const pictures = all("main img");
  pictures.forEach((picture) => (picture.loading = "eager"));
  await Promise.all(pictures.map((picture) => picture.decode().catch(() => null)));
  const width = document.documentElement.clientWidth;
  const right = (element) => element.getBoundingClientRect().right;
  const prose = all("main p, main li").map((element) => element.innerText).join(" ");
  return {
    title: document.querySelector("h1")?.innerText ?? "",
    letters: document.querySelector("main").innerText.length,
    pictures: pictures.length,
    broken: pictures.filter((p) => !p.naturalWidth).map((p) => p.src),
    fixed: all("div.cell_output img").filter((p) => !p.closest("a.enlarge")).length,
    overflow: document.documentElement.scrollWidth - width,
    widest: all("main *").filter((e) => right(e) > width + 1).slice(0, 4)
      .map((e) => `${e.tagName}.${e.className} ${e.innerText?.slice(0, 40)}`),
    cut: all("main pre").filter((e) => e.scrollWidth > e.clientWidth + 1)
      .map((e) => e.innerText.slice(0, 60)),
    type: Math.min(99, ...all("main td").map((e) => parseFloat(getComputedStyle(e).fontSize))),
    players: all("audio").length,
    formulas: all("main math").length,
    tex: /\\[(\[]/.test(prose),
  };
}"""

# the ground behind each figure, from 0 (black) to 1 (white): their axes are drawn in black
GROUNDS = r"""() => [...document.querySelectorAll("main img")].map((picture) => {
  for (let element = picture; element; element = element.parentElement) {
    const [red, green, blue, alpha] = getComputedStyle(element).backgroundColor.match(/[\d.]+/g);
    if (alpha !== "0") return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255;
  }
})"""


# marks one element of each kind, by class, colour, ground and type, which is what contrast depends on; of the thousands of
# coloured words of code only those stay elements, as axe-core takes its time with each
SAMPLE = r"""() => {
  const kinds = new Set();
  for (const element of document.querySelectorAll("body *")) {
    const texts = [...element.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!texts.length || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const kind = [element.localName, element.className, style.color, style.fontSize, style.fontWeight];
    for (let around = element; around; around = around.parentElement)
      kind.push(getComputedStyle(around).backgroundColor);
    const name = kind.filter((part) => part !== "rgba(0, 0, 0, 0)").join();
    if (!kinds.has(name)) element.setAttribute("data-sample", "");
    kinds.add(name);
  }
  for (const word of document.querySelectorAll(".highlight pre span, dt.sig span"))
    if (word.isConnected && !word.matches("[data-sample], :has([data-sample], a)"))
      word.replaceWith(word.textContent);
  return kinds.size;
}"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    assert SITE.is_dir(), f"no site in {SITE}: run make book"
    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    if not any(map(shutil.which, single.BROWSERS)):
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright, single.chromium(playwright) as chromium:
        yield chromium


def opened(browser, address, viewport):
    """An empty page of this size, and the list of complaints that it fills: errors and requests elsewhere."""
    page = browser.new_context(viewport=viewport, reduced_motion="reduce").new_page()
    page.complaints = []
    page.elsewhere = []
    page.on("pageerror", lambda error: page.complaints.append(f"script: {error}"))
    page.on("requestfailed", lambda request: failed(page, request))
    page.on("console", lambda said: said.type == "error" and page.complaints.append(said.text))
    local = (address, "data:", "blob:", "about:")
    page.on(
        "request",
        lambda request: request.url.startswith(local) or page.elsewhere.append(request.url),
    )
    return page


def failed(page, request):
    """Note a request that failed, other than one that was under way when the test left the page."""
    if request.failure != "net::ERR_ABORTED":
        page.complaints.append(f"{request.failure}: {request.url}")


def violations(page, options, context=None):
    """What axe-core finds serious or critical, a line per element."""
    options = {"resultTypes": ["violations"], "preload": False, **options}
    found = Axe().run(page, context=context, options=options).response["violations"]
    return [
        f"{rule['id']}: {' '.join(map(str, node['target']))} {node['html'][:120]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def contrast(page):
    """Text of too little contrast: axe-core's rule on the elements that SAMPLE marked."""
    return violations(page, {"runOnly": ["color-contrast"]}, "[data-sample]")


@pytest.fixture(scope="module")
def seen(browser, address):
    """Every page on a screen (light, then dark) and on a phone: one visit each, shared by the tests below."""
    looks = {}
    for where, viewport in {"screen": SCREEN, "phone": PHONE}.items():
        page = opened(browser, address, viewport)
        for name in PAGES:
            page.complaints.clear()
            page.elsewhere.clear()
            page.goto(f"{address}{name}.html", wait_until="load")
            look = page.evaluate(LOOK)
            assert page.evaluate(SAMPLE) > 5
            if where == "screen":
                look["violations"] = violations(page, ALL_BUT_CONTRAST) + contrast(page)
                page.evaluate("document.documentElement.dataset.theme = 'dark'")
                look["dark"] = contrast(page)
                look["grounds"] = page.evaluate(GROUNDS)
            else:
                look["violations"] = violations(page, SCROLLERS)
            look["complaints"] = [*page.complaints]
            look["elsewhere"] = [*page.elsewhere]
            looks[name, where] = look
        page.context.close()
    return looks


def what(seen, key):
    """Pages for which a list is not empty, with it."""
    return {page: look[key] for page, look in seen.items() if look.get(key)}


def test_every_page_opens_with_its_title_and_text_and_without_an_error(seen):
    assert len(seen) == 2 * len(PAGES)
    for page, look in seen.items():
        assert look["title"].strip() and look["letters"] > 100, page
    assert not what(seen, "complaints")


def test_no_page_asks_for_anything_from_elsewhere(seen):
    assert not what(seen, "elsewhere")


def test_every_picture_is_there_and_every_figure_opens_in_full_size(seen):
    assert not what(seen, "broken") and not what(seen, "fixed")
    for page in NOTEBOOKS:
        assert seen[page, "screen"]["pictures"] >= 2, page
    assert seen["notebooks/01_data_loading", "screen"]["players"] == 1


def test_nothing_makes_a_phone_scroll_sideways_and_its_tables_are_legible(seen):
    for page, look in seen.items():
        assert look["overflow"] <= 1, (page, look["overflow"], look["widest"])
        assert look["type"] >= 11, (page, look["type"])


def test_no_line_of_code_or_output_of_a_notebook_is_cut(seen):
    for page in NOTEBOOKS:
        assert not seen[page, "screen"]["cut"], page


def test_formulas_are_drawn_without_a_network(seen):
    assert seen["notebooks/02_ridge_encoding", "screen"]["formulas"] >= 3
    assert not what(seen, "tex")


def test_nothing_serious_stands_in_the_way_of_a_screen_reader(seen):
    assert not what(seen, "violations")


def test_text_and_figures_are_legible_in_the_dark(seen):
    assert not what(seen, "dark")
    for page, look in seen.items():
        assert min(look.get("grounds") or [1]) > 0.8, (page, look["grounds"])


# ------------------------------------------------------------------ what a reader does
@pytest.fixture
def page(browser, address):
    """An empty page on a screen; what complains on it fails the test."""
    page = opened(browser, address, SCREEN)
    yield page
    assert not page.complaints and not page.elsewhere
    page.context.close()


def test_a_search_finds_the_noise_ceiling(page, address):
    page.goto(f"{address}search.html?q=noise+ceiling")
    page.wait_for_selector("#search-results li a")
    found = page.locator("#search-results li a").all_inner_texts()
    assert {"Glossary", "1. Stories in, responses out"} <= set(found), found


def test_a_notebook_page_leads_to_colab_where_the_book_has_an_address(page, address):
    for name in NOTEBOOKS:
        page.goto(f"{address}{name}.html")
        links = page.locator("a[href*='colab.research.google.com']")
        found = {link.get_attribute("href") for link in links.all()}
        assert found == ({public.colab_link(name)} if public.address() else set()), name


def test_a_solution_opens_when_it_is_pressed(page, address):
    for name in NOTEBOOKS:
        page.goto(f"{address}{name}.html")
        solutions = page.locator("details:has(summary:has-text('Solution'))")
        assert solutions.count() >= 2, name
        code = solutions.first.locator(".cell_input").first
        assert not code.is_visible()
        solutions.first.locator("summary").click()
        assert code.is_visible(), name


def test_an_interactive_view_is_drawn_when_it_is_asked_for(page, address):
    page.goto(f"{address}notebooks/02_ridge_encoding.html")
    assert page.locator("iframe").count() == 0
    page.locator("a.on-demand").click()
    frame = page.frame_locator("figure.on-demand iframe")
    frame.locator("canvas").first.wait_for(state="visible")
    room = page.locator("figure.on-demand iframe").bounding_box()
    plot = frame.locator("#surface-plot").bounding_box()
    assert "simulated" in page.locator("figure.on-demand figcaption").inner_text()
    assert plot["height"] > 0.65 * room["height"]
    assert frame.locator("html").evaluate("e => e.scrollWidth - e.clientWidth") <= 1


@pytest.mark.parametrize(
    ("primer", "number", "src", "part"),
    [
        ("primer_fmri", 0, "delays/7-8", "2 to 16 s"),
        ("primer_fmri", 1, "penalty/400-1000000", "400 TRs"),
        ("primer_models", 0, "rank/400-32", "rank 32"),
    ],
)
def test_sliders_choose_another_picture_and_say_what_it_shows(
    page, address, primer, number, src, part
):
    page.goto(f"{address}book/{primer}.html")
    figure = page.locator("figure.choices").nth(number)
    before = figure.locator("figcaption").inner_text()
    figure.locator("input").first.press("ArrowRight")
    figure.locator("input").last.press("End")
    picture = figure.locator("img")
    assert src in picture.get_attribute("src")
    picture.evaluate("picture => picture.decode()")  # fails where there is none
    said = figure.locator("figcaption").inner_text()
    assert said != before and part in said and said in picture.get_attribute("alt")
    last = src.rpartition("-")[2]
    assert figure.locator("input").last.get_attribute("aria-valuetext") == last
    assert figure.locator("output").last.inner_text() == last


# ------------------------------------------------------------------ a small book
@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A staged book of two pages, the first of which leads to the second."""
    folder = tmp_path_factory.mktemp("book")
    settings = {"title": "Small", "execute": {"execute_notebooks": "off"}}
    (folder / "_config.yml").write_text(yaml.safe_dump(settings))
    (folder / "_toc.yml").write_text("format: jb-book\nroot: a\nchapters: [{file: b}]\n")
    (folder / "a.md").write_text("# First\n\n[to it](b.md)\n\n$x < y$\n")
    (folder / "b.md").write_text("# Second\n\n## Part\n\n<details>folded</details>\n")
    return folder


def test_the_single_file_holds_every_page(browser, small, tmp_path):
    pdf = tmp_path / "book.pdf"
    single.print_pdf(browser, single.one_page(small, "a"), pdf)
    single.check(pdf, ["First", "Second", "Part"])
    with pytest.raises(build_book.BookError, match="lacks the pages .'Third'"):
        single.check(pdf, ["First", "Third"])


def test_the_welcome_page_has_one_link_to_the_single_file_once_it_is_there(tmp_path):
    (tmp_path / single.NAME).write_bytes(b"x")
    page = tmp_path / f"{PAGES[0]}.html"
    page.parent.mkdir()
    page.write_text(f"<p>text</p>{single.MARK}<h2>next</h2>")
    for _ in range(2):
        single.link(tmp_path)
        assert page.read_text().count('href="../book.pdf"') == 1
    assert single.MARK in (SITE / f"{PAGES[0]}.html").read_text()
    assert ("book.pdf" in (SITE / f"{PAGES[0]}.html").read_text()) == (SITE / single.NAME).exists()


@pytest.mark.parametrize("link", ["[x](missing.md)", "[x](b.md#no-such-part)"])
def test_a_link_that_leads_nowhere_in_the_book_fails_the_build(small, tmp_path, link):
    book = shutil.copytree(small, tmp_path / "book", ignore=shutil.ignore_patterns("_build"))
    (book / "a.md").write_text(f"# First\n\n{link}\n")
    with pytest.raises(build_book.BookError, match="something to warn of"):
        build_book.jupyter_book(book)


def test_a_link_that_leads_out_of_the_book_and_does_not_answer_is_found(small, address, tmp_path):
    book = shutil.copytree(small, tmp_path / "book", ignore=shutil.ignore_patterns("_build"))
    (book / "a.md").write_text(f"# First\n\n[there]({address}index.html)\n")
    build_book.jupyter_book(book, "linkcheck")
    (book / "a.md").write_text(f"# First\n\n[gone]({address}gone.html)\n")
    with pytest.raises(build_book.BookError, match="something to warn of"):
        build_book.jupyter_book(book, "linkcheck")


def test_no_page_is_too_large_for_a_slow_line():
    sizes = {path.relative_to(SITE): path.stat().st_size for path in SITE.rglob("*.html")}
    assert max(sizes.values()) < 4e6, max(sizes, key=sizes.get)
