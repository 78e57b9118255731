"""A training epoch of brain-tuning: the field's way against ours, same model, same stories, one run.

    python benchmarks/tuning.py [--stories 4] [--epochs 2]

Field's way: one clip of ten seconds per TR, convolutions computed anew, stock attention, whole model, mean of the last
hidden state, a linear read-out, MSE (the published setting of Brain-tuning). Ours: clips of ten seconds every eight, convolutional features
kept, no block above the layer that is read, the recipe `crossfit-quick`. Both see every TR of the tuning stories once an
epoch; seconds and memory are of the training steps, and for ours with its ridge and validation score besides. Both are then
evaluated alike: features anew, ridge refitted, mean correlation on the validation stories over the tuned voxels.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time

import numpy as np
import torch
from ridge import Peak
from transformers import AutoModel

from brainlib import datasets, evaluation
from brainlib.recipes import RECIPES
from brainlib.speech import ASSETS, RATE, SpeechEncoder, features_at_trs
from brainlib.tuning import BrainTuner


def settled() -> Peak:
    """A memory watch that begins after what was freed before has gone back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return Peak()


def fields_way(ds, subject, stories, voxels, epochs, batch=16):
    """-> the stock model, trained; Adam 5e-5 and 1e-4, clips in story order."""
    torch.manual_seed(0)
    model = AutoModel.from_pretrained(ASSETS / "wavlm-pico", dtype=torch.float32)
    model.feature_extractor._freeze_parameters()
    head = torch.nn.Linear(model.config.hidden_size, len(voxels))
    groups = [
        {"params": [p for p in model.parameters() if p.requires_grad], "lr": 5e-5},
        {"params": head.parameters(), "lr": 1e-4},
    ]
    optimizer = torch.optim.Adam(groups)
    for _ in range(epochs):
        for name in stories:
            story, y = ds.story(name), torch.from_numpy(ds.responses(subject, name)[:, voxels])
            ends = np.round((story.tr_times + 1) * RATE).astype(int)
            keep = np.flatnonzero((ends >= 10 * RATE) & (ends <= len(story.audio)))
            for rows in np.array_split(keep, max(len(keep) // batch, 1)):
                clips = torch.from_numpy(
                    np.stack([story.audio[ends[i] - 10 * RATE : ends[i]] for i in rows])
                )
                clips = (clips - clips.mean(1, keepdim=True)) / (
                    clips.var(1, unbiased=False, keepdim=True) + 1e-7
                ).sqrt()
                loss = (head(model(clips).last_hidden_state.mean(1)) - y[rows]).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stories", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--subject", default="SIM01")
    options = parser.parse_args()
    ds, recipe = (
        datasets.load("fireside"),
        RECIPES["crossfit-quick"].with_(stages=(("all", options.epochs),)),
    )
    stories = ds.split["train"][: options.stories]
    hours = sum(ds.story(s).duration for s in stories) / 3600 * options.epochs
    voxels = evaluation.pick_voxels(ds, options.subject, rule=recipe.voxels)[::4]
    print(
        f"simulated subject {options.subject}, {len(stories)} stories, {options.epochs} epochs, {len(voxels)} voxels"
    )
    read = [*ds.split["train"], *ds.split["val"]]
    responses = {story: ds.responses(options.subject, story, voxels=voxels) for story in read}

    def score(encoder):
        last, states = encoder.layers - 1, {}
        for story in responses:
            sizes = {"window": 10, "hop": 8, "cache": False}
            states[story] = features_at_trs(encoder, ds.story(story), [last], **sizes)[last]
        ridge = evaluation.fresh_ridge(states, responses, stories=ds.split["train"])
        pairs = ([part[story] for story in ds.split["val"]] for part in (states, responses))
        return f"mean r {ridge.score(*pairs).mean():.4f}"

    print("pretrained", score(SpeechEncoder.from_pretrained("wavlm-pico")), flush=True)
    with settled() as memory:
        start = time.perf_counter()
        trained = fields_way(ds, options.subject, stories, voxels, options.epochs)
        spent = time.perf_counter() - start
    plain = SpeechEncoder.from_pretrained("wavlm-pico")
    plain.model.load_state_dict(trained.state_dict())
    print(
        f"field's way: {spent / hours:.0f} s an hour of speech and epoch, {memory.peak:.0f} MB; {score(plain)}",
        flush=True,
    )
    encoder = SpeechEncoder.from_pretrained("wavlm-pico")
    with settled() as memory:
        start = time.perf_counter()
        BrainTuner(encoder, recipe).fit(
            ds, options.subject, voxels=voxels, stories=stories, quiet=True
        )
        ours = time.perf_counter() - start
    print(
        f"ours: {ours / hours:.0f} s an hour of speech and epoch, {memory.peak:.0f} MB; {score(encoder)}; {spent / ours:.1f} times faster"
    )
