"""A tiny recipe, and runs with it, for the tests of tuning."""

import torch

from brainlib.recipes import Recipe
from brainlib.speech import SpeechEncoder
from brainlib.tuning import BrainTuner

TINY = Recipe(
    name="tiny",
    window=6.0,
    hop=4.0,
    trs_per_step=5,
    rank=4,
    alpha=8.0,
    lr=1e-2,
    lr_readout=1e-2,
    stages=(("all", 3),),
)


def encoder(folder):
    return SpeechEncoder.from_pretrained(str(folder), device="cpu")


def tuned(model, data, recipe=TINY, subjects="UTS01", **options):
    tuner = BrainTuner(encoder(model), recipe)
    return tuner.fit(data, subjects, quiet=True, **options)


def weights(tuner):
    """A copy of the model's and the read-outs' tensors, by name."""
    state = {k: v.clone() for k, v in tuner.encoder.model.state_dict().items()}
    return state | {f"r.{k}": v.clone() for k, v in tuner.readouts.state_dict().items()}


def changed(before, after):
    """Names of the tensors that differ."""
    return {k for k in after if not torch.equal(before[k], after[k])}
