"""The sentences of a story: the punctuation of its text put together with the times of its words."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import pandas as pd

from .levels import ASSETS, vectors
from .probe import FOLDER

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


def topics(texts) -> list[str | None]:
    """Topic of sentences by rule: the category of the probe set that is nearest to their content words.

    Parameters
    ----------
    texts : sequence of str
        Words with spaces between.

    Returns
    -------
    topics : list of str
        The one of sixteen categories (such as "building", "food", "speech") whose mean word vector has the highest cosine
        with those of the content words, on average over them; None with fewer than two content words that have a vector.

    Notes
    -----
    No person has labelled a sentence. All 43 components of the vectors count, 26 of which drive simulated subjects. Content
    words are those that scikit-learn's list of stop words lacks.
    """
    names, centres, mean = _categories()
    found = []
    for text in texts:
        x = _both([word for word in text.split() if _is_content(word)])
        x = x[np.isfinite(x).all(1)] - mean
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        found.append(names[int((x @ centres.T).mean(0).argmax())] if len(x) > 1 else None)
    return found


def _is_content(word: str) -> bool:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return word.lower().split("'")[0] not in ENGLISH_STOP_WORDS


def _both(words) -> np.ndarray:
    """All components of word vectors: (n_words, 43)."""
    return np.hstack([vectors(words, which) for which in ("planted", "other")])


@lru_cache(maxsize=1)
def _categories() -> tuple:
    """Names of the probe set's categories, their mean vectors at unit length, and the mean over all types of the stories."""
    listed = pd.read_csv(FOLDER / "sentences.tsv", sep="\t", na_filter=False).words
    of = dict(pair.split(":") for row in listed for pair in row.split())
    texts = [path.read_text(encoding="utf-8") for path in (ASSETS / "stories").glob("*.txt")]
    types = {word for text in texts for word in re.findall(r"[a-z']+", text.lower())}
    every = _both(sorted(types))
    mean = np.nanmean(every, axis=0)
    x = pd.DataFrame(_both(list(of)) - mean).groupby(list(of.values())).mean()
    centres = x.to_numpy()
    return list(x.index), centres / np.linalg.norm(centres, axis=1, keepdims=True), mean


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
