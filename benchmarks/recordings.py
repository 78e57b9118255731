"""Memory and time of reading one subject of ds003020 at its full size, from made-up files (12 GB of disk).

    python benchmarks/recordings.py [--subject UTS03] [--folder /somewhere/with/room]

Made-up means random numbers in files of the real shapes: the recordings themselves cannot be reached here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from brainlib import lebel

STEPS = {
    "stories": "all 27 stories, kept",
    "ceiling": "noise ceiling of the test story",
    "ridge": "26 stories, ridge of 768 features with four delays, scored",
}
READ = """
import json, sys, time
import numpy as np
from brainlib import datasets, encoding, runtime
root, subject, voxel_step, what = json.loads(sys.argv[1])
ds = datasets.load(root, voxel_step=voxel_step)
stories, start = ds.stories, time.perf_counter()
if what == "stories":
    result = [ds.responses(subject, s) for s in stories]
elif what == "ceiling":
    result = encoding.noise_ceiling(ds.repeats(subject, "wheretheressmoke"))
else:
    Y = [ds.responses(subject, s) for s in stories if s != "wheretheressmoke"]
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((len(y), 768), dtype=np.float32) for y in Y]
    result = encoding.RidgeEncoder().fit(X, Y).score(X[:1], Y[:1])
print(json.dumps([time.perf_counter() - start, runtime.peak_memory_mb()]))
"""


def make(root: Path, subject: str):
    """Response files of the real shapes; sounds are left out, TextGrids are empty."""
    table = lebel.manifest()
    stories = sum(lebel.split_of([subject]).values(), [])
    mine = (
        table[(table.subject == subject) & (table.kind == "responses") & table.story.isin(stories)]
        .set_index("story")
        .bytes
    )
    repeats = 10 if subject in ("UTS01", "UTS02", "UTS03") else 5
    voxels = int(mine[lebel.TEST]) // (8 * 291 * (1 + repeats))
    rows = {s: 291 if s == lebel.TEST else int((n - 2048) // (8 * voxels)) for s, n in mine.items()}
    folder = root / "derivative" / "preprocessed_data" / subject
    for new in (folder, root / "derivative" / "TextGrids", root / "stimuli"):
        new.mkdir(parents=True, exist_ok=True)
    (root / "derivative" / "respdict.json").write_text(
        json.dumps({s: n + 20 for s, n in rows.items()})
    )
    rng = np.random.default_rng(0)
    for story, n in rows.items():
        (root / "derivative" / "TextGrids" / f"{story}.TextGrid").write_text("")
        with h5py.File(folder / f"{story}.hf5", "w") as file:
            shapes = {"data": (n, voxels)} | (
                {"individual_repeats": (repeats, n, voxels)} if story == lebel.TEST else {}
            )
            for key, shape in shapes.items():
                stored = file.create_dataset(key, shape, "f8")
                for i in range(shape[0]):
                    stored[i] = rng.standard_normal(shape[1:], dtype=np.float32)
    return voxels, sum(rows.values())


def measure(folder: str, subject: str, *, what: str, voxel_step: int) -> dict:
    """Time and peak memory of one task in a process of its own."""
    task = json.dumps([folder, subject, voxel_step, what])
    command = [sys.executable, "-W", "ignore", "-c", READ, task]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        raise SystemExit(f"{what}, one voxel in {voxel_step}: {last} (code {done.returncode})")
    seconds, peak = json.loads(done.stdout)
    return {
        "what": STEPS[what],
        "voxel_step": voxel_step,
        "seconds": round(seconds, 1),
        "peak_gb": round(peak / 1000, 2),
    }


TASKS = (("stories", 1), ("stories", 10), ("ceiling", 1), ("ceiling", 10), ("ridge", 10))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--subject", default="UTS03")
    parser.add_argument("--folder", default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        voxels, rows = make(Path(folder), options.subject)
        print(f"{options.subject}: {voxels} voxels, {rows} rows in 27 stories")
        runs = []
        for what, voxel_step in TASKS:
            runs.append(measure(folder, options.subject, what=what, voxel_step=voxel_step))
            print(runs[-1], flush=True)
    about = {
        "subject": options.subject,
        "voxels": voxels,
        "rows": rows,
        "cores": os.cpu_count(),
        "runs": runs,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
