"""The claims of the three papers beside what the notebooks found, for the page *Paper against book*.

    python tools/claims.py _build/stage/numbers       # prints the table

A notebook that ends with `out` writes its numbers, and with them `claims`: for each claim what it found, its control and
what the ground truth says. Nothing here knows a result.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import mdtable

from brainlib.runtime import read_json

ROOT = Path(__file__).resolve().parents[1]
SAID = ("found", "control", "truth")  # of a claim, in a notebook's numbers


@dataclass(frozen=True)
class Claim:
    """What a paper reports, and the notebook that asks."""

    text: str
    papers: str
    notebook: str


CLAIMS = {
    "1": Claim(
        "Tuning on the whole cortex raises encoding performance outside auditory cortex, and costs auditory cortex",
        "BrainWavLM: whole-cortex tuning raises the average and lowers auditory cortex; tuning on auditory cortex alone "
        "raises that. Brain-tuning: late language regions gain for wav2vec 2.0 and HuBERT, not clearly for Whisper",
        "03_lora_brain_tuning",
    ),
    "2": Claim(
        "LoRA is steadier than full fine-tuning",
        "BrainWavLM: training with LoRA is more stable; seeds are not reported",
        "03_lora_brain_tuning",
    ),
    "3": Claim(
        "What was learned on one participant serves another",
        "BrainWavLM: the tuned model also predicts participants it was not tuned on better",
        "04_cross_subject",
    ),
    "4": Claim(
        "Tuning lowers the part of alignment that low-level features explain in late language regions",
        "Brain-tuning: it falls for all three families of models; linear residuals, one family of features at a time, "
        "at the same TR",
        "05_low_level_ablation",
    ),
    "5": Claim(
        "Tuning strengthens semantic information and moves the space from phonetic to semantic preference",
        "BrainWavLM: word vectors are easier to decode. Brain-tuning: the space prefers meaning to sound more than before",
        "06_semantic_probes",
    ),
    "6": Claim(
        "Downstream tasks gain, semantic ones most; some lose",
        "Brain-tuning: most of six tasks gain, the more semantic the more; emotion is the exception. Refining: speech "
        "recognition, speaker verification and intent classification gain",
        "07_downstream_tasks",
    ),
    "7": Claim(
        "Which parameters change, and which layers a task then prefers",
        "Refining: the share of change differs with layer and kind of parameter, and so do the layers that tasks weigh",
        "08_inside_the_tuned_model",
    ),
}


def found_in(folder: Path | None, notebook: str, claim: str) -> dict:
    """What a run found of a claim; empty where that notebook was not run, or could not ask."""
    path = folder / f"{notebook}.json" if folder else None
    if path is None or not path.exists():
        return {}
    entry = read_json(path, "numbers of a notebook", remedy="run the notebook again")
    claims = entry.get("numbers", {}).get("claims")
    if not isinstance(claims, dict):
        raise ValueError(
            f"{path}: without `claims`; expected numbers that a notebook of this book wrote"
        )
    found = claims.get(claim, {})
    if not found:
        return {}
    about = entry.get("dataset") or {}
    if not found.get("found"):
        raise ValueError(f"{path}: claim {claim} without words of what was found")
    data = "simulated" if about.get("simulated") else about.get("name", "data not stated")
    return {name: plain(text) for name, text in found.items()} | {"data": data}


def plain(text: str) -> str:
    """A text that cannot break a row of a table."""
    return " ".join(str(text).replace("|", "/").split())


def rows(folder: Path, own: Path | None = None) -> list:
    """A row per claim: claim, papers, this book, control, ground truth, your run."""
    table = []
    for number, claim in CLAIMS.items():
        found = found_in(folder, claim.notebook, number)
        mine = found_in(own, claim.notebook, number)
        cells = [found.get(name) or "not asked" for name in SAID]
        if found:
            short = f"**{found['short']}.** " if "short" in found else ""
            cells[0] = f"{short}{cells[0]} ({found['data']})"
        else:
            cells[0] = "runs are missing"
        there = (ROOT / "notebooks" / f"{claim.notebook}.ipynb").exists()
        link = f"[{number}.](../notebooks/{claim.notebook}.ipynb)" if there else f"{number}."
        yours = f"{mine['found']} ({mine['data']})" if mine else ""
        table.append([f"{link} {claim.text}", claim.papers, *cells, yours])
    return table


def short_table(folder: Path) -> str:
    """A row per claim with what came out in a few words, for the welcome page."""
    lines = []
    for number, claim in CLAIMS.items():
        found = found_in(folder, claim.notebook, number)
        text = (
            f"{found['short']} ({found['data']})" if "short" in found else "open: runs are missing"
        )
        link = f"[{claim.notebook[1]}](../notebooks/{claim.notebook}.ipynb)"
        lines.append([claim.text, text, link])
    return mdtable.table(["claim of the papers", "here", "notebook"], lines)


def table(folder: Path, own: Path | None = None) -> str:
    """The rows as a Markdown table; `own` holds the numbers of a reader's run.

    Raises
    ------
    FileNotFoundError
        If `own` does not exist.
    ValueError
        If a file there holds no numbers of a notebook.
    """
    if own is not None and not own.is_dir():
        raise FileNotFoundError(f"{own}: no such folder of numbers; run the notebooks with `--out`")
    if own is not None and not any((own / f"{c.notebook}.json").exists() for c in CLAIMS.values()):
        raise FileNotFoundError(
            f"{own}: no numbers of a notebook; expected the folder `numbers` of a run"
        )
    header = [
        "claim",
        "the papers report",
        "this book finds",
        "control",
        "ground truth",
        "your run",
    ]
    return mdtable.table(header, rows(folder, own))


if __name__ == "__main__":
    print(table(*map(Path, sys.argv[1:])))
