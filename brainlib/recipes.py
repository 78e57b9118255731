"""Published recipes of brain-tuning as data, in one vocabulary, and their losses."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path

from .runtime import reading, require

CHOICES = {
    "pooling": ("frames", "first", "last", "mean"),
    "resampling": ("lanczos", "clip"),
    "adapter": ("lora", "full", "none"),
    "readout": ("linear", "lowrank", "ridge"),
    "loss": ("spatial", "temporal", "mse"),
    "schedule": ("constant", "linear", "cosine"),
}
LEAST = {"rank": 1, "bottleneck": 1, "cross_fit": 0, "patience": 0, "seed": 0}  # whole numbers
# Where an option acts; elsewhere it stays at its default.
ACTS = {
    "rank": ("adapter", ("lora",)),
    "alpha": ("adapter", ("lora",)),
    "dropout": ("adapter", ("lora",)),
    "targets": ("adapter", ("lora",)),
    "tuned_layers": ("adapter", ("lora", "full")),
    "lr": ("adapter", ("lora", "full")),
    "bottleneck": ("readout", ("lowrank",)),
    "warm_start": ("readout", ("linear", "lowrank")),
    "lr_readout": ("readout", ("linear", "lowrank")),
    "cross_fit": ("readout", ("ridge",)),
    "warmup": ("schedule", ("linear", "cosine")),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that defines a brain-tuning run except the data and the model.

    `with_` gives a changed copy. An option that cannot act (say, `rank` where the whole model is tuned) is refused unless
    it has its default value.

    Attributes
    ----------
    name : str
    window, hop : float
        Seconds of sound per clip, and between the ends of two clips.
    pooling : {"frames", "first", "last", "mean"}
        What a clip gives: the frames of its last `hop` seconds in bins of 0.1 s, or one vector: its first or last
        frame, or the mean of all.
    resampling : {"lanczos", "clip"}
        Resample the vectors to TRs, or take for each TR the clip that ends where the TR ends.
    layer : int
        Hidden state that the read-out sees; negative counts from the last.
    delays : tuple of int
        FIR delays in TRs, given to the read-out; (0,) where the clip itself holds the history.
    adapter : {"lora", "full", "none"}
        Low-rank adapters, or the whole transformer (the convolutions are always frozen), or the read-out alone.
    rank, alpha, dropout, targets
        Of LoRA (Hu et al. 2022): update ``alpha / rank * B A``.
    tuned_layers : tuple of int or None
        Transformer blocks that are tuned, counted from 0; None: all.
    readout : {"linear", "lowrank", "ridge"}
        Features to voxels: one matrix; two with `bottleneck` between; or ridge in closed form, refitted at the start of
        every epoch and never trained.
    warm_start : bool
        Begin a trained read-out at the ridge solution instead of at random.
    cross_fit : int
        Folds of stories for a "ridge" read-out: each story is tuned against a read-out fitted on the other folds, so that
        the model is not taught the noise to which the read-out has overfitted. 0: one read-out, fitted on all.
    ridge_scale : float
        Factor on the cross-validated penalty of a "ridge" or warm-started read-out.
    loss : {"spatial", "temporal", "mse"}
        See `spatial_loss`, `temporal_loss`, `mse_loss`.
    l2 : float
        Weight of the sum of squares of all trained parameters, a part of the loss.
    stages : tuple of (str, int)
        ("readout", n) trains the read-out alone for n epochs, ("all", n) everything.
    lr, lr_readout : float
        Learning rates of the speech model and of the read-out; Adam.
    weight_decay : float
        Decoupled from the gradient (AdamW; Loshchilov and Hutter 2019).
    schedule : {"constant", "linear", "cosine"}
        "linear", "cosine": up over the first `warmup` share of the "all" steps, then down to zero on a line or on half a
        cosine.
    clip_norm : float
        Gradients are scaled down to this norm; 0 leaves them.
    patience : int
        Epochs without a better validation score before training stops; 0 never stops early. The best epoch is kept.
    trs_per_step : int
        TRs per gradient step. What the backward pass needs stays in memory: half a GB per clip of 10 s for a base-sized
        model.
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
    tuned_layers: tuple | None = None
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
    weight_decay: float = 0.0
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
            value = _frozen(getattr(self, field.name))
            object.__setattr__(self, field.name, float(value) if field.type == "float" else value)
        problem = next(self._problems(), None)
        require(
            not problem,
            f"recipe {self.name!r}: {problem}",
        )

    def _problems(self):
        """What is wrong with the values, one sentence each."""
        for option in ("delays", "targets"):
            if not isinstance(getattr(self, option), tuple) or not getattr(self, option):
                yield f"{option} {getattr(self, option)!r}; expected a list with something in it"
        for option, least in LEAST.items():
            value = getattr(self, option)
            if not isinstance(value, int) or value < least:
                yield f"{option} {value!r}; expected a whole number of at least {least}"
        for option, choices in CHOICES.items():
            if getattr(self, option) not in choices:
                yield f"{option} is {getattr(self, option)!r}; expected one of {choices}"
        if not self.stages or any(
            what not in ("readout", "all") or n < 1 for what, n in self.stages
        ):
            yield f"stages {self.stages}; expected pairs of 'readout' or 'all' and a number of epochs"
        order = [what for what, _ in self.stages]
        if order != sorted(order, reverse=True):
            yield f"stages {self.stages} train the read-out alone after everything; expected it first"
        if self.readout == "ridge" and any(what == "readout" for what, _ in self.stages):
            yield f"stages {self.stages} train the read-out alone, but a 'ridge' read-out is never trained"
        if self.cross_fit == 1:
            yield f"cross_fit {self.cross_fit}; expected 0 (off) or at least 2 folds"
        if not 0 < self.hop <= self.window:
            yield f"hop {self.hop} and window {self.window}; expected 0 < hop <= window"
        for option in ("lr", "lr_readout", "ridge_scale"):
            if not 0 < getattr(self, option) < float("inf"):
                yield f"{option} {getattr(self, option)}; expected a number above 0"
        if self.trs_per_step < 2:
            yield f"trs_per_step {self.trs_per_step}; expected at least 2"
        if self.resampling == "clip" and self.pooling == "frames":
            yield "resampling 'clip' needs one vector per clip; expected pooling 'first', 'last' or 'mean'"
        changed = self._changed()
        for option, (other, choices) in ACTS.items():
            if option in changed and getattr(self, other) not in choices:
                yield (
                    f"{option}={changed[option]!r} does nothing where {other} is {getattr(self, other)!r}: "
                    f"leave it out, or set {other} to one of {choices}"
                )

    def _changed(self) -> dict:
        """The options whose values are not their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.default is MISSING or getattr(self, f.name) != f.default
        }

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
        """A copy with some values changed; a misspelt name is an error.

        Options that the changes put out of action (`rank` by ``adapter="full"``) go back to their defaults.
        """
        switches = {other for other, _ in ACTS.values()} & set(changes)
        for option, (other, choices) in ACTS.items():
            if other in switches and option not in changes and changes[other] not in choices:
                changes[option] = type(self).__dataclass_fields__[option].default
        return replace(self, **changes)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """Recipe from `to_json`; ValueError for unknown or missing names."""
        values = json.loads(text)
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        require(
            not unknown and {"name", "window", "hop"} <= set(values),
            f"not a recipe of this version: unknown {unknown}; 'name', 'window' and 'hop' are needed",
        )
        return cls(**values)

    def hash(self) -> str:
        """Twelve hex digits of the values that differ from their defaults, so that a new option changes no old hash.

        The name does not count.
        """
        values = {k: v for k, v in self._changed().items() if k != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


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
# chosen here, on the validation stories of one simulated subject; the searches are written down in benchmarks/README.md.
_QUICK = {
    "window": 10.0,
    "hop": 8.0,
    "pooling": "frames",
    "resampling": "lanczos",
    "delays": (1, 2, 3, 4),
    "layer": -1,
    "trs_per_step": 50,
    "voxels": "ceiling > 0.5",
    "clip_norm": 1.0,
    "patience": 0,
    "warm_start": True,
    "stages": (("all", 3),),
    "lr_readout": 1e-4,
}
_BRAINWAVLM_QUICK = _BRAINWAVLM.with_(
    name="brainwavlm-quick", **_QUICK, rank=8, alpha=16.0, lr=2e-3
)
# The closed-form read-out follows Antonello's model whisper-large-v3-braintuned; to cross-fit it is new here.
_CLOSED_FORM_QUICK = _BRAINWAVLM_QUICK.with_(
    name="closedform-quick", dropout=0.0, readout="ridge", loss="mse", lr=2e-4
)
RECIPES = {
    r.name: r
    for r in (
        _BRAINWAVLM,
        _BRAINTUNING,
        _REFINE,
        _BRAINWAVLM_QUICK,
        _BRAINTUNING.with_(name="braintuning-quick", **_QUICK, lr=1e-4),
        _REFINE.with_(
            name="refine-quick", **_QUICK | {"stages": (("readout", 1), ("all", 3))}, lr=5e-5
        ),
        _CLOSED_FORM_QUICK,
        _CLOSED_FORM_QUICK.with_(name="crossfit-quick", cross_fit=3),
    )
}


def get_recipe(name_or_path: str | Path) -> Recipe:
    """The recipe of that name in RECIPES, or the one in a JSON file (see `Recipe.to_json`).

    Raises
    ------
    KeyError
        For an unknown name; close ones are suggested.
    FileNotFoundError
        For a JSON file that does not exist.
    """
    if str(name_or_path).endswith(".json"):
        with reading(name_or_path, "a recipe, as Recipe.to_json writes it"):
            return Recipe.from_json(Path(name_or_path).read_text())
    if name_or_path in RECIPES:
        return RECIPES[name_or_path]
    close = get_close_matches(str(name_or_path), RECIPES) or sorted(RECIPES)
    raise KeyError(
        f"no recipe {name_or_path!r}: did you mean {' or '.join(close)}? A file of your own ends in .json"
    )


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
    a_centred, b_centred = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    a_power, b_power = a_centred.square().sum(dim), b_centred.square().sum(dim)
    varies = (a_power > 1e-12 * a.square().sum(dim)) & (  # else constant but for rounding
        b_power > 1e-12 * b.square().sum(dim)
    )
    power = (a_power * b_power).where(varies, a_power.new_ones(()))  # sqrt has no gradient at 0
    return ((a_centred * b_centred).sum(dim) / power.sqrt()).where(varies, power.new_zeros(()))
