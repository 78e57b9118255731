"""Sentences of fireside: punctuation of the text, times of the words."""

import numpy as np
import pandas as pd
import pytest

import fireside
from fireside import simulation
from fireside.sentences import _split

STORIES = sorted(p.stem for p in (simulation.ASSETS / "stories").glob("*.txt"))


def split(body):
    return [" ".join(w for w, _ in sentence) for sentence in _split(body)]


def test_a_sentence_ends_at_its_mark_and_not_at_that_of_a_question_inside():
    body = """I ran. "Why me?" she asked. "Why?" I asked him. "No!" It rained\n\n"It's true," I said."""
    assert split(body) == [
        "I ran",
        "Why me she asked",
        "Why I asked him",
        "No",
        "It rained",
        "It's true I said",
    ]


def test_words_between_quotation_marks_are_inside_also_next_to_the_mark():
    (sentence,) = _split('"Move over," I said, and "sit down".')
    inside = [quoted for _, quoted in sentence]
    assert inside == [True, True, False, False, False, True, True]


def test_the_embedded_stories_are_cut_without_a_word_lost():
    tables = []
    for name in STORIES:
        words = fireside.embedded_story(name).words
        table = fireside.sentences(name, words)
        assert " ".join(table.text) == " ".join(words.text)
        assert table.n_words.sum() == len(words)
        assert (table.end > table.start).all() and (table.start[1:] > table.end[:-1].values).all()
        tables.append(table)
    tables = pd.concat(tables)
    assert set(tables.type) == {"direct speech", "narration"}
    assert tables.voice.nunique() == 4 and tables.story.nunique() == len(STORIES)
    share = np.mean(tables.type == "direct speech")
    assert 1_400 < len(tables) < 1_600 and 0.1 < share < 0.3
    spoken = tables[tables.story == "deepend"].set_index("text").type
    assert spoken["You could wait for the adult class he said"] == "direct speech"
    assert spoken["It was October"] == "narration"


def test_words_of_another_story_are_refused():
    other = fireside.embedded_story(STORIES[0]).words
    with pytest.raises(ValueError, match="from word 0 on.*expected the words of the story"):
        fireside.sentences(STORIES[1], other)
    words = fireside.embedded_story(STORIES[1]).words
    with pytest.raises(ValueError, match="from word"):
        fireside.sentences(STORIES[1], pd.concat([words, words[:1]]))
    with pytest.raises(FileNotFoundError, match="no such text"):
        fireside.sentences("nosuch", words)
