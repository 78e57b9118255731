"""RidgeEncoder against a plain bootstrap ridge as the field runs it: same data, same penalties, one run, side by side.

    python benchmarks/ridge.py [--voxels 10000] [--repeats 2] [--fifty] [--whole-subject]

Features: four layers of the embedded speech model on fireside (width 192 each), delayed by 1 to 4 TRs: 3,072 columns.
Responses: three simulated subjects side by side, cut to `--voxels` columns. Both methods get the same z-scored, delayed
design and the same penalties; the bootstrap holds out random chunks of 20 TRs, a quarter of the rows, three times
(the settings of the brain-tuning studies; the data set authors' own default is 50 times: `--fifty`), and chooses a penalty per voxel by mean held-out score. Ours holds out
whole stories, in three folds (as many refits as the bootstrap has) and in five (the default). Timed from the lists of
stories to the scores on the test story, which neither sees while fitting. himalaya's own cross-validated solver, with the
same folds, stands beside them (to the chosen penalties and weights).

`--whole-subject`: a slice of voxels of a subject of ds003020 (9,000 x 3,072, made up), 5 folds, 13 penalties; from two
slices the time of all 95,556 voxels, beside the time of the matrix products alone.
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
    train, test = ds.split["train"][:16], ds.split["test"]  # 16 stories: about 1,500 rows
    for name in [*train, *test]:
        story = ds.story(name)
        states, times = encoder.features(story.audio, layers=LAYERS, window=10, hop=5)
        X[name] = np.hstack([timing.downsample(states[k], times, story.tr_times) for k in LAYERS])
        both = [ds.responses(s, name) for s in ("SIM01", "SIM02", "SIM03")]
        Y[name] = np.hstack(both)[:, :n_voxels]
    return [[a[s] for s in names] for names in (train, test) for a in (X, Y)]


def himalayas_own(X, Y, alphas, n_folds):
    """Kernel ridge by himalaya's cross-validated solver in batches of targets; returns weights (p, n_voxels)."""
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues
    from himalaya.scoring import l2_neg_loss
    from sklearn.model_selection import check_cv

    backend = set_backend("torch")
    stacked = np.concatenate(X)
    mean, scale = stacked.mean(0), stacked.std(0)
    design = np.concatenate([timing.fir((x - mean) / scale) for x in X]).astype(np.float32)
    y = np.concatenate(Y)
    dual = solve_kernel_ridge_cv_eigenvalues(
        backend.asarray(design @ design.T),
        backend.asarray(y - y.mean(0)),
        alphas=backend.asarray(alphas, dtype="float32"),
        score_func=l2_neg_loss,
        cv=check_cv(encoding.story_folds([len(x) for x in X], n_folds)),
        n_targets_batch=1000,
        n_alphas_batch=5,
    )[1]
    return design.T @ dual.numpy()


# ------------------------------------------------------------------ a whole subject
N_TRS, N_FEATURES, N_VOXELS = 9_000, 768, 95_556


def made_up(n_voxels, n_stories=25):
    """Features with the falling spectrum of hidden states (1 / rank), and responses that follow them a little."""
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((N_FEATURES, N_FEATURES)).astype(np.float32)
    mixing /= np.arange(1, N_FEATURES + 1, dtype=np.float32)[:, None]
    rows = N_TRS // n_stories
    X = [rng.standard_normal((rows, N_FEATURES), np.float32) @ mixing for _ in range(n_stories)]
    weights = rng.standard_normal((N_FEATURES, n_voxels), np.float32) / N_FEATURES
    Y = [x @ weights + rng.standard_normal((rows, n_voxels), np.float32) for x in X]
    return X, Y


def products_alone(n_voxels, n_folds=5, n_alphas=13):
    """Seconds of the bare products of one fit: each fold's rotation and a prediction of full rank per penalty, the refit."""
    import torch

    p, n_test = 4 * N_FEATURES, N_TRS // n_folds
    design, y, square = torch.randn(N_TRS, p), torch.randn(N_TRS, n_voxels), torch.randn(p, p)
    rotated = design.T @ y  # warm
    start = time.perf_counter()
    for _ in range(n_folds):
        rotated = design[n_test:].T @ y[n_test:]
        for _ in range(n_alphas):
            design[:n_test] @ rotated
    square @ (design.T @ y)
    return time.perf_counter() - start


