"""Hidden states of a speech model over a story: the field's exact protocol, plainly and cleverly, against windows by the hop.

    python benchmarks/features.py [speed] [scores] [steps] [--stories 8] [--subject SIM01]

speed   Seconds for the same minute of sound: plain (stock model, one window a call, all layers), `exact`, and hops.
scores  What a hop costs in encoding: test-story correlation a region with features of each setting, as a share of
        the score with `exact` features, all layers; training on a few stories, each setting on the same ones.
steps   One training step of LoRA with the convolutional front computed anew and kept (`Fronts`), by length of window.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoFeatureExtractor, AutoModel, WavLMConfig

from brainlib import datasets, encoding, timing
from brainlib.speech import ASSETS, DEFAULT_HOP, DEFAULT_WINDOW, RATE, Fronts, SpeechEncoder

SETTINGS = [(w, h) for w in (16.0, 8.0) for h in (1.0, 2.0, 4.0, 8.0) if h <= w]


def plain(model, extract, audio, window=16.1, stride=0.1):
    """{layer: (n, width)}: windows of 16.1 s every 0.1 s, one a call, last frame kept."""
    rows = []
    for k in range(1, int(len(audio) / RATE / stride + 1e-6) + 1):
        end = round(k * stride * RATE)
        clip = audio[max(0, end - round(window * RATE)) : end]
        with torch.inference_mode():
            out = model(
                extract(clip, sampling_rate=RATE, return_tensors="pt").input_values,
                output_hidden_states=True,
            )
        rows.append([h[0, -1].numpy() for h in out.hidden_states])
    return dict(enumerate(np.array(rows).transpose(1, 0, 2)))


def speed(encoder, ds, seconds=60):
    """Table: seconds, factor, and largest difference to the plain protocol."""
    folder = ASSETS / "wavlm-pico"
    stock, extract = (
        AutoModel.from_pretrained(folder, dtype=torch.float32).eval(),
        AutoFeatureExtractor.from_pretrained(folder),
    )
    audio = ds.story(ds.split["test"][0]).audio[: seconds * RATE]
    encoder.features(audio[: 4 * RATE], cache=False)  # warm
    start = time.perf_counter()
    wanted = plain(stock, extract, audio)
    rows, base = [], time.perf_counter() - start
    rows.append(
        {"method": "plain", "seconds": base, "times faster": 1.0, "largest difference": 0.0}
    )
    for label, options in [("exact", {"exact": True})] + [
        (f"window {w:g}, hop {h:g}", {"window": w, "hop": h}) for w, h in SETTINGS
    ]:
        start = time.perf_counter()
        states, _ = encoder.features(audio, cache=False, **options)
        spent = time.perf_counter() - start
        apart = (
            max(np.abs(states[k] - wanted[k]).max() for k in wanted) if label == "exact" else np.nan
        )
        rows.append(
            {
                "method": label,
                "seconds": spent,
                "times faster": base / spent,
                "largest difference": apart,
            }
        )
    return pd.DataFrame(rows)


def at_trs(encoder, story, **options):
    """(n_trs, width) a layer."""
    states, times = encoder.features(story.audio, **options)
    return {k: timing.downsample(x, times, story.tr_times) for k, x in states.items()}


def scores(encoder, ds, subject, n_stories):
    """Table: mean score a region over layers, a setting, as a share of `exact`."""
    train, test = ds.split["train"][:n_stories], ds.split["test"]
    regions = {k: np.flatnonzero(v) for k, v in ds.rois(subject).items()}
    voxels = np.unique(np.concatenate(list(regions.values())))
    data = {s: ds.responses(subject, s)[:, voxels] for s in train + test}
    rows = []
    for label, options in [("exact", {"exact": True})] + [
        (f"window {w:g}, hop {h:g}", {"window": w, "hop": h}) for w, h in SETTINGS
    ]:
        layers = {s: at_trs(encoder, ds.story(s), **options) for s in data}
        for layer in range(encoder.layers):
            model = encoding.RidgeEncoder().fit(
                [layers[s][layer] for s in train], [data[s] for s in train]
            )
            r = model.score([layers[s][layer] for s in test], [data[s] for s in test])
            rows += [
                {"setting": label, "layer": layer, "region": k, "r": r[np.isin(voxels, v)].mean()}
                for k, v in regions.items()
            ]
        print("scored", label, flush=True)
    table = pd.DataFrame(rows).pivot_table(
        index="setting", columns="region", values="r", sort=False
    )
    table["mean"] = table.mean(axis=1)
    share = table / table.loc["exact"]
    return table, share


def steps(pico, ds):
    """Table: seconds of one LoRA training step over some speech, front computed anew and kept."""
    with (
        tempfile.TemporaryDirectory() as folder
    ):  # as large as WavLM-base-plus; random weights cost the same
        WavLMConfig().save_pretrained(folder)
        base = SpeechEncoder.from_pretrained(folder, device="cpu", random_weights=True)
    audio, rows = torch.from_numpy(ds.story(ds.split["train"][0]).audio), []
    for name, encoder, seconds, windows in (
        ("wavlm-pico", pico, 120, (5, 10, 20, 30)),
        ("base-sized", base, 20, (5, 10, 20)),
    ):
        get_peft_model(
            encoder.model, LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj"])
        )
        for window in windows:
            starts = range(0, seconds * RATE, window * RATE)
            anew, kept = (
                step_seconds(encoder, Fronts(encoder, max_gb=room), audio, starts, window * RATE)
                for room in (0, 4)
            )
            rows.append(
                {
                    "model": name,
                    "window (s)": window,
                    "front anew (s)": anew / seconds,
                    "front kept (s)": kept / seconds,
                }
            )
    table = pd.DataFrame(rows).assign(
        **{"times faster": lambda t: t["front anew (s)"] / t["front kept (s)"]}
    )
    return table.rename(
        columns=lambda c: c.replace("(s)", "(s a second of speech)") if c.startswith("front") else c
    )


def step_seconds(encoder, fronts, audio, starts, length, repeats=4):
    """Seconds of forward and backward over the clips, two at a time, after the fronts have been asked for once."""
    parts = [list(starts[i : i + 2]) for i in range(0, len(starts), 2)]
    for turn in range(repeats + 1):
        if turn == 1:  # the first was to warm up and to fill
            start = time.perf_counter()
        for part in parts:
            front = fronts("story", audio, part, length)
            encoder.transform(front)[encoder.layers - 1].square().mean().backward()
    return (time.perf_counter() - start) / repeats


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["speed", "scores", "steps"])
    parser.add_argument("--stories", type=int, default=8)
    parser.add_argument("--subject", default="SIM01")
    given = parser.parse_args()
    ds, encoder = (
        datasets.load("fireside"),
        SpeechEncoder.from_pretrained("wavlm-pico", device="cpu"),
    )
    print(f"simulated listeners; default window {DEFAULT_WINDOW:g} s, hop {DEFAULT_HOP:g} s")
    pd.set_option("display.width", 200, "display.precision", 4)
    if "speed" in given.parts:
        print(speed(encoder, ds).to_string(index=False), flush=True)
    if "scores" in given.parts:
        table, share = scores(encoder, ds, given.subject, given.stories)
        print(table.to_string(), "\n\nshare of exact\n", share.to_string(), sep="", flush=True)
    if "steps" in given.parts:
        print(steps(encoder, ds).to_string(index=False), flush=True)
