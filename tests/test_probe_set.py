"""The probe set of fireside: words that no story has, with exact times, by every voice."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import fireside
from brainlib.stories import Story
from fireside import probe

STORIES = sorted((probe.ASSETS / "TextGrids").glob("*.TextGrid"))


@pytest.fixture(scope="module")
def probe_set():
    return fireside.probe_set()


def spoken_in_stories():
    """Word types of all stories, lower case, as their TextGrids have them."""
    grids = [fireside.embedded_story(path.stem).words.text for path in STORIES]
    return set(pd.concat(grids).str.lower().str.replace("'s", ""))


def inflections(word):
    """A word's regular inflections: cart -> carts, dash -> dashes, try -> tries, tried, hop -> hopped, scare -> scaring."""
    consonant_y = re.search(r"[^aeiou]y$", word)
    sibilant = re.search(r"([sxzo]|ch|sh)$", word)
    doubled = re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word)
    plural = word[:-1] + "ies" if consonant_y else word + ("es" if sibilant else "s")
    stem = word + word[-1] if doubled else word.removesuffix("e")
    past = word[:-1] + "ied" if consonant_y else stem + "ed"
    return {plural, past, stem + "ing"}


def test_at_least_600_words_that_no_story_has(probe_set):
    targets, known = set(probe_set[1].word), spoken_in_stories()
    assert len(targets) >= 600 and len(known) > 1_500
    assert not targets & known
    assert all(word.isalpha() and word.islower() for word in targets)


def test_no_target_word_is_an_inflection_of_a_story_word_or_has_one_in_a_story(probe_set):
    targets, known = set(probe_set[1].word), spoken_in_stories()
    assert not targets & set().union(*map(inflections, known))
    assert not known & set().union(*map(inflections, targets))


def test_every_word_is_read_by_two_voices_and_every_voice_reads_about_half(probe_set):
    stories, words = probe_set
    assert {voice[:2] for voice in stories} == {"af", "am", "bf", "bm"}
    voices = words.groupby("word").voice.agg(["nunique", "size"])
    assert (voices == 2).all(axis=None)
    counts = words.voice.value_counts()
    assert set(counts.index) == set(stories) and counts.min() > 0.8 * counts.max()


def test_times_are_those_of_the_textgrid_and_lie_in_the_sound(probe_set):
    stories, words = probe_set
    for voice, rows in words.groupby("voice"):
        story = stories[voice]
        spoken = story.words.assign(text=story.words.text.str.lower())
        found = rows.merge(
            spoken, left_on=["word", "start", "end"], right_on=["text", "start", "end"]
        )
        assert len(found) == len(rows)
        assert rows.start.is_monotonic_increasing and (rows.end > rows.start).all()
        assert (
            rows.start.min() >= 0 and rows.end.max() <= story.duration == len(story.audio) / 16_000
        )


def test_the_words_are_where_the_sound_is(probe_set):
    stories, words = probe_set
    for voice, rows in words.groupby("voice"):
        power = np.concatenate([[0.0], np.cumsum(stories[voice].audio.astype(float) ** 2)])
        start, end = (rows[edge].mul(16_000).astype(int).to_numpy() for edge in ("start", "end"))
        in_words = (power[end] - power[start]) / (end - start)
        assert (in_words > 0.05 * power[-1] / (len(power) - 1)).all()


def test_categories_are_large_and_no_sentence_is_one_category(probe_set):
    words = probe_set[1]
    types = words.drop_duplicates("word")
    assert words.groupby("word").category.nunique().max() == 1
    assert 12 <= types.category.nunique() <= 16 and types.category.value_counts().min() >= 30
    in_sentence = types.groupby("sentence").category
    assert (in_sentence.nunique() >= 2).all()
    assert types.groupby("category").sentence.nunique().min() >= 20
    assert words.groupby("word").sentence.nunique().max() == 1


def test_vectors_and_frequencies_of_all_words_are_known(probe_set):
    words = probe_set[1]
    for which in ("planted", "other"):
        vectors = fireside.vectors(words.word, which)
        assert vectors.shape[0] == len(words) and np.isfinite(vectors).all()
        assert (vectors.std(axis=0) > 0).all()
    assert (words.log_rank > 0).all() and words.log_rank.std() > 0.5
    np.testing.assert_array_equal(words.log_rank, fireside.log_rank(words.word))


def test_the_probe_set_takes_at_most_6_mb_and_each_recording_a_few_minutes(probe_set):
    assert sum(path.stat().st_size for path in probe.FOLDER.iterdir()) <= 6e6
    minutes = [story.duration / 60 for story in probe_set[0].values()]
    assert min(minutes) > 3 and max(minutes) < 10


SENTENCES = pd.DataFrame(
    {
        "sentence": ["The goat ate the hat.", "A hat sings."],
        "words": ["goat:animal ate:motion", "sings:speech"],
    }
)


def recording(text):
    """A Story of one word per second, without files."""
    story = Story("made_up", Path("none.ogg"), grid_path=Path("none.TextGrid"))
    words = text.split()
    start = np.arange(len(words), dtype=float)
    frame = pd.DataFrame({"start": start, "end": start + 0.5, "text": words})
    story.__dict__["_tiers"] = {"words": frame}
    return story


def test_a_word_gets_the_time_and_number_of_its_sentence_in_any_order():
    found = probe._target_words(recording("A hat sings The goat ate the hat"), SENTENCES)
    assert found.to_dict("list") == {
        "word": ["sings", "goat", "ate"],
        "category": ["speech", "animal", "motion"],
        "start": [2.0, 4.0, 5.0],
        "end": [2.5, 4.5, 5.5],
        "sentence": [1, 0, 0],
    }


def test_a_recording_of_other_words_is_refused():
    with pytest.raises(ValueError, match="'a goat sings' at word 3.*expected a sentence"):
        probe._target_words(recording("A hat sings A goat sings"), SENTENCES)


def test_a_set_without_recordings_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sentences.tsv").write_text("sentence\twords\nA hat sings.\tsings:speech\n")
    monkeypatch.setattr(probe, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="no recordings; expected <voice>.ogg"):
        fireside.probe_set()


def test_the_sentences_are_natural_in_length_and_name_their_words():
    sentences = pd.read_csv(probe.FOLDER / "sentences.tsv", sep="\t", na_filter=False)
    assert sentences.sentence.is_unique
    for sentence, words in zip(sentences.sentence, sentences.words):
        tokens = sentence.lower().rstrip(".").split()
        assert 8 <= len(tokens) <= 12, sentence
        targets = [word.split(":")[0] for word in words.split()]
        assert all(Counter(tokens)[word] == 1 for word in targets), sentence
