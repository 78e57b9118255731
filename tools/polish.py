"""What is changed in the pages that jupyter-book wrote: formulas without a network, figures in full size, views on demand.

Every step takes the text of a page and gives it back; twice does no harm.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import latex2mathml.converter

FIGURE = re.compile(r'(?<!<!--full-->)(<img\b[^>]*\bsrc="(\.\./_images/[^"]+)"[^>]*>)')
LINK = r'<a class="enlarge" href="\2" title="Show this figure in full size"><!--full-->\1</a>'
MATH = re.compile(r'<(span|div) class="math notranslate nohighlight"([^>]*)>(.*?)</\1>', re.S)
FRAME = re.compile(r'<iframe srcdoc="(.*?)"[^>]*></iframe>', re.S)
ICON = re.compile(r'<link rel="icon"[^>]*>', re.S)
UNUSED = (  # scripts of jupyter-book for what this book does without: each asks another site for more
    re.compile(r"<script[^>]*/mathjax[^>]*></script>"),
    re.compile(r"<script>const THEBE_JS_URL.*?</script>", re.S),
    re.compile(r"<script[^>]*sphinx-thebe[^>]*></script>"),
    re.compile(r"<link[^>]*sphinx-thebe[^>]*/>"),
)
LABELS = {  # what a screen reader is told
    '<div role="list" class="citation-list">': '<div class="citation-list">',  # its items are none
    '<summary aria-label="Toggle hidden content">': "<summary>",  # what stands there says more
}


def polish(site: Path):
    """Change every page of a site in place."""
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "notebooks":
            text = views_on_demand(enlarge(text), path)
        path.write_text(tidy(prerender_formulas(text)), encoding="utf-8")


def enlarge(text: str) -> str:
    """Each figure becomes a link to itself: a click shows it in full size."""
    return FIGURE.sub(LINK, text)


def views_on_demand(text: str, path: Path) -> str:
    """Each interactive view (megabytes) becomes a page beside this one, which its link loads into the page.

    The link works without JavaScript, too, and opens the view by itself; `book/_static/on_demand.js` does the rest.
    """
    folder = path.parent / "views"

    def link(match: re.Match) -> str:
        page = ICON.sub("", html.unescape(match[1]))
        title = re.search(r"<title>(?:Nilearn - )?(.*?)</title>", page, re.S)[1].strip()
        page = page.replace(f'"title": "{html.unescape(title)}"', '"title": ""')  # too long for it
        page = page.replace("</head>", "<style>body{margin:0;overflow:hidden}</style></head>", 1)
        folder.mkdir(exist_ok=True)
        file = folder / f"{path.stem}-{len(list(folder.glob(f'{path.stem}-*'))) + 1}.html"
        file.write_text(page, encoding="utf-8")
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        return (
            f'<a class="on-demand" href="views/{file.name}" data-title="{title}">'
            f"Turn it around: {title} (loads {size})</a>"
        )

    return FRAME.sub(link, text)


def prerender_formulas(text: str) -> str:
    """TeX becomes MathML, which browsers draw themselves: formulas need neither a network nor JavaScript."""
    return MATH.sub(mathml, text)


def mathml(match: re.Match) -> str:
    """The element that Sphinx wrote around a formula, with MathML in place of TeX."""
    tag, attributes, inner = match.groups()
    number = re.match(r"\s*(<span class=\"eqno\">.*?</span>)?", inner, re.S)[0]
    tex = html.unescape(inner[len(number) :]).strip()[2:-2]  # without its delimiters
    display = {"span": "inline", "div": "block"}[tag]
    drawn = latex2mathml.converter.convert(tex, display=display)
    keys = ' tabindex="0"' if tag == "div" else ""  # a wide one scrolls, also by the arrow keys
    return f'<{tag} class="formula"{attributes}{keys}>{number}{drawn}</{tag}>'


def tidy(text: str) -> str:
    """Without scripts that nothing needs, and with labels that say what is there."""
    for pattern in UNUSED:
        text = pattern.sub("", text)
    for old, new in LABELS.items():
        text = text.replace(old, new)
    return text
