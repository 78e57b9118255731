"""Make a long listening: fireside, and hours of public-domain prose beside it, with one simulated participant.

    export FIRESIDE_ASSETS=WORK/assets
    python tools/long_listening.py write --text PROSE --hours 2   # its texts, beside fireside's stories
    python tools/long_listening.py speak [--part 0/2]             # sound and TextGrids; skips what is there
    python tools/long_listening.py build WORK/tree                # word vectors, and the responses of SIM01
    python workflow/tune.py listening-None --grid workflow/listening.yaml --out results/listening

PROSE is a folder of .txt files. Needs the extra ``[speech]`` and Kokoro's voice packs (see make_fireside.py). The prose is
for training alone; validation and test stories are fireside's. It is a simulation of its own: the principal components of
the word vectors, and what lies beyond sound, are those of all its stories. No word of the probe set is in it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
from pathlib import Path

import make_fireside as fireside_tools
from make_fireside import ASSETS, OWN_ASSETS, VOICES, spoken_words

WORDS_PER_STORY, WORDS_PER_MINUTE = 560, 190
LONGEST = 260  # letters of a sentence
NAME = "zprose"  # behind all stories of fireside, so that the first training stories are the same
TITLES = re.compile(r"\b(Mr|Mrs|Dr|St|No|vol|etc)\.$", re.IGNORECASE)
PLAIN = re.compile(r"[A-Z][A-Za-z ,']*[a-z][.!?]")


def sentences(text: str):
    """Yield the plain sentences of a text in order: letters, commas and apostrophes, four words or more."""
    text = text.translate(str.maketrans("‘’;:", "'',,")).replace("--", ", ").replace("_", "")
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(text.split())):
        short = len(sentence) <= LONGEST and len(sentence.split()) >= 4
        if short and PLAIN.fullmatch(sentence) and not TITLES.search(sentence):
            yield sentence


def probe_words() -> set[str]:
    """The words that the probe set asks for, which nobody may have heard."""
    lines = (OWN_ASSETS / "probe" / "sentences.tsv").read_text(encoding="utf-8").splitlines()
    pairs = " ".join(line.split("\t")[1] for line in lines[1:]).split()  # word:category
    return {pair.partition(":")[0].lower() for pair in pairs}


def write(folder: Path, hours: float):
    """Write texts of some hours of speech beside copies of fireside's own assets."""
    if not hours > 0 or any(ASSETS.rglob(f"{NAME}*")):
        raise SystemExit(f"{hours} hours into {ASSETS}: expected some, and a folder without prose")
    shutil.copytree(OWN_ASSETS, ASSETS, dirs_exist_ok=True)
    rows, unheard = fireside_tools.glove_rows(), probe_words()
    n_stories = round(hours * 60 * WORDS_PER_MINUTE / WORDS_PER_STORY)
    story, number = [], 0
    for path in sorted(folder.glob("*.txt")):
        for sentence in sentences(path.read_text(encoding="utf-8")):
            words = [w.lower() for w in spoken_words(sentence)]
            if unheard & set(words) or not all(fireside_tools.in_glove(w, rows) for w in words):
                continue
            story.append(sentence)
            if len(" ".join(story).split()) < WORDS_PER_STORY:
                continue
            voice = VOICES[number % len(VOICES)]
            head = f"title: {path.stem} {number}\nvoice: {voice}"
            target = ASSETS / "stories" / f"{NAME}{number:03d}.txt"
            target.write_text(f"{head}\n\n{' '.join(story)}\n", encoding="utf-8")
            story, number = [], number + 1
            if number == n_stories:
                return
    raise SystemExit(
        f"{folder} gives {number} stories, {n_stories} are asked for: more text, or fewer hours"
    )


def speak(part: str, voices: Path):
    """Sound and TextGrid of each prose story of a part that has none."""
    mine, of = map(int, part.split("/"))
    if not 0 <= mine < of:
        raise SystemExit(f"part {part}: expected 0/{of} to {of - 1}/{of}")
    speaker = fireside_tools.Speaker(voices)
    for number, path in enumerate(sorted((ASSETS / "stories").glob(f"{NAME}*.txt"))):
        sound, _ = fireside_tools.paths(path.stem)
        if number % of == mine and not sound.exists():
            fireside_tools.write_story(path.stem, speaker)


def build(tree: Path):
    """Word vectors of all stories, SIM01's responses, and a description that tells the tree from fireside."""
    import fireside
    from brainlib.runtime import atomic

    silent = [
        p.stem
        for p in (ASSETS / "stories").glob("*.txt")
        if not fireside_tools.paths(p.stem)[0].exists()
    ]
    if silent:
        raise SystemExit(f"{len(silent)} stories have no sound yet ({silent[:3]}): `speak` first")
    fireside_tools.vectors()
    fireside.build(["SIM01"], root=tree)
    path = tree / "dataset_description.json"
    description = json.loads(path.read_text())
    description |= {"Name": "fireside, long listening", "Subjects": ["SIM01"]}
    del description["SimulationVersion"]
    with atomic(path) as whole:
        whole.write_text(json.dumps(description, indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["write", "speak", "build"])
    parser.add_argument("tree", nargs="?", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--voices", type=Path, default=os.environ.get("KOKORO_VOICES"))
    options = parser.parse_args()
    if ASSETS.resolve() == OWN_ASSETS.resolve():
        raise SystemExit("set FIRESIDE_ASSETS to a folder of your own, beside fireside's assets")
    if options.step == "write":
        write(options.text, options.hours)
    elif options.step == "speak":
        speak(options.part, options.voices)
    elif options.tree is None:
        parser.error("build needs the folder of the tree")
    else:
        build(options.tree)
