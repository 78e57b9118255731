"""Corpora of the papers' downstream tasks, read from a reader's own copy: TIMIT, SLURP, Speech Commands, CREMA-D, SUPERB.

Nothing is downloaded. Every corpus becomes one table that `tasks.evaluate_task` understands once its sounds have states.
"""

import json
from pathlib import Path

import pandas as pd

from .lowlevel import PHONES
from .runtime import reading, require

TIMIT_HZ = 16_000  # of the times in .PHN and .WRD
# 61 phones to 39 (Lee and Hon 1989); a phone that is not named stays, "q" goes
FOLDED = {
    "aa": "ao",
    "ah": "ax ax-h",
    "er": "axr",
    "hh": "hv",
    "ih": "ix",
    "l": "el",
    "m": "em",
    "n": "en nx",
    "ng": "eng",
    "sh": "zh",
    "uw": "ux",
    "sil": "pcl tcl kcl bcl dcl gcl h# pau epi",
}
FOLDS = {phone: one for one, phones in FOLDED.items() for phone in phones.split()}
TIMIT_PHONES = sorted({p.lower() for p in PHONES} - {"ao", "zh"} | {"dx", "sil"})
EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
APART = ("timit", "speech_commands", "crema_d")  # no speaker is in two parts
SPLITS = {"train": "train", "validation": "val", "dev": "val", "devel": "val", "test": "test"}


def load_corpus(name: str, root: str | Path, **options) -> pd.DataFrame:
    """A corpus in its official folders as one table.

    Parameters
    ----------
    name : {"timit", "slurp", "speech_commands", "crema_d", "superb"}
    root : path
        The corpus's folder: of TIMIT the one with ``TRAIN`` and ``TEST``; of SLURP the one with ``dataset/slurp/*.jsonl`` and
        ``audio/slurp_real``; of Speech Commands the one with a folder per word; of CREMA-D the one with ``AudioWAV``. For
        "superb", what ``datasets.load_dataset`` takes: a folder, or a name on the hub.
    **options
        For "superb": `task`, such as "ks", and ``download=True`` if a name on the hub is to be fetched.

    Returns
    -------
    table : DataFrame
        One row per recording: `path`, `target` (word, intent, emotion, label, or list of TIMIT's 39 phones), `part` ("train",
        "val" or "test"), `story` (the speaker where known, of SLURP the sentence: over what a spread is taken), and what
        else the corpus says. ``table.attrs["labels"]`` holds the labels, the same for all parts.

    Raises
    ------
    KeyError
        For an unknown name.
    FileNotFoundError
        If the folder lacks what the corpus consists of, a whole part included.
    ValueError
        If validation or test have labels that training has not, a recording is listed twice, a speaker is in two parts, or a
        file is not what its name says.

    Notes
    -----
    TIMIT has no validation set: every tenth speaker of TRAIN becomes it. CREMA-D has no split: no actor is in two parts, and
    the last digit of the actor's number decides (8: validation; 9: test).
    """
    require(
        name in READERS, f"no corpus {name!r}; expected one of {sorted(READERS)}", kind=KeyError
    )
    if name != "superb":
        root = Path(root).expanduser()
    table = pd.DataFrame(READERS[name](root, **options))
    require(len(table), f"{root}: no recordings of {name}", kind=FileNotFoundError)
    lacking = sorted(set(SPLITS.values()) - set(table.part))
    require(not lacking, f"{root}: no recordings of part {lacking}", kind=FileNotFoundError)
    twice = table.path[table.path.duplicated()]
    require(
        not len(twice), f"{root}: {len(twice)} recordings are listed twice, as {twice[:1].tolist()}"
    )
    if name in APART:
        parts = table.groupby("story").part.nunique()
        both = parts[parts > 1].index.tolist()
        require(
            not both, f"{root}: speakers {both[:5]} are in two parts; is a list of the split cut?"
        )
    fixed = {"timit": TIMIT_PHONES, "crema_d": sorted(EMOTIONS.values())}.get(name)
    table.attrs["labels"] = check_labels(table, fixed)
    return table


def check_labels(table: pd.DataFrame, labels=None) -> list[str]:
    """The labels of a corpus: those given, or those of its training rows.

    Raises
    ------
    ValueError
        If a row has another one.
    """
    lists = table.target.map(lambda x: x if isinstance(x, list) else [x])
    if labels is None:
        labels = sorted({x for row in lists[table.part == "train"] for x in row})
    for part, rows in lists.groupby(table.part):
        unknown = sorted({x for row in rows for x in row} - set(labels))
        require(
            not unknown,
            f"{part} has labels {unknown[:5]}; expected those of training, {labels[:5]} ...: is a part incomplete?",
        )
    return list(labels)


# ------------------------------------------------------------------ one function per corpus
def _files(folder: Path, suffix: str) -> list[Path]:
    """Files below a folder whose names end so, in either case."""
    require(folder.is_dir(), f"{folder}: no such folder", kind=FileNotFoundError)
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() == suffix)


