"""RidgeEncoder against a plain bootstrap ridge as the field runs it: same data, same penalties, one run, side by side.

    python benchmarks/ridge.py [--voxels 10000] [--repeats 2] [--fifty]

Features: four layers of the embedded speech model on fireside (width 192 each), delayed by 1 to 4 TRs: 3,072 columns.
Responses: two simulated listeners side by side, cut to `--voxels` columns. Both methods get the same z-scored, delayed
design and the same penalties; the bootstrap holds out random chunks of 20 TRs, a quarter of the rows, three times
(the settings of the brain-tuning studies; the data set authors' own default is 50 times: `--fifty`), and chooses a penalty a voxel by mean held-out score. Ours holds out
whole stories, in three folds (as many refits as the bootstrap has) and in five (the default). Timed from the lists of
stories to the scores on the test story, which neither sees while fitting.
"""

from __future__ import annotations

import argparse
import threading
import time
import warnings

import numpy as np

from brainlib import datasets, encoding, runtime, timing
from brainlib.speech import SpeechEncoder

LAYERS = (0, 2, 4, 6)


def plain_bootstrap_ridge(X, Y, alphas, n_boots=3, chunk=20, share=0.25, seed=0):
    """Weights by singular values of the whole design; the penalty of each voxel by held-out chunks (R2). Float64.

    A plain implementation from the published description (Huth et al. 2016); penalties are in the squared convention
    there, unsquared here, which is the same ridge.
    """
    rng = np.random.default_rng(seed)
    chunks = np.split(np.arange(len(X) // chunk * chunk), len(X) // chunk)
    scores = np.zeros((len(alphas), Y.shape[1]))
    for _ in range(n_boots):
        order = rng.permutation(len(chunks))
        held = np.concatenate([chunks[i] for i in order[: int(share * len(chunks))]])
        kept = np.setdiff1d(np.arange(len(X)), held)
        u, s, vt = np.linalg.svd(X[kept], full_matrices=False)
        projected, rows = u.T @ Y[kept], X[held] @ vt.T
        for i, alpha in enumerate(alphas):
            predicted = (rows * (s / (s**2 + alpha))) @ projected
            r2 = 1 - (Y[held] - predicted).var(0) / (
                (1 + Y[held].var(0)) / 2
            )  # as published: half way to unit variance
            scores[i] += np.nan_to_num(np.sqrt(np.abs(r2)) * np.sign(r2))
    best = np.asarray(alphas)[scores.argmax(0)]
    u, s, vt = np.linalg.svd(X, full_matrices=False)
    projected, weights = u.T @ Y, np.empty((X.shape[1], Y.shape[1]))
    for alpha in np.unique(best):
        where = best == alpha
        weights[:, where] = vt.T @ ((s / (s**2 + alpha))[:, None] * projected[:, where])
    return weights, best


class Peak:
    """Largest memory of this process above where it began, in MB, sampled every 20 ms while the block runs."""

    def __enter__(self):
        self.start, self.peak, self.running = self.now(), 0.0, True
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join()

    def watch(self):
        while self.running:
            self.peak = max(self.peak, self.now() - self.start)
            time.sleep(0.02)

    @staticmethod
    def now() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 1e6


def data(n_voxels: int):
    ds = datasets.load("fireside")
    encoder = SpeechEncoder.from_pretrained("wavlm-pico")
    X, Y = {}, {}
    for name in [*ds.split["train"], *ds.split["test"]]:
        story = ds.story(name)
        states, times = encoder.features(story.audio, layers=LAYERS, window=10, hop=5)
        X[name] = np.hstack([timing.downsample(states[k], times, story.tr_times) for k in LAYERS])
        both = [ds.responses(s, name) for s in ("SIM01", "SIM02", "SIM03")]
        Y[name] = np.hstack(both)[:, :n_voxels]
    train, test = ds.split["train"][:16], ds.split["test"]  # 16 stories: about 1,500 rows
    return [[a[s] for s in names] for names in (train, test) for a in (X, Y)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--voxels", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument(
        "--fifty",
        action="store_true",
        help="also the 50 boots of the data set authors' own default (minutes)",
    )
    given = parser.parse_args()
    X, Y, X_test, Y_test = data(given.voxels)
    stacked = np.concatenate(X)
    mean, scale = stacked.mean(0), stacked.std(0)
    design, design_test = (
        np.concatenate([timing.fir((x - mean) / scale) for x in xs]).astype(np.float64)
        for xs in (X, X_test)
    )
    top = np.linalg.eigvalsh(design @ design.T)[-1]
    alphas = top * np.logspace(-5, 1, 15)
    print(
        f"design {design.shape}, {Y[0].shape[1]} voxels, {len(alphas)} penalties; machine: {runtime.pick_device()}"
    )
    seconds, peak, r = {}, {}, {}

    def plain(n_boots):
        weights, _ = plain_bootstrap_ridge(
            design, np.concatenate(Y).astype(np.float64), alphas, n_boots
        )
        predicted, y = design_test @ weights, np.concatenate(Y_test)
        return np.nan_to_num(
            [np.corrcoef(y[:, v], predicted[:, v])[0, 1] for v in range(y.shape[1])]
        )  # a voxel at a time, as there

    def ours(n_folds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return (
                encoding.RidgeEncoder(alphas=alphas, n_folds=n_folds)
                .fit(X, Y)
                .score(X_test, Y_test)
            )

    methods = {
        "plain, 3 boots": lambda: plain(3),
        "ours, 3 folds": lambda: ours(3),
        "ours, 5 folds": lambda: ours(5),
    }
    if given.fifty:
        methods["plain, 50 boots"] = lambda: plain(50)
    for _ in range(given.repeats):  # in turn, so that a slow minute of the machine hits all
        for name, method in methods.items():
            with Peak() as memory:
                start = time.perf_counter()
                r[name] = method()
                seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
            peak[name] = memory.peak
    first = "plain, 3 boots"
    for name in methods:
        times = f"{seconds[first] / seconds[name]:.2f} times as fast as {first}"
        print(
            f"{name:14s} {seconds[name]:6.1f} s, {times}; memory above the data {peak[name]:5.0f} MB; mean test r {r[name].mean():.4f} ({r[name].mean() - r[first].mean():+.4f})"
        )


if __name__ == "__main__":
    main()
