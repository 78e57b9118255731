"""The sentences of a story: the punctuation of its text put together with the times of its words."""

from __future__ import annotations

import re

import pandas as pd

from .levels import ASSETS

COLUMNS = ["start", "end", "text", "type", "n_words", "story", "voice"]
TELLS = re.compile(r"(said|asks?|asked)\b")  # "Why?" I asked. is one sentence


def sentences(name: str, words: pd.DataFrame) -> pd.DataFrame:
    """Sentences of a story of fireside with their times, and whether they are direct speech.

    Parameters
    ----------
    name : str
        Of the story.
    words : DataFrame
        Its words as they are spoken, with columns `start`, `end` and `text`: ``story.words``.

    Returns
    -------
    table : DataFrame
        One row per sentence: `start` and `end` (seconds after sound onset, of its first and last word), `text` (its
        words without punctuation), `type` ("direct speech" if half or more of its words stand between quotation marks,
        else "narration"), `n_words`, `story` and `voice`.

    Raises
    ------
    FileNotFoundError
        If fireside has no such story.
    ValueError
        If the words are not those of the text.

    Examples
    --------
    >>> from fireside import embedded_story, sentences
    >>> table = sentences("deepend", embedded_story("deepend").words)
    >>> table.text[1], table.type[1]
    ('There was nothing wrong with my ears', 'narration')
    """
    path = ASSETS / "stories" / f"{name}.txt"
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such text; expected the name of a story of fireside")
    head, body = path.read_text(encoding="utf-8").split("\n\n", 1)
    voice = dict(line.split(": ", 1) for line in head.splitlines())["voice"]
    spoken = words.text.tolist()
    rows, first = [], 0
    for sentence in _split(body):
        tokens = [word for word, _ in sentence]
        at = words.iloc[first : first + len(tokens)]
        _check_same(name, tokens, spoken=at.text.tolist(), first=first)
        quoted = sum(inside for _, inside in sentence)
        kind = "direct speech" if quoted >= len(tokens) / 2 else "narration"
        text = " ".join(tokens)
        rows.append((at.start.iloc[0], at.end.iloc[-1], text, kind, len(tokens), name, voice))
        first += len(tokens)
    _check_same(name, [], spoken=spoken[first:], first=first)
    return pd.DataFrame(rows, columns=COLUMNS)


def _check_same(name, tokens, *, spoken, first):
    if tokens != spoken:
        raise ValueError(
            f"{name}: words {' '.join(spoken[:8])!r} from word {first} on, {' '.join(tokens[:8])!r} in the text; "
            "expected the words of the story as it is installed"
        )


def _split(body: str) -> list[list[tuple[str, bool]]]:
    """Sentences as lists of (word, whether between quotation marks)."""
    found = []
    for paragraph in body.split("\n\n"):
        tokens, inside, sentence = paragraph.split(), False, []
        for i, token in enumerate(tokens):
            opening, word, closing = re.fullmatch(r"(\W*)(.*?)(\W*)", token).groups()
            inside ^= opening.count('"') % 2 == 1
            bare = re.sub(r"[^\w']", "", word)  # as in tools/make_fireside.py
            sentence += [(bare, inside)] * bool(bare)
            inside ^= closing.count('"') % 2 == 1
            if _ends(token, tokens[i + 1 : i + 3]):
                found += [sentence] * bool(sentence)
                sentence = []
        found += [sentence] * bool(sentence)
    return found


def _ends(token: str, following: list[str]) -> bool:
    """Whether a sentence ends with a token, from its punctuation and the next two tokens."""
    if not re.search(r'[.!?]"?$', token):
        return False
    told = token.endswith('"') and len(following) == 2 and TELLS.match(following[1])
    begins = not following or re.match(r'"?[A-Z\d]', following[0])
    return bool(begins) and not told
