"""The figure with two sliders of the primer on fMRI: how many delays a voxel needs whose response comes early or late.

Every state is computed and drawn when the book is built; the page shows one, and asks for another when a slider moves.
"""

from __future__ import annotations

import html
import json
from pathlib import Path

import numpy as np
from scipy.stats import gamma

from brainlib import timing

TR = 2.0  # s
PEAKS = (3, 5, 7, 9)  # s after an event
COUNTS = (1, 2, 3, 4, 6, 8)  # delays: the first n TRs
SHOWN = (5, 4)  # where the sliders stand first
N_TRAIN, N_TEST, N_REPEATS = 300, 100, 5


def hrf(seconds, peak: float):
    """A gamma density that is highest `peak` seconds after an event, with sum 1 over TRs."""
    shape = 6
    values = gamma.pdf(seconds, shape, scale=peak / (shape - 1))
    return TR * values


def simulate(peak: float, seed: int = 0):
    """Events and noisy responses of a voxel, the mean of some repeats; both of shape (n_trs,)."""
    rng = np.random.default_rng(seed)
    events = (rng.random(N_TRAIN + N_TEST) < 0.3).astype(float)
    signal = np.convolve(events, hrf(TR * np.arange(20), peak))[: len(events)]
    noise = rng.normal(0, 1.5 * signal.std(), (N_REPEATS, len(events)))
    return events, signal + noise.mean(0)


def fit(peak: float, count: int) -> dict:
    """Least squares on the first `count` delays: weights, and the prediction of rows that were left out."""
    events, response = simulate(peak)
    delayed = timing.fir(events[:, None], delays=range(1, count + 1))  # (n_trs, count)
    train, test = slice(0, N_TRAIN), slice(N_TRAIN, None)
    means = delayed[train].mean(0), response[train].mean()
    weights = np.linalg.lstsq(delayed[train] - means[0], response[train] - means[1], rcond=None)[0]
    predicted = (delayed[test] - means[0]) @ weights + means[1]
    r = np.corrcoef(predicted, response[test])[0, 1]
    return {"weights": weights, "predicted": predicted, "response": response[test], "r": r}


def draw(peak: float, count: int, path: Path) -> float:
    """Weights over the response to one event, and the prediction over what was measured, as an SVG; its r."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    fitted = fit(peak, count)
    figure = Figure(figsize=(9, 2.8), layout="constrained")
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
    FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
    return fitted["r"]


def state(peak: float, count: int, folder: Path) -> dict:
    """The picture of one position of the sliders, and what it shows in words."""
    name = f"peak{peak}-delays{count}.svg"
    r = draw(peak, count, folder / name)
    reach = f"a delay of {TR:g} s" if count == 1 else f"delays of {TR:g} to {TR * count:g} s"
    said = f"Simulated voxel, highest {peak} s after an event; {reach}: held-out r = {r:.2f}"
    alt = f"{said}. Left, the fitted weights over the response to one event; right, measured and predicted rows"
    return {"src": f"../_static/delays/{name}", "said": said, "alt": alt, "r": r}


def slider(label: str, values, shown) -> str:
    """A labelled slider over a list of values."""
    listed = html.escape(json.dumps([f"{value}" for value in values]))
    return (
        f'<label>{label} <input type="range" min="0" max="{len(values) - 1}" '
        f'value="{values.index(shown)}" data-values="{listed}" aria-valuetext="{shown}"></label>'
    )


def values(static: Path) -> dict[str, str]:
    """Draw every state into the site's static files; what the primer names as @@NAME@@."""
    folder = static / "delays"
    folder.mkdir(parents=True, exist_ok=True)
    states = {f"{p}-{n}": state(p, n, folder) for p in PEAKS for n in COUNTS}
    first = states["{}-{}".format(*SHOWN)]
    view = (
        f'<figure class="choices" data-states="{html.escape(json.dumps(states))}">'
        + slider("The response is highest after (s)", PEAKS, SHOWN[0])
        + slider("Number of delays", COUNTS, SHOWN[1])
        + f'<img src="{first["src"]}" alt="{html.escape(first["alt"])}">'
        + f'<figcaption aria-live="polite">{html.escape(first["said"])}</figcaption></figure>'
    )
    numbers = {f"DELAYS_{key.replace('-', '_')}": f"{x['r']:.2f}" for key, x in states.items()}
    return {"DELAYS_VIEW": view, "DELAYS_TRS": str(N_TRAIN)} | numbers