def _folder(root: Path, name: str) -> Path:
    """A subfolder whatever its case."""
    require(root.is_dir(), f"{root}: no such folder", kind=FileNotFoundError)
    found = [p for p in root.iterdir() if p.name.lower() == name.lower()]
    require(
        found, f"{root}: without {name!r}; is it the corpus's own folder?", kind=FileNotFoundError
    )
    return found[0]


def _timit(root):
    for half in ("train", "test"):
        folder = _folder(root, half)
        texts, sounds = (
            {path.with_suffix(""): path for path in _files(folder, suffix)}
            for suffix in (".phn", ".wav")
        )
        alone = sorted(str(name) for name in set(texts) ^ set(sounds))
        require(
            not alone,
            f"{root}: {half} has {len(sounds)} .WAV and {len(texts)} .PHN; expected one for each, but {alone[:1]} is alone",
            kind=FileNotFoundError,
        )
        speakers = sorted({path.parent.name for path in texts})
        for name, path in texts.items():
            with reading(path, "phones of TIMIT: first and last sample, and the phone"):
                rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
                phones = [FOLDS.get(phone, phone) for _, _, phone in rows if phone != "q"]
                end = int(rows[-1][1]) / TIMIT_HZ
            held_out = half == "train" and speakers.index(path.parent.name) % 10 == 9
            yield {
                "path": sounds[name],
                "target": phones,
                "part": "val" if held_out else half,
                "story": path.parent.name,
                "type": path.stem[:2].upper(),  # SA: the same two sentences by all; SX, SI
                "end": end,
            }


def _slurp(root):
    texts = _folder(_folder(root, "dataset"), "slurp")
    sounds = {p.name: p for p in _files(root / "audio", ".flac")}
    for split in ("train", "devel", "test"):
        path = texts / f"{split}.jsonl"
        with reading(path, "utterances of SLURP, one JSON object per line"):
            rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]
            rows = [  # the file's own "intent" lacks the scenario in some rows
                (f"{row['scenario']}_{row['action']}", row["sentence"], row["recordings"])
                for row in rows
            ]
        for intent, sentence, recordings in rows:
            for recording in recordings:
                name = recording["file"]
                require(
                    name in sounds,
                    f"{path}: {name} is not below {root / 'audio'}",
                    kind=FileNotFoundError,
                )
                yield {
                    "path": sounds[name],
                    "target": intent,
                    "part": SPLITS[split],
                    "story": sentence,
                    "text": sentence,
                }


def _speech_commands(root):
    listed = {}
    for split, name in (("val", "validation"), ("test", "testing")):
        path = root / f"{name}_list.txt"
        require(path.exists(), f"{path}: not found; it tells the split", kind=FileNotFoundError)
        names = path.read_text().split()
        absent = [name for name in names if not (root / name).is_file()]
        require(
            names and not absent,
            f"{path}: names {len(names)} recordings, {len(absent)} of which are not there {absent[:2]}",
            kind=FileNotFoundError,
        )
        listed |= dict.fromkeys(names, split)
    for path in sorted(root.glob("*/*.wav")):
        word = path.parent.name
        if not word.startswith("_"):  # background noise
            yield {
                "path": path,
                "target": word,
                "part": listed.get(f"{word}/{path.name}", "train"),
                "story": path.name.split("_nohash_")[0],
            }


def _crema_d(root):
    for path in _files(_folder(root, "AudioWAV"), ".wav"):
        parts = path.stem.split("_")
        require(
            len(parts) == 4 and parts[0].isdigit() and parts[2] in EMOTIONS,
            f"{path}: expected a name such as 1001_DFA_ANG_XX.wav, with one of {sorted(EMOTIONS)}",
        )
        yield {
            "path": path,
            "target": EMOTIONS[parts[2]],
            "part": {"8": "val", "9": "test"}.get(parts[0][-1], "train"),
            "story": parts[0],
        }


def _superb(root, *, task: str, download: bool = False):
    require(
        download or Path(root).is_dir(),
        f"{root}: no such folder; to fetch it from the hub call with download=True",
        kind=FileNotFoundError,
    )
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            "SUPERB's collection needs Hugging Face's library: pip install datasets"
        ) from error
    loaded = load_dataset(str(root), task)
    for split, rows in loaded.items():
        require(split in SPLITS, f"superb {task}: split {split!r}; expected one of {list(SPLITS)}")
        names = rows.features["label"].names
        if "audio" in rows.features:  # it would be decoded row by row
            rows = rows.remove_columns("audio")
        for row in rows:
            require(
                0 <= row["label"] < len(names),
                f"superb {task}: {row['file']} of {split} has no label ({row['label']})",
            )
            yield {
                "path": Path(row["file"]),
                "target": names[row["label"]],
                "part": SPLITS[split],
                "story": str(row.get("speaker_id", row["file"])),
            }


READERS = {
    "timit": _timit,
    "slurp": _slurp,
    "speech_commands": _speech_commands,
    "crema_d": _crema_d,
    "superb": _superb,
}
