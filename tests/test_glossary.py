"""Terms of the glossary are linked where a page first uses them, and the primers' terms are in it."""

import re

import glossary
import pytest
from conftest import ROOT

NAMES = ["noise ceiling", "noise", "TR", "voxel"]


def link(*texts):
    return glossary.link_terms(list(texts), sorted(NAMES, key=len, reverse=True))


def test_the_first_use_on_a_page_is_linked_and_no_other():
    texts = link("Voxels. A voxel.", "the noise ceiling, the noise")
    assert texts == [
        "{term}`Voxels <voxel>`. A voxel.",
        "the {term}`noise ceiling`, the {term}`noise`",
    ]


def test_a_term_that_is_linked_by_hand_is_left():
    text = "A voxel, and {term}`voxels <voxel>`."
    assert link(text) == [text]


@pytest.mark.parametrize(
    "text",
    [
        "## A voxel",
        "`a voxel`",
        "```\\nvoxel\\n```",
        "[a voxel](page.md)",
        "$voxel$",
        "<summary>a voxel</summary>",
        "tr or metre",
        "voxelwise, sub-voxel",
    ],
)
def test_what_is_no_prose_is_left_alone(text):
    text = text.replace("\\n", "\n")
    assert link(text) == [text]
    assert link(text, "a voxel")[1] == "a {term}`voxel`"


PHRASES = {  # emphasised in the primers, and no terms
    "More training is not better.",
    "A gain may be anyone's.",
    "Easier to read is not more information.",
    "First and last TRs go.",
    "Whole stories are held out.",
    "Each participant has their own regression.",
    "z-scored per story.",
}
ALSO = {  # other words for an entry
    "blood-oxygen-level-dependent": "BOLD",
    "time of repetition": "TR",
    "regions of interest": "region of interest",
    "weights": "weight",
    "query": "attention",
    "key": "attention",
    "value": "attention",
    "convolutions": "convolutional features",
}


@pytest.mark.parametrize("page", ["primer_fmri", "primer_models"])
def test_terms_that_a_primer_explains_are_in_the_glossary(page):
    text = re.sub(r"```.*?```", "", (ROOT / f"book/{page}.md").read_text(), flags=re.S)
    terms = set(re.findall(r"(?<!\*)\*([^*\n]+)\*(?!\*)", text)) - PHRASES
    known = {name.lower() for name in glossary.entries()}
    assert len(terms) > 2
    assert not {t for t in terms if ALSO.get(t, t).lower() not in known}


def test_every_entry_is_used_on_some_page():
    texts = [p.read_text() for p in (ROOT / "book").glob("*.md") if p.name != "glossary.md"]
    texts += [p.read_text() for p in (ROOT / "notebooks").glob("*.ipynb")]
    together = "\n".join(texts)
    unused = [name for name in glossary.entries() if not glossary.pattern(name).search(together)]
    assert not unused
