"""Tables of the tuned models in `results/zoo`: every run with its score, and what 1, 10 and 1,000 jobs cost.

python tools/zoo_facts.py       # prints them
"""

from __future__ import annotations

import sys
from pathlib import Path

from mdtable import table

from brainlib import results
from brainlib.scores import interval

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "workflow"))
from zoo import read_grid  # noqa: E402

N_JOBS = (1, 10, 1000)
AT_ONCE = (1, 2, 100)
KINDS = ("noisy", "noise-free")


def facts() -> dict[str, str]:
    """What the pages name as @@NAME@@, by name; only what is current is in it, and what is missing is said."""
    zoo = results.load_zoo()
    runs = read_grid()
    there = set(zoo.attrs["learning_curves"])
    missing = [f"`{run.name}`" for run in runs if run.name not in there]
    return {
        "ZOO_TABLE": run_table(zoo, order=[run.name for run in runs]),
        "ZOO_MISSING": f"{len(runs) - len(missing)} of {len(runs)} are there."
        + f" Not trained yet, for want of time: {', '.join(missing)}." * bool(missing),
    } | costs(zoo)


def run_table(zoo, order=()) -> str:
    """A row per run (of an untuned model, per subject): scores of all voxels with their intervals over stories, seconds.

    Runs come in the order of the grid; a long name may break after a plus.
    """
    header = ["run", "evaluated on", *KINDS, *(f"change, {kind}" for kind in KINDS), "seconds"]
    rows = []
    by_run = dict(list(zoo[zoo.region == "all voxels"].groupby("run", sort=False)))
    for name in sorted(by_run, key=lambda name: order.index(name) if name in order else -1):
        run = by_run[name]
        untuned = (run.tuned_on == "").all()
        own = [subject in tuned.split("+") for subject, tuned in zip(run.subject, run.tuned_on)]
        shown = run[own] if any(own) else run
        for _, part in shown.groupby(shown.subject if untuned else "run", sort=False):
            cells = [over_stories(part, kind, column="normalised") for kind in KINDS]
            cells += [
                "" if untuned else over_stories(part, kind, column="change") for kind in KINDS
            ]
            subjects = ", ".join(part.subject.unique())
            label = f"<code>{name.replace('+', '+<wbr>')}</code>"
            rows.append([label, subjects, *cells, f"{part.seconds.iloc[0]:,}"])
    return table(header, rows)


def over_stories(rows, kind: str, *, column: str) -> str:
    """Mean over subjects, with the 95 % interval over stories."""
    stories = rows[rows.kind == kind].groupby("story")[column].mean().dropna()
    if len(stories) < 2:
        return ""
    mean, low, high = interval(stories).iloc[0]
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def costs(zoo) -> dict[str, str]:
    """Seconds of the runs that tuned, and what follows for more of them."""
    tuned = zoo[(zoo.method == "tuned") & ~zoo.run.str.startswith("everyone-")]
    seconds = tuned.drop_duplicates("run").seconds
    if not len(seconds):
        return {"ZOO_COSTS": "(no tuning run yet)", "ZOO_SECONDS": "No tuning run is measured yet."}
    mean = seconds.mean()
    rows = [
        [f"{n:,}", *(duration(-(-n // at_once) * mean) for at_once in AT_ONCE), duration(n * mean)]
        for n in N_JOBS
    ]
    header = ["jobs", *(f"{n} at a time" for n in AT_ONCE), "core time"]
    measured = (
        f"Measured on {len(seconds)} tuning runs of `results/zoo`: {duration(mean)} in the mean, "
        f"{duration(seconds.min())} to {duration(seconds.max())}."
    )
    return {"ZOO_COSTS": table(header, rows), "ZOO_SECONDS": measured}


def duration(seconds: float) -> str:
    """In minutes, hours or days, whichever reads best."""
    for name, size in (("days", 86_400), ("h", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds / 60:.0f} min"


if __name__ == "__main__":
    for name, text in facts().items():
        print(name, text, sep="\n", end="\n\n")
