"""Hidden states of a speech model over a story: the field's exact protocol, plain and optimised, against windows by the hop.

    python benchmarks/features.py [speed] [scores] [padding] [steps] [--stories 8] [--subject SIM01] [--exact]

speed    Seconds for the same minute of sound: plain (stock model, one window per call, all layers), `exact`, and hops.
scores   What window and hop do to encoding, for both embedded models: scores on the validation stories, by layer and by what
         drives a voxel, with features of each setting. The default window and hop are chosen by it. `--exact` adds the
         field's protocol for wavlm-pico (hours).
padding  Whisper's windows as they are and padded with silence to 30 s: the same scores, by layer.
steps    One training step of LoRA with the convolutional features computed anew and kept (`ConvolutionalCache`), by clip.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time

import numpy as np
import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoFeatureExtractor, AutoModel, WavLMConfig

from brainlib import datasets, evaluation
from brainlib.scores import FLOOR
from brainlib.speech import (
    ASSETS,
    DEFAULT_HOP,
    DEFAULT_WINDOW,
    EMBEDDED,
    RATE,
    ConvolutionalCache,
    SpeechEncoder,
)

WINDOWS = [(w, h) for w in (16.0, 8.0) for h in (1.0, 2.0, 4.0, 8.0)]  # seconds: window, hop
WINDOWS += [(30.0, 4.0), (10.0, 8.0)]
WINDOWS = {f"window {w:g}, hop {h:g}": {"window": w, "hop": h} for w, h in WINDOWS}
CHOICES = {label: setting for label, setting in WINDOWS.items() if setting["hop"] > 1}
EXACT = {"exact": {"exact": True}}


def plain(model, extract, audio, *, window=16.1, stride=0.1):
    """{layer: (n, width)}: windows of 16.1 s every 0.1 s, one per call, last frame kept."""
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


def timed(compute):
    """-> seconds, what `compute` returns."""
    start = time.perf_counter()
    result = compute()
    return time.perf_counter() - start, result


def speed(encoder, ds, *, seconds=60):
    """Table: seconds, factor, and largest difference to the plain protocol."""
    folder = ASSETS / "wavlm-pico"
    stock = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    extract = AutoFeatureExtractor.from_pretrained(folder)
    audio = ds.story(ds.split["test"][0]).audio[: seconds * RATE]
    encoder.features(audio[: 4 * RATE], cache=False)  # warm
    plain_seconds, expected = timed(lambda: plain(stock, extract, audio))
    rows = [("plain", plain_seconds, 0.0)]
    for label, settings in (EXACT | WINDOWS).items():
        spent, (states, _) = timed(
            lambda settings=settings: encoder.features(audio, cache=False, **settings)
        )
        difference = np.nan
        if label == "exact":
            difference = max(np.abs(states[k] - expected[k]).max() for k in expected)
        rows.append((label, spent, difference))
    table = pd.DataFrame(rows, columns=["method", "seconds", "largest difference"])
    return table.assign(**{"times faster": plain_seconds / table.seconds})


def scores(model, ds, subject, *, n_stories, exact):
    """Scores on validation stories by setting, with noisy and with noise-free responses; printed as they come."""
    encoder = SpeechEncoder.from_pretrained(model, "cpu")
    tables = {}
    for label, options in ((EXACT if exact else {}) | CHOICES).items():
        tables[label] = validation_scores(encoder, ds, subject, n_stories=n_stories, **options)
        print("scored", model, label, flush=True)
    return pd.concat(tables, names=["setting"], sort=False)


def validation_scores(encoder, ds, subject, *, n_stories=None, **options):
    """Normalised scores on the validation stories, all levels and layers: columns responses, layer, region, normalised."""
    tables = {}
    for kind in ("noisy", "noise-free"):
        tables[kind] = evaluation.evaluate(
            encoder,
            ds,
            subjects=subject,
            voxels=f"ceiling > {FLOOR}",
            train=ds.split["train"][:n_stories],
            on="val",
            noise_free=kind == "noise-free",
            **options,
        )
    table = pd.concat(tables, names=["responses"]).reset_index("responses")
    driven = table.region.str.endswith(" voxels")  # all voxels, and those of each level
    return table[driven]


def by_setting(table, columns):
    """Mean score by setting, over what `columns` leaves out."""
    means = table.pivot_table(
        index=["responses", "setting"], columns=columns, values="normalised", sort=False
    )
    return means.round(3).to_string() + "\n"


def padding(ds, subject):
    """Table: Whisper by layer, its windows as they are and padded to 30 s, on all training stories."""
    tables = {}
    for padded in (False, True):
        encoder = SpeechEncoder.from_pretrained("whisper-tiny.en", "cpu", padded=padded)
        label = "padded to 30 s" if padded else "as they are"
        tables[label] = validation_scores(encoder, ds, subject)
    table = pd.concat(tables, names=["windows"])
    index = ["responses", "layer", "windows"]
    return table.pivot_table(index=index, columns="region", values="normalised", sort=False)


def base_sized():
    """An encoder as large as WavLM-base-plus; random weights cost the same."""
    with tempfile.TemporaryDirectory() as folder:
        WavLMConfig().save_pretrained(folder)
        return SpeechEncoder.from_pretrained(folder, device="cpu", random_weights=True)


def steps(pico, ds):
    """Table: seconds of a LoRA training step per second of speech, convolutional features computed anew and kept."""
    audio, rows = torch.from_numpy(ds.story(ds.split["train"][0]).audio), []
    for name, encoder, seconds, clips in (
        ("wavlm-pico", pico, 120, (5, 10, 20, 30)),
        ("base-sized", base_sized(), 20, (5, 10, 20)),
    ):
        config = LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj"])
        get_peft_model(encoder.model, config)
        for clip in clips:
            starts = range(0, seconds * RATE, clip * RATE)
            anew, kept = (
                step_seconds(ConvolutionalCache(encoder, max_gb), audio, starts, clip * RATE)
                for max_gb in (0, 4)
            )
            rows.append((name, clip, anew / seconds, kept / seconds, anew / kept))
    columns = ["model", "clip (s)", "computed anew (s)", "kept (s)", "times faster"]
    return pd.DataFrame(rows, columns=columns)


def step_seconds(cache, audio, starts, n_samples, *, repeats=4):
    """Seconds of forward and backward over the clips, two at a time, after the cache has been filled."""
    encoder = cache.encoder
    last = encoder.layers - 1

    def epoch():
        for i in range(0, len(starts), 2):
            features = cache("story", audio, starts=starts[i : i + 2], n_samples=n_samples)
            encoder.transformer_states(features, [last])[last].square().mean().backward()

    epoch()  # to warm up and to fill
    return timed(lambda: [epoch() for _ in range(repeats)])[0] / repeats


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=["speed", "scores", "padding", "steps"])
    parser.add_argument("--stories", type=int, default=8)
    parser.add_argument("--subject", default="SIM01")
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    ds = datasets.load("fireside")
    encoder = SpeechEncoder.from_pretrained("wavlm-pico", device="cpu")
    print(f"simulated subjects; default window {DEFAULT_WINDOW:g} s, hop {DEFAULT_HOP:g} s")
    pd.set_option("display.width", 200, "display.precision", 4)
    if "speed" in arguments.parts:
        print(speed(encoder, ds).to_string(index=False), flush=True)
    if "scores" in arguments.parts:
        for model in EMBEDDED:
            exact = arguments.exact and model == "wavlm-pico"
            options = {"n_stories": arguments.stories, "exact": exact}
            table = scores(model, ds, arguments.subject, **options)
            print(model, by_setting(table, "region"), by_setting(table, "layer"), sep="\n")
    if "padding" in arguments.parts:
        print(padding(ds, arguments.subject).round(3).to_string(), flush=True)
    if "steps" in arguments.parts:
        print(steps(encoder, ds).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
