"""Links to the glossary from the first use of each term on a page, written into the staged copy.

In git the text stays plain: Colab shows no roles. What is code, a formula, a link, a heading, raw HTML, a table's rule or
another role is left as it is.
"""

from __future__ import annotations

import re
from pathlib import Path

GLOSSARY = Path(__file__).resolve().parents[1] / "book" / "glossary.md"
# Entries whose name is an everyday word too: linked where a page does so by hand
EVERYDAY = {"level", "transfer", "repeat", "residual", "story", "alpha", "type", "token", "control"}
EVERYDAY |= {"rank", "seed", "loss", "weight", "change", "key", "query", "value", "layer"}
LEFT_ALONE = re.compile(
    r"```.*?```|~~~.*?~~~|\$\$.*?\$\$|:::.*?:::"  # fences and formulas
    r"|^(?: {4}|\t|#|<|@@).*?$"  # code by indent, headings, HTML, what is filled in
    r"|`+[^`]*`+|\$[^$\n]+\$|\{\w[\w:-]*\}`[^`]*`"  # code, formulas, roles
    r"|!?\[[^\]]*\]\([^)]*\)|<[^>\n]+>|https?://\S+",  # links and HTML
    re.S | re.M,
)


def entries() -> list[str]:
    """Names of the glossary's entries, longest first, so that *noise ceiling* is no link to *noise*."""
    body = GLOSSARY.read_text().split(":::{glossary}")[1].split("\n:::")[0]
    names = [line.strip() for line in body.splitlines() if line and not line.startswith(" ")]
    return sorted(names, key=len, reverse=True)


def pattern(name: str) -> re.Pattern:
    """A term in a text: its plural too, and a capital at its beginning unless it is written in capitals."""
    words = "s? ".join(map(re.escape, name.split())) + "s?"  # regions of interest
    if not name[:2].isupper():
        words = f"(?i:{words[0]}){words[1:]}"
    return re.compile(rf"(?<![\w-])({words})(?![\w-])")


def linked_by_hand(text: str) -> set[str]:
    """Terms to which a text has a role already."""
    found = re.findall(r"\{term\}`(?:[^`<]*<([^`>]+)>|([^`<]+))`", text)
    return {(a or b).strip().lower() for a, b in found}


def link_terms(texts: list[str], names: list[str] | None = None) -> list[str]:
    """The texts of a page, in order, each term a link where it is first used."""
    names = entries() if names is None else names
    done = set().union(*map(linked_by_hand, texts))
    left = [name for name in names if name.lower() not in done | EVERYDAY]
    pages = []
    for text in texts:
        for name in list(left):
            text, found = link_first(text, name)
            if found:
                left.remove(name)
        pages.append(text)
    return pages


def link_first(text: str, name: str) -> tuple[str, bool]:
    """The text with the first use of a term as a link, and whether there is one."""
    start, term = 0, pattern(name)
    for skipped in [*LEFT_ALONE.finditer(text), None]:
        end = skipped.start() if skipped else len(text)
        if match := term.search(text, start, end):
            said = match[1]
            role = f"{{term}}`{said}`" if said == name else f"{{term}}`{said} <{name}>`"
            return text[: match.start()] + role + text[match.end() :], True
        start = skipped.end() if skipped else end
    return text, False
