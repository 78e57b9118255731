"""The figures with sliders of the primers: delays of an encoding model, its ridge penalty, and the rank of an adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.stats import gamma
from sliders import Slider, View

from brainlib import timing

# ------------------------------------------------------------------ delays
TR = 2.0  # s
PEAKS = (3, 5, 7, 9)  # s after an event
COUNTS = (1, 2, 3, 4, 6, 8)  # delays: the first n TRs
N_TRAIN, N_TEST, N_REPEATS = 300, 100, 5


def hrf(seconds, peak: float):
    """A gamma density that is highest `peak` seconds after an event, with sum 1 over TRs."""
    shape = 6
    return TR * gamma.pdf(seconds, shape, scale=peak / (shape - 1))


def simulate(peak: float, seed: int = 0):
    """Events and noisy responses of a voxel, the mean of some repeats; both of shape (n_trs,)."""
    rng = np.random.default_rng(seed)
    events = (rng.random(N_TRAIN + N_TEST) < 0.3).astype(float)
    signal = np.convolve(events, hrf(TR * np.arange(20), peak))[: len(events)]
    noise = rng.normal(0, 1.5 * signal.std(), (N_REPEATS, len(events)))
    return events, signal + noise.mean(0)


def fit_delays(peak: float, count: int) -> dict:
    """Least squares on the first `count` delays: weights, and the prediction of rows that were left out."""
    events, response = simulate(peak)
    delayed = timing.fir(events[:, None], delays=range(1, count + 1))  # (n_trs, count)
    train, test = slice(0, N_TRAIN), slice(N_TRAIN, None)
    means = delayed[train].mean(0), response[train].mean()
    weights = np.linalg.lstsq(delayed[train] - means[0], response[train] - means[1], rcond=None)[0]
    predicted = (delayed[test] - means[0]) @ weights + means[1]
    r = np.corrcoef(predicted, response[test])[0, 1]
    return {"weights": weights, "predicted": predicted, "response": response[test], "r": r}


def draw_delays(figure, fitted, peak, count):
    """Weights over the response to one event, and the prediction over what was measured."""
    left, right = figure.subplots(1, 2, width_ratios=[1, 2])
    seconds = np.linspace(0, 20, 201)
    left.plot(seconds, hrf(seconds, peak), color="0.5", label="response to one event")
    delays = TR * np.arange(1, count + 1)
    left.plot(delays, fitted["weights"], "o-", color="C0", label="fitted weights")
    left.set(xlabel="delay (s)", ylabel="BOLD (a.u.)", xlim=(0, 20), ylim=(-0.1, 0.75))
    left.legend(frameon=False)
    times = TR * np.arange(N_TEST)
    right.plot(times, fitted["response"], color="0.5", label="measured (simulated)")
    right.plot(times, fitted["predicted"], color="C0", label="predicted")
    right.set(xlabel="time (s), rows left out of the fit", xlim=(0, times[-1]), yticks=[])
    right.legend(frameon=False, ncols=2, loc="upper right")
    right.set_ylim(top=right.get_ylim()[1] * 1.25)


def say_delays(fitted, peak, count):
    reach = f"a delay of {TR:g} s" if count == 1 else f"delays of {TR:g} to {TR * count:g} s"
    said = (
        f"Simulated voxel, highest {peak} s after an event; {reach}: held-out r = {fitted['r']:.2f}"
    )
    return said, (
        "Left, the fitted weights over the response to one event; right, measured and predicted rows"
    )


# ------------------------------------------------------------------ penalty
ROWS = (50, 100, 200, 400, 800)  # TRs to fit on
PENALTIES = tuple(10**power for power in range(7))
N_FEATURES = 100


def simulate_features(seed: int = 0):
    """Features that are correlated, as those of a speech model are, their weights, and noisy responses of a voxel."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(N_FEATURES, N_FEATURES)))[0]
    spread = 10 / np.sqrt(np.arange(1, N_FEATURES + 1))
    features = rng.normal(size=(ROWS[-1] + 400, N_FEATURES)) * spread @ directions
    weights = rng.normal(size=N_FEATURES)
    signal = features @ weights
    return features, weights, signal + rng.normal(0, 1.5 * signal.std(), len(signal))


def ridge(features, response, penalty: float):
    """Weights of a ridge regression, (n_features,)."""
    gram = features.T @ features + penalty * np.eye(features.shape[1])
    return np.linalg.solve(gram, features.T @ response)


def fit_penalty(rows: int, penalty: float) -> dict:
    """Correlations on the rows that were fitted and on others, for every penalty; weights for the one asked for."""
    features, true, response = simulate_features()
    fitted = [ridge(features[:rows], response[:rows], p) for p in PENALTIES]

    def score(part):
        return [np.corrcoef(features[part] @ w, response[part])[0, 1] for w in fitted]

    place = PENALTIES.index(penalty)
    train, test = score(slice(0, rows)), score(slice(ROWS[-1], None))
    curves = {"rows that were fitted": train, "rows left out": test}
    return {"curves": curves, "true": true, "weights": fitted[place], "r": test[place]}


