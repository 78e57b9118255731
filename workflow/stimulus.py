"""The control without a brain: the model is tuned on the sound of the same stories alone.

Spans of its convolutional features are masked, and it must give there the states that the untuned model gives to the
unmasked sound, as in data2vec (Baevski et al. 2022), whose teacher however moves along. Adapters, windows, rate, epochs
and the number of steps are those of the recipe; precision is single.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import layer_norm, mse_loss

from brainlib.network import StoryFeatures
from brainlib.runtime import seed_everything
from brainlib.speech import ConvolutionalCache
from brainlib.training import schedule_factor
from brainlib.tuning import n_steps

MASKED = 0.5  # of the frames, in the mean
SPAN = 10  # frames, 0.2 s


def tune(tuner, ds, stories):
    """Tune the adapters of a `BrainTuner`; its history then holds the loss of each epoch, by training and validation stories."""
    recipe, encoder = tuner.recipe, tuner.encoder
    if tuner.adapted is None or isinstance(stories, dict):
        raise ValueError(
            f"masked sound tunes adapters on stories of nobody; found adapter: {recipe.adapter} and "
            f"stories {'dealt out' if isinstance(stories, dict) else 'of all'}"
        )
    seed_everything(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    cache = ConvolutionalCache(encoder)
    batches = {
        s: batches_of(encoder, recipe, ds.story(s), cache) for s in [*stories, *ds.split["val"]]
    }
    steps = [batch for story in stories for batch in batches[story]]
    held_out = [batch for story in ds.split["val"] for batch in batches[story]]
    n_trs = [len(ds.story(story).tr_times) for story in stories]
    n_per_epoch = min(len(steps), sum(n_steps(n, recipe.trs_per_step) for n in n_trs))
    dropouts = [m for name, m in encoder.model.named_modules() if "lora_dropout" in name]
    trained = [p for p in encoder.model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, lr=recipe.lr, weight_decay=recipe.weight_decay)
    total = recipe.epochs * n_per_epoch
    factor = torch.optim.lr_scheduler.LambdaLR(
        adam, lambda step: schedule_factor(recipe, step, n_steps=total)
    )
    for epoch in range(recipe.epochs + 1):
        losses = []
        for module in dropouts:  # those of the model itself stay off, as in the recipe
            module.train()
        for number in rng.permutation(len(steps))[:n_per_epoch] if epoch else ():
            loss = masked_loss(tuner, *steps[number], rng)
            if not torch.isfinite(loss):
                raise ValueError(
                    f"masked sound: loss {loss.item()} in epoch {epoch}; lower the rate"
                )
            adam.zero_grad()
            loss.backward()
            if recipe.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained, recipe.clip_norm)
            adam.step()
            factor.step()
            losses.append(loss.item())
        encoder.model.eval()
        same = np.random.default_rng(0)  # the same masks in every epoch
        with torch.no_grad():
            others = [masked_loss(tuner, *batch, same).item() for batch in held_out]
        entry = {"epoch": epoch, "loss": float(np.mean(losses)) if losses else None}
        tuner.history.append(entry | {"validation_loss": float(np.mean(others))})
    encoder.model.requires_grad_(False)
    tuner.kept_epoch = recipe.epochs


def batches_of(encoder, recipe, story, cache) -> list:
    """Per batch of windows of one length: what `cache` wants to know to give their convolutional features."""
    features = StoryFeatures(encoder, recipe, story, cache)
    batches = features.batches(0, features.weights.shape[1])
    return [(features, [c.start for c in batch], batch[0].n_samples) for batch in batches]


def masked_loss(tuner, features, starts, n_samples, rng):
    """Mean squared error of the normalised states at masked frames, to those of the untuned model without a mask."""
    encoder, layer = tuner.encoder, features.layer
    convolved = features.cache(features.name, features.audio, starts=starts, n_samples=n_samples)
    with torch.no_grad(), tuner.adapted.disable_adapter():
        untuned = encoder.transformer_states(convolved, [layer])[layer]
    mask = torch.from_numpy(spans(rng, convolved.shape[:2])).to(convolved.device)
    states = encoder.transformer_states(convolved.masked_fill(mask[..., None], 0.0), [layer])[layer]
    width = states.shape[-1:]
    return mse_loss(layer_norm(states, width)[mask], layer_norm(untuned, width)[mask])


def spans(rng, shape) -> np.ndarray:
    """Which frames are masked, (n_clips, n_frames): spans from random starts, MASKED of all in the mean."""
    starts = rng.random(shape) < 1 - (1 - MASKED) ** (1 / SPAN)
    reach = np.cumsum(starts, axis=1)
    before = np.pad(reach, ((0, 0), (SPAN, 0)))[:, : shape[1]]
    return reach > before
