"""The probe set: recordings of words that no story of fireside has, for probes of words that no model was tuned on."""

from __future__ import annotations

import pandas as pd

from brainlib.stories import Story

from .levels import ASSETS, log_rank

FOLDER = ASSETS / "probe"


def probe_set() -> tuple[dict[str, Story], pd.DataFrame]:
    """Short sentences read aloud, and their target words: content words that no story has.

    Each sentence is read by two of the four voices and mixes categories. There are no responses to the recordings.
    `fireside.vectors(words.word)` gives the words' vectors, one row per row of the table.

    Returns
    -------
    stories : dict of str to Story
        The recording of each voice, which is a sequence of sentences.
    words : DataFrame
        One row per spoken target word: `word` (lower case), `category` (of meaning, one per word), `voice` (key of
        `stories`), `start` and `end` (seconds in that recording), `log_rank` (natural log of the word's rank by
        frequency, see `fireside.log_rank`), `sentence` (number, counted from 0: the same for all voices).

    Raises
    ------
    FileNotFoundError
        If there are no recordings.
    ValueError
        If a recording holds words that are no sentence of the set.

    Examples
    --------
    >>> stories, words = probe_set()
    >>> sorted(stories)
    ['af_heart', 'am_michael', 'bf_emma', 'bm_george']
    >>> bool((words.end > words.start).all())
    True
    """
    sentences = pd.read_csv(FOLDER / "sentences.tsv", sep="\t", na_filter=False)
    stories = {
        path.stem: Story(f"probe_{path.stem}", path, grid_path=path.with_suffix(".TextGrid"))
        for path in sorted(FOLDER.glob("*.ogg"))
    }
    if not stories:
        raise FileNotFoundError(
            f"{FOLDER}: no recordings; expected <voice>.ogg and <voice>.TextGrid: install fireside again"
        )
    words = pd.concat(
        [_target_words(story, sentences).assign(voice=voice) for voice, story in stories.items()],
        ignore_index=True,
    )
    words["log_rank"] = log_rank(words.word)
    return stories, words[["word", "category", "voice", "start", "end", "log_rank", "sentence"]]


def _target_words(story: Story, sentences: pd.DataFrame) -> pd.DataFrame:
    """Target words of one recording with category, times and sentence number; the sentences may come in any order."""
    tokens = [sentence.lower().rstrip(".").split() for sentence in sentences.sentence]
    spoken = story.words.text.str.lower().tolist()
    rows, position = [], 0
    while position < len(spoken):
        number = _sentence_at(position, spoken, tokens=tokens, name=story.name)
        for target in sentences.words[number].split():
            word, category = target.split(":")
            at = story.words.iloc[position + tokens[number].index(word)]
            rows.append((word, category, at.start, at.end, number))
        position += len(tokens[number])
    return pd.DataFrame(rows, columns=["word", "category", "start", "end", "sentence"])


def _sentence_at(position: int, spoken: list[str], *, tokens: list[list[str]], name: str) -> int:
    """Number of the sentence that begins with the word at `position` of a recording."""
    for number, sentence in enumerate(tokens):
        if spoken[position : position + len(sentence)] == sentence:
            return number
    found = " ".join(spoken[position : position + 8])
    raise ValueError(
        f"{name}: {found!r} at word {position}; expected a sentence of {FOLDER / 'sentences.tsv'}: speak the set again with tools/make_fireside.py"
    )
