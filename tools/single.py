"""The whole book in one file, to read without a network or to print: `make single` writes _build/html/book.pdf.

    python tools/single.py     # after tools/build_book.py

jupyter-book writes all pages into one, Chromium prints it with everything unfolded, and the welcome page gets a link to it.
"""

from __future__ import annotations

import html
import re
import shutil
import sys
from pathlib import Path

import build_book
import polish
from playwright.sync_api import Browser, Error, Playwright, sync_playwright
from pypdf import PdfReader
from run_notebooks import SITE, STAGE

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
NAME = "book.pdf"
MARK = "<!--whole-book-->"  # on the welcome page, where the link goes

# for print: everything unfolded, nothing that only a screen can do
PREPARE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  all("details").forEach((fold) => (fold.open = true));
  all("summary").filter((s) => /^(Show|Hide) /.test(s.innerText)).forEach((s) => (s.style.display = "none"));
  all("main .headerlink, main audio, #pst-back-to-top").forEach((e) => e.remove());
  all("main iframe").forEach((view) => view.replaceWith("(On the site: an interactive view.)"));
}"""


def chromium(playwright: Playwright) -> Browser:
    """The browser of this machine, or else the one that Playwright brings."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


def one_page(stage: Path, root: str) -> Path:
    """All pages of a staged book as one; `root` is the first of its table of contents."""
    build_book.jupyter_book(stage, "singlehtml")
    folder = stage / "_build" / "singlehtml"
    page = folder / "all.html"  # links in it start here, wherever its first page stood
    text = (folder / f"{root}.html").read_text(encoding="utf-8")
    text = polish.tidy(polish.prerender_formulas(text))
    page.write_text(text.replace("../_static/", "_static/"), encoding="utf-8")
    return page


def print_pdf(browser: Browser, page: Path, target: Path):
    """Print a page, with its headings as the outline of the PDF."""
    tab = browser.new_page()
    tab.set_default_timeout(300_000)  # ms: a whole book
    tab.goto(page.as_uri())
    tab.evaluate(PREPARE)
    tab.pdf(path=target, format="A4", outline=True, tagged=True, print_background=True)
    tab.close()


def squeezed(text: str) -> str:
    """A heading without its spaces: Chromium drops those at which a line ends."""
    return re.sub(r"\s", "", html.unescape(text))


def headings(outline) -> set[str]:
    """Every heading in the outline of a PDF, at whatever depth, without its spaces."""
    found = set()
    for item in outline:
        found |= headings(item) if isinstance(item, list) else {squeezed(item.title)}
    return found


def check(pdf: Path, titles: list[str]):
    """Refuse a PDF that lacks a page of the book."""
    found = headings(PdfReader(pdf).outline)
    # a heading that a page break divides stands there twice in one
    lacking = [x for x in titles if not any(y in (squeezed(x), 2 * squeezed(x)) for y in found)]
    if lacking:
        raise build_book.BookError(f"{pdf.name} lacks the pages {lacking}")


def titles(site: Path) -> list[str]:
    """The title of every page of a site."""
    first = re.compile(r'<h1>((?:(?!<h1|</h1>).)*?)<a class="headerlink"', re.S)
    texts = [(site / f"{page}.html").read_text(encoding="utf-8") for page in build_book.pages()]
    return [re.sub(r"<.*?>", "", first.search(text)[1]).strip() for text in texts]


def link(site: Path):
    """Name the PDF on the welcome page, once."""
    path = site / f"{build_book.pages()[0]}.html"
    size = (site / NAME).stat().st_size / 1e6
    said = f'<p class="whole-book">The whole book: <a href="../{NAME}">one PDF ({size:.0f} MB)</a>.</p>'
    text = re.sub(f'{MARK}(<p class="whole-book">.*?</p>)?', MARK + said, path.read_text("utf-8"))
    path.write_text(text, encoding="utf-8")


def main() -> int:
    try:
        if not SITE.exists():
            raise build_book.BookError(f"no site in {SITE}: run tools/build_book.py first")
        pdf = SITE / NAME
        page = one_page(STAGE, build_book.pages()[0])
        with sync_playwright() as playwright, chromium(playwright) as browser:
            print_pdf(browser, page, pdf)
        check(pdf, titles(SITE))
        link(SITE)
    except (build_book.BookError, Error, OSError) as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    print(f"{len(PdfReader(pdf).pages)} pages in {pdf}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