def draw_penalty(figure, fitted, rows, penalty):
    """Both correlations over the penalty, and the fitted weights over the true ones."""
    left, right = figure.subplots(1, 2, width_ratios=[2, 1])
    for (label, curve), colour in zip(fitted["curves"].items(), ("0.5", "C0")):
        left.semilogx(PENALTIES, curve, "o-", color=colour, label=label)
    left.axvline(penalty, color="C1", linestyle=":")
    left.set(xlabel="penalty", ylabel="correlation r", ylim=(-0.05, 1.05))
    left.legend(frameon=False)
    right.plot([-3, 3], [-3, 3], color="0.5", linestyle=":")
    right.plot(fitted["true"], fitted["weights"], ".", color="C0")
    right.set(xlabel="true weight", ylabel="fitted weight", xlim=(-3, 3), ylim=(-6, 6))


def say_penalty(fitted, rows, penalty):
    said = f"Simulated voxel, {rows} TRs, penalty {penalty}: held-out r = {fitted['r']:.2f}"
    return (
        said,
        "Left, r over the penalty, on rows that were fitted and on others; right, fitted over true weights",
    )


# ------------------------------------------------------------------ rank
EXAMPLES = (40, 100, 400)  # that the adapter is fitted on
RANKS = (1, 2, 4, 8, 16, 32)
WIDTH, N_OTHERS = 32, 1000


def simulate_change(seed: int = 0):
    """Inputs, the change that a matrix should make, of halving singular values, and noisy errors of the frozen matrix."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0] for _ in range(2))
    change = left * 2.0 ** -np.arange(WIDTH) @ right
    inputs = rng.normal(size=(EXAMPLES[-1] + N_OTHERS, WIDTH))
    clean = inputs @ change
    return inputs, change, clean + rng.normal(0, 2 * clean.std(), clean.shape)


def fit_rank(examples: int, rank: int) -> dict:
    """The best product of two matrices of this rank, for every rank; how far it explains what it has not seen."""
    inputs, change, error = simulate_change()
    full = np.linalg.lstsq(inputs[:examples], error[:examples], rcond=None)[0]
    _, _, directions = np.linalg.svd(inputs[:examples] @ full, full_matrices=False)
    products = {r: full @ directions[:r].T @ directions[:r] for r in RANKS}
    others = inputs[EXAMPLES[-1] :]

    def score(product):
        return np.corrcoef((others @ product).ravel(), (others @ change).ravel())[0, 1]

    curve = [score(product) for product in products.values()]
    found = np.linalg.svd(products[rank], compute_uv=False)
    return {
        "curve": curve,
        "found": found,
        "true": np.linalg.svd(change, compute_uv=False),
        "r": curve[RANKS.index(rank)],
    }


def draw_rank(figure, fitted, examples, rank):
    """The score over the rank, and the singular values of the change that was fitted beside the true ones."""
    left, right = figure.subplots(1, 2)
    left.plot(RANKS, fitted["curve"], "o-", color="C0")
    left.axvline(rank, color="C1", linestyle=":")
    left.set_xscale("log", base=2)
    left.set(xlabel="rank", ylabel="r with the right change", ylim=(0, 1.05), xticks=RANKS)
    left.set_xticklabels(RANKS)
    order = np.arange(1, WIDTH + 1)
    right.plot(order, fitted["true"], "o-", color="0.5", markersize=3, label="true change")
    right.plot(order, fitted["found"], "o-", color="C0", markersize=3, label="fitted")
    right.set(xlabel="singular value", ylabel="size")
    right.legend(frameon=False)


def say_rank(fitted, examples, rank):
    said = f"{examples} examples, rank {rank} ({2 * WIDTH * rank} weights): r = {fitted['r']:.2f}"
    return said, (
        "Left, r with the right change over the rank; right, singular values of the true and of the fitted change"
    )


VIEWS = (
    View(
        "delays",
        (
            Slider("The response is highest after (s)", PEAKS, 5),
            Slider("Number of delays", COUNTS, 4),
        ),
        fit_delays,
        draw_delays,
        say_delays,
    ),
    View(
        "penalty",
        (Slider("TRs to fit on", ROWS, 200), Slider("Penalty", PENALTIES, 100)),
        fit_penalty,
        draw_penalty,
        say_penalty,
    ),
    View(
        "rank",
        (Slider("Examples to fit on", EXAMPLES, 100), Slider("Rank", RANKS, 2)),
        fit_rank,
        draw_rank,
        say_rank,
    ),
)


def values(static: Path) -> dict[str, str]:
    """Draw all; what the primers name as @@NAME@@."""
    named = {"DELAYS_TRS": str(N_TRAIN), "PENALTY_FEATURES": str(N_FEATURES)}
    for view in VIEWS:
        named |= view.values(static)
    return named
