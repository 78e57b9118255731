"""Three published recipes of brain-tuning, said in one vocabulary, and their losses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace

POOLINGS, RESAMPLINGS = ("frames", "first", "last", "mean"), ("lanczos", "clip")
ADAPTERS, READOUTS, LOSSES = (
    ("lora", "full", "none"),
    ("linear", "lowrank", "ridge"),
    ("spatial", "temporal", "mse"),
)


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a brain-tuning run but the data and the model; `with_` gives a changed copy.

    Attributes
    ----------
    name : str
    window, hop : float
        Seconds of sound a clip holds, and between the ends of two clips.
    pooling : {"frames", "first", "last", "mean"}
        What a clip gives: the frames of its last `hop` seconds in bins of 0.1 s, or one vector: its first or last
        frame, or the mean of all.
    resampling : {"lanczos", "clip"}
        Resample the vectors to TRs, or take for each TR the clip that ends where the TR ends.
    layer : int
        Hidden state to tap; negative counts from the last.
    delays : tuple of int
        FIR delays in TRs, given to the read-out; (0,) where the clip itself holds the history.
    adapter : {"lora", "full", "none"}
        Low-rank adapters, or the whole transformer (the convolutional front is always frozen), or the read-out alone.
    rank, alpha, dropout, targets
        Of LoRA (Hu et al. 2022): update ``alpha / rank * B A``.
    readout : {"linear", "lowrank", "ridge"}
        Features to voxels: one matrix; two with `bottleneck` between; or ridge in closed form, fitted anew at the start
        of every epoch and never trained.
    warm_start : bool
        Begin a trained read-out at the ridge solution instead of at random.
    cross_fit : int
        Folds of stories for a "ridge" read-out: each story is tuned against a read-out fitted on the other folds, so that
        the model is not taught the noise that the read-out has learnt by heart. 0: one read-out, fitted on all.
    ridge_scale : float
        Factor on the cross-validated penalty of a "ridge" or warm-started read-out.
    loss : {"spatial", "temporal", "mse"}
        See `spatial_loss`, `temporal_loss`, `mse_loss`.
    l2 : float
        Weight of the sum of squares of all trained parameters.
    stages : tuple of (str, int)
        ("readout", n) trains the read-out alone for n epochs, ("all", n) everything.
    lr, lr_readout : float
        Of the speech model and of the read-out; Adam.
    schedule : {"constant", "linear"}
        "linear": up over the first `warmup` share of the "all" steps, then down to zero.
    clip_norm : float
        Gradients are scaled down to this norm; 0 leaves them.
    patience : int
        Epochs without a better validation score before it stops; 0 never stops early. The best epoch is kept.
    trs_per_step : int
        TRs a gradient step. What the backward pass needs stays in memory: half a GB a clip of 10 s for a base-sized model.
    voxels : str
        "all", a name in ``ds.rois``, or "ceiling > 0.4" (and the like).
    backbone_dropout : bool
        The pretrained model's own dropout while training.
    seed : int
    """

    name: str
    window: float
    hop: float
    pooling: str = "frames"
    resampling: str = "lanczos"
    layer: int = -1
    delays: tuple = (1, 2, 3, 4)
    adapter: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple = ("q_proj", "k_proj", "v_proj")
    readout: str = "linear"
    bottleneck: int = 100
    warm_start: bool = False
    cross_fit: int = 0
    ridge_scale: float = 1.0
    loss: str = "mse"
    l2: float = 0.0
    stages: tuple = (("all", 10),)
    lr: float = 1e-4
    lr_readout: float = 1e-4
    schedule: str = "constant"
    warmup: float = 0.0
    clip_norm: float = 1.0
    patience: int = 0
    trs_per_step: int = 50
    voxels: str = "all"
    backbone_dropout: bool = False
    seed: int = 0

    def __post_init__(self):
        for field in fields(self):  # JSON has no tuples; 6 and 6.0 are one recipe
            value = getattr(self, field.name)
            object.__setattr__(
                self, field.name, float(value) if field.type == "float" else _frozen(value)
            )
        for name, known in (
            ("pooling", POOLINGS),
            ("resampling", RESAMPLINGS),
            ("adapter", ADAPTERS),
            ("readout", READOUTS),
            ("loss", LOSSES),
            ("schedule", ("constant", "linear")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"recipe {self.name!r}: {name} is {getattr(self, name)!r}; expected one of {known}"
                )
        if not self.stages or any(
            what not in ("readout", "all") or n < 1 for what, n in self.stages
        ):
            raise ValueError(
                f"recipe {self.name!r}: stages {self.stages}; expected pairs of 'readout' or 'all' and a number of epochs"
            )
        if self.cross_fit == 1 or self.cross_fit < 0:
            raise ValueError(
                f"recipe {self.name!r}: cross_fit {self.cross_fit}; expected 0 (off) or at least 2 folds"
            )
        if (
            not 0 < self.hop <= self.window
            or self.trs_per_step < 2
            or (self.resampling == "clip" and self.pooling == "frames")
        ):
            raise ValueError(
                f"recipe {self.name!r}: expected 0 < hop <= window, trs_per_step >= 2, and one vector a clip where resampling is 'clip'"
            )

    @property
    def epochs(self) -> int:
        """Of all stages together."""
        return sum(n for _, n in self.stages)

    def stage(self, epoch: int) -> str:
        """ "readout" or "all": what is trained in this epoch, counted from 0."""
        for what, n in self.stages:
            if epoch < n:
                return what
            epoch -= n
        return self.stages[-1][0]

    def with_(self, **changes) -> Recipe:
        """A copy with some values changed; a misspelt name is an error."""
        return replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Recipe from `to_json`; ValueError for unknown or missing names."""
        given = json.loads(text)
        unknown = sorted(set(given) - {f.name for f in fields(cls)})
        if unknown or not {"name", "window", "hop"} <= set(given):
            raise ValueError(
                f"not a recipe of this version: unknown {unknown}; 'name', 'window' and 'hop' are needed"
            )
        return cls(**given)

    def hash(self) -> str:
        """Twelve hex digits; the name counts for nothing."""
        return hashlib.sha256(self.with_(name="").to_json().encode()).hexdigest()[:12]


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


# ------------------------------------------------------------------ the papers
_BRAINWAVLM = Recipe(  # Vattikonda et al. 2025; "code": fine-tuning scripts that a co-author published with later work
    name="brainwavlm",
    window=2.0,  # the paper's, as the later work reports it (which took 4 s)
    hop=0.25,
    pooling="first",  # code
    resampling="lanczos",
    delays=(1, 2, 3, 4),  # code; inside the graph
    layer=9,  # code, and the later work
    adapter="lora",
    targets=("q_proj", "k_proj", "v_proj"),  # paper
    rank=4,
    alpha=4.0,
    dropout=0.1,  # code
    readout="lowrank",
    bottleneck=100,  # low rank: paper; size: code
    loss="spatial",  # paper
    lr=1e-4,
    lr_readout=1e-4,
    schedule="constant",  # code
    clip_norm=0.0,
    trs_per_step=10,
    stages=(("all", 20),),  # code
    patience=0,  # the epoch is chosen on validation stories afterwards, as here
    voxels="all",  # paper
)

_BRAINTUNING = Recipe(  # Moussa, Klakow and Toneva 2025; "code": the authors' release
    name="braintuning",
    window=10.0,
    hop=2.0,
    pooling="mean",
    resampling="clip",
    delays=(0,),  # code: ten seconds of sound a TR, mean of all frames
    layer=-1,  # code
    adapter="full",  # paper
    readout="linear",
    loss="mse",  # paper
    lr=5e-5,
    lr_readout=1e-4,
    schedule="linear",
    warmup=0.1,  # paper; the code warms up over five epochs, and differs for the read-out
    clip_norm=0.0,
    trs_per_step=128,
    stages=(("all", 30),),  # code
    patience=3,  # paper: until the validation loss saturates; how many epochs: chosen here
    voxels="ceiling > 0.4",  # paper and code
)

_REFINE = Recipe(  # Li et al. 2024; no code is public
    name="refine",
    window=9.0,
    hop=2.0,
    pooling="mean",
    resampling="clip",
    delays=(0,),  # paper: about 9 s of history; the hop is the TR of ds003020
    layer=-1,
    adapter="full",
    readout="linear",  # chosen here
    loss="mse",
    l2=1e-6,  # form: paper; weight: chosen here
    stages=(("readout", 5), ("all", 10)),  # two stages: paper; epochs: chosen here
    lr=1e-5,
    lr_readout=1e-3,
    schedule="linear",
    warmup=0.1,
    clip_norm=1.0,
    trs_per_step=128,
    patience=3,
    voxels="all",  # chosen here
)

# The same ideas at the size of the embedded data: cheap clips, the last layer, a read-out that begins at ridge. All values are
# chosen here, on the validation stories of one simulated listener; the search is written down in benchmarks/README.md.
_QUICK = {
    "window": 10.0,
    "hop": 8.0,
    "pooling": "frames",
    "resampling": "lanczos",
    "delays": (1, 2, 3, 4),
    "layer": -1,
    "trs_per_step": 50,
    "voxels": "ceiling > 0.2",
    "clip_norm": 1.0,
    "patience": 0,
    "warm_start": True,
    "stages": (("all", 3),),
    "lr_readout": 1e-4,
}
_LORA = {"rank": 8, "alpha": 16.0, "lr": 2e-3}
_PINNED = _BRAINWAVLM.with_(**_QUICK, **_LORA, dropout=0.0, readout="ridge", loss="mse")
RECIPES = {
    r.name: r
    for r in (
        _BRAINWAVLM,
        _BRAINTUNING,
        _REFINE,
        _BRAINWAVLM.with_(name="brainwavlm-quick", **_QUICK, **_LORA),
        _BRAINTUNING.with_(name="braintuning-quick", **_QUICK, lr=2e-4),
        _REFINE.with_(
            name="refine-quick", **_QUICK | {"stages": (("readout", 1), ("all", 3))}, lr=2e-4
        ),
        # the read-out pinned to ridge (after Antonello's model whisper-large-v3-braintuned), and pinned but cross-fitted (new here)
        _PINNED.with_(name="pinned-quick"),
        _PINNED.with_(name="crossfit-quick", cross_fit=3),
    )
}


# ------------------------------------------------------------------ losses
def spatial_loss(prediction, target):
    """Minus the mean over TRs of the correlation across voxels (Vattikonda et al. 2025); a constant row counts as 0.

    Parameters
    ----------
    prediction, target : tensors of shape (n_trs, n_voxels)
    """
    return -_correlation(prediction, target, 1).mean()


def temporal_loss(prediction, target):
    """Minus the mean over voxels of the correlation over the TRs given; a constant column counts as 0."""
    return -_correlation(prediction, target, 0).mean()


def mse_loss(prediction, target):
    """Mean squared error over TRs and voxels (Moussa et al. 2025; Li et al. 2024)."""
    return (prediction - target).square().mean()


def _correlation(a, b, dim):
    a_, b_ = (x - x.mean(dim, keepdim=True) for x in (a, b))
    spread = [x.square().sum(dim) for x in (a_, b_)]
    there = (spread[0] > 1e-12 * a.square().sum(dim)) & (
        spread[1] > 1e-12 * b.square().sum(dim)
    )  # else constant but for rounding
    power = (spread[0] * spread[1]).where(
        there, spread[0].new_ones(())
    )  # the root of nothing has no gradient
    return ((a_ * b_).sum(dim) / power.sqrt()).where(there, power.new_zeros(()))