def whole_subject(few=500, more=2_000):
    seconds = {}
    for n_voxels in (few, more):
        X, Y = made_up(n_voxels)
        with Peak() as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.perf_counter()
            encoding.RidgeEncoder().fit(X, Y)
            seconds[n_voxels] = time.perf_counter() - start
    per_voxel = (seconds[more] - seconds[few]) / (more - few)
    once = seconds[few] - few * per_voxel
    bare = products_alone(more) / more
    total, products = once + N_VOXELS * per_voxel, N_VOXELS * bare
    print(f"measured: {seconds} s for so many voxels; products alone {bare * 1e3:.2f} ms per voxel")
    print(
        f"computed for {N_VOXELS}: {total:.0f} s ({once:.0f} s of it once), {total / products:.2f} "
        f"times the products alone ({products:.0f} s)"
    )
    gb = 4 * N_TRS * N_VOXELS / 1e9
    above = memory.peak / 1e3 + 4 * 4 * N_FEATURES * (N_VOXELS - more) / 1e9
    print(
        f"memory above the data: {memory.peak:.0f} MB at {more} voxels; computed for {N_VOXELS}: "
        f"{above:.1f} GB beside {gb:.1f} GB of responses"
    )


def correlations(y, predicted):
    """Pearson r of each voxel, one after the other, as in the reference code."""
    return np.nan_to_num([np.corrcoef(y[:, v], predicted[:, v])[0, 1] for v in range(y.shape[1])])


def methods_on(X, Y, X_test, Y_test, *, fifty):
    """{name: function without arguments that gives the test score of each voxel}."""
    stacked = np.concatenate(X)
    mean, scale = stacked.mean(0), stacked.std(0)
    design, design_test = (
        np.concatenate([timing.fir((x - mean) / scale) for x in xs]).astype(np.float64)
        for xs in (X, X_test)
    )
    alphas = np.linalg.eigvalsh(design @ design.T)[-1] * np.logspace(-5, 1, 15)
    print(f"design {design.shape}, {Y[0].shape[1]} voxels, {len(alphas)} penalties")
    print(f"machine: {runtime.pick_device()}")
    y_test = np.concatenate(Y_test)

    def plain(n_boots):
        responses = np.concatenate(Y).astype(np.float64)
        weights, _ = plain_bootstrap_ridge(design, responses, alphas, n_boots)
        return correlations(y_test, design_test @ weights)

    def ours(n_folds):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ridge = encoding.RidgeEncoder(alphas=alphas, n_folds=n_folds).fit(X, Y)
            return ridge.score(X_test, Y_test)

    def himalaya(n_folds):
        return correlations(y_test, design_test @ himalayas_own(X, Y, alphas, n_folds))

    methods = {
        "plain, 3 boots": lambda: plain(3),
        "ours, 3 folds": lambda: ours(3),
        "ours, 5 folds": lambda: ours(5),
        "himalaya's own, 5 folds": lambda: himalaya(5),
    }
    return methods | ({"plain, 50 boots": lambda: plain(50)} if fifty else {})


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
    parser.add_argument("--whole-subject", action="store_true", help="time a slice of a subject")
    options = parser.parse_args()
    if options.whole_subject:
        return whole_subject()
    methods = methods_on(*data(options.voxels), fifty=options.fifty)
    seconds, peak, r = {}, {}, {}
    for _ in range(options.repeats):  # in turn, so that a slow minute of the machine hits all
        for name, method in methods.items():
            with Peak() as memory:
                start = time.perf_counter()
                r[name] = method().mean()
                seconds[name] = min(seconds.get(name, np.inf), time.perf_counter() - start)
            peak[name] = memory.peak
    first = "plain, 3 boots"
    for name in methods:
        print(
            f"{name:24s} {seconds[name]:6.1f} s, {seconds[first] / seconds[name]:.2f} times as fast as "
            f"{first}; memory above the data {peak[name]:5.0f} MB; "
            f"mean test r {r[name]:.4f} ({r[name] - r[first]:+.4f})"
        )


if __name__ == "__main__":
    main()
