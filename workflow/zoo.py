"""The runs of a grid: read from YAML, named, and told apart by everything that shapes their numbers.

A run's files carry a key, a hash of its settings, of the recipe's values, of the data's version and of the speech model.
What is stale has another key, so it is made anew, and nothing else is.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from itertools import product
from pathlib import Path

import pandas as pd
import yaml

from brainlib.recipes import Recipe, get_recipe
from brainlib.results import SCORING, load_results, weights_hash
from brainlib.runtime import atomic

HERE = Path(__file__).parent
KEY_LENGTH = 8  # hex digits
FLAGS = ("dealt", "linear_map", "fit_apart", "keep_model", "later")


@dataclass(frozen=True)
class Run:
    """One tuning run: what is tuned on what, and on whom it is evaluated.

    Attributes
    ----------
    name, group : str
    dataset, model, recipe : str
        As `datasets.load`, `SpeechEncoder.from_pretrained` and `get_recipe` take them.
    changes : dict
        Options of the recipe that differ from it.
    subjects : list of str
        Tuned on these, with a read-out each.
    target : str
        "responses", or what stands in their place: one of `tune.TARGETS`, or "states of" a larger speech model.
    voxels : str
        A rule of `pick_voxels`, of the tuned voxels.
    region : str or None
        Of these, only the voxels of one region of ``ds.rois``.
    n_voxels : int or None
        So many of them, evenly spread; None: all.
    stories : int or None
        Of the training stories; None: all.
    dealt : bool
        Deal the stories out among the subjects, so that several take as many steps, and as much scanning in all, as one.
    linear_map : bool
        Tune nothing, but evaluate features after `evaluation.linear_map` of the first subject: what tuning has to beat.
    fit_apart : bool
        Also evaluate by a ridge on the training stories beyond `stories`, which nothing was tuned on, and by one on as many
        of those that were.
    seed : int
    evaluate_on : list of str
        Subjects; with none, only the learning curve on the validation stories is kept.
    keep_model : bool
        Keep the adapter as well.
    adapter_of : str or None
        Tune nothing, but take the kept adapter of that run of the same folder, whose settings must be the same.
    later : bool
        Make it only where it is asked for by name, with `only`.
    bf16 : bool or None
        Train in bfloat16; None: where the machine multiplies in it. On nodes of several kinds, set it.
    """

    name: str
    group: str
    dataset: str = "fireside"
    model: str = "whisper-tiny.en"
    recipe: str = "crossfit-quick"
    changes: dict = field(default_factory=dict)
    subjects: list = field(default_factory=lambda: ["SIM01"])
    target: str = "responses"
    voxels: str = "ceiling > 0.5"
    region: str | None = None
    n_voxels: int | None = None
    stories: int | None = None
    dealt: bool = False
    linear_map: bool = False
    fit_apart: bool = False
    seed: int = 0
    evaluate_on: list = field(default_factory=lambda: ["SIM01"])
    keep_model: bool = False
    adapter_of: str | None = None
    later: bool = False
    bf16: bool | None = None

    def __post_init__(self):
        wrong = [
            name
            for name in ("subjects", "evaluate_on")
            if not isinstance(getattr(self, name), list)
            or len(set(getattr(self, name))) < len(getattr(self, name))
        ]
        wrong += [
            name
            for name in ("n_voxels", "stories")
            if getattr(self, name) is not None
            and (type(getattr(self, name)) is not int or getattr(self, name) < 1)
        ]
        wrong += [name for name in FLAGS if not isinstance(getattr(self, name), bool)]
        wrong += ["bf16"] * (not (self.bf16 is None or isinstance(self.bf16, bool)))
        wrong += ["name"] * (re.fullmatch(r"[^/\\]*", self.name) is None)
        if wrong:
            raise ValueError(
                f"run {self.name!r}: {', '.join(f'{name}={getattr(self, name)!r}' for name in wrong)}; expected "
                "lists of different subjects, whole numbers above 0, true or false, names without slashes"
            )
        if self.fit_apart and self.stories is None:
            raise ValueError(f"run {self.name!r}: fit_apart needs `stories`, to leave some over")
        adapter = self.tuned_recipe().adapter
        if self.linear_map and adapter != "none":
            raise ValueError(f"run {self.name!r}: a linear map tunes nothing; set adapter: none")
        if adapter == "none" and self.target != "responses":
            raise ValueError(
                f"run {self.name!r}: target {self.target!r}, but adapter: none tunes on nothing"
            )
        if adapter != "lora" and (self.keep_model or self.adapter_of):
            raise ValueError(
                f"run {self.name!r}: keep_model and adapter_of are of LoRA's adapters, and adapter: {adapter} has none"
            )

    def tuned_recipe(self) -> Recipe:
        """The recipe with this run's changes and seed."""
        return get_recipe(self.recipe).with_(**self.changes, seed=self.seed)

    def settings(self) -> dict:
        """Everything that shapes the numbers."""
        aside = ("name", "group", "keep_model", "later")
        settings = {k: v for k, v in asdict(self).items() if k not in aside}
        settings["recipe_hash"] = self.tuned_recipe().hash()
        settings |= {"data": data_version(self.dataset), "weights": weights_hash(self.model)}
        return settings | {"scoring": SCORING}

    @property
    def key(self) -> str:
        """Hash of the settings that are not their defaults, so that a new one changes no old key."""
        defaults = asdict(Run("", ""))
        settings = {k: v for k, v in self.settings().items() if v != defaults.get(k)}
        for shown_by_the_hash in ("recipe", "changes"):
            settings.pop(shown_by_the_hash, None)
        text = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]

    @property
    def stem(self) -> str:
        """Of the names of this run's files."""
        return f"{self.name}.{self.key}"


def read_grid(path: str | Path = HERE / "zoo.yaml") -> list[Run]:
    """All runs of a YAML file; every group's `each` is expanded to all combinations of its lists.

    Raises
    ------
    ValueError
        For a setting that `Run` does not have or cannot take, one that is set twice, or two runs of one name.
    """
    grid = yaml.load(Path(path).read_text(), _OnceEach)
    if not isinstance(grid, dict) or not isinstance(grid.get("groups"), dict):
        raise ValueError(f"{path}: expected a mapping with `groups`, found {str(grid)[:40]!r}")
    strange = sorted(set(grid) - {"defaults", "groups"})
    if strange:
        raise ValueError(f"{path}: {strange} are unknown; expected defaults and groups")
    runs = [
        run for name, group in grid["groups"].items() for run in _expand(name, group, grid, path)
    ]
    names = [run.name for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: several runs are named {twice}; give their groups other names")
    kept = {run.name: run.later for run in runs if run.keep_model}
    for run in runs:
        if run.adapter_of and kept.get(run.adapter_of, True) > run.later:
            raise ValueError(
                f"{path}: {run.name!r} takes the adapter of {run.adapter_of!r}, which no run here keeps (keep_model), "
                "or only later"
            )
    return runs


def _expand(name, group, grid, path):
    """The runs of one group."""
    group = (grid.get("defaults") or {}) | (group or {})
    each = group.pop("each", None) or {}
    empty = [k for k, values in each.items() if not isinstance(values, list) or not values]
    if empty:
        raise ValueError(
            f"{path}: group {name!r}: each of {empty} needs a list with something in it"
        )
    unknown = sorted((set(group) | set(each)) - {f.name for f in fields(Run)})
    if unknown:
        raise ValueError(f"{path}: group {name!r} sets {unknown}, which no run has")
    for values in product(*each.values()):
        settings = group | dict(zip(each, values))
        label = "-".join([str(name), *map(_label, values)])
        try:
            yield Run(name=label, group=str(name), **settings)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: group {name!r}: {error}") from error


class _OnceEach(yaml.SafeLoader):
    """YAML in which a key that stands twice is refused, as the first would be lost."""

    def construct_mapping(self, node, deep=False):
        keys = [str(key.value) for key, _ in node.value]  # "<<" merges another mapping, once
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{twice} stand twice{node.start_mark}; name each once")
        return super().construct_mapping(node, deep)


def _label(value) -> str:
    """A value in the name of a run."""
    if isinstance(value, dict):
        return "-".join(f"{k}-{_label(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "+".join(map(_label, value))
    return str(value).replace(" ", "-").replace("/", "_")


@lru_cache
def data_version(dataset: str) -> str:
    """What tells this version of the embedded data from another; other data by their name."""
    if dataset != "fireside":
        return dataset
    from fireside.simulation import version

    return version()


def orphans(runs: list[Run], out: str | Path) -> list[Path]:
    """Scores and adapters in a folder that belong to none of the runs: another name, or other settings, data or model."""
    out, current = Path(out), {run.stem for run in runs}
    files = {path: path.stem for path in out.glob("[!.]*.json")}
    folders = {path: path.name for path in (out / "adapters").glob("[!.]*")}
    return sorted(path for path, stem in (files | folders).items() if stem not in current)


# ------------------------------------------------------------------ sweeps
@dataclass(frozen=True)
class Sweep:
    """A notebook over all combinations of some parameters.

    Attributes
    ----------
    notebook : str
        Its name in `notebooks/`.
    cells : dict
        Name of each combination to its parameters.
    profile : str
        YAML of the parameters that all share.
    out : str
        Folder of the results.
    """

    notebook: str
    cells: dict
    profile: str
    out: str

    def arguments(self, cell: str, path: str) -> str:
        """Of `tools/run_notebooks.py`, for one cell, whose numbers go to a JSON; quoted for the shell."""
        words = [self.notebook, "--params", self.profile, "--limit", "0"]
        for name, value in (self.cells[cell] | {"out": str(Path(path).resolve())}).items():
            words += ["-p", name, json.dumps(value)]
        words += ["--out", f"{self.out}/executed/{cell}"]
        return shlex.join(words)

    def gather(self, paths, table: str):
        """One row per cell: its parameters, and the flat columns of `load_results`."""
        rows = [load_results(path).assign(cell=Path(path).stem) for path in paths]
        parameters = pd.DataFrame.from_dict(self.cells, orient="index").add_prefix("parameters.")
        whole = parameters.merge(pd.concat(rows), left_index=True, right_on="cell")
        with atomic(table) as part:
            whole.set_index("cell").drop(columns="file").to_csv(part)


def read_sweep(path: str | Path) -> Sweep:
    """A sweep from YAML: `notebook`, `parameters` (a list of values each); `profile` and `out` if wanted.

    A cell's name ends in a hash of all its parameters, also the shared ones, so that changed ones make it anew.
    """
    told = yaml.safe_load(Path(path).read_text())
    unknown = sorted(set(told) - {"notebook", "parameters", "profile", "out"})
    lists = all(isinstance(values, list) for values in told.get("parameters", {}).values())
    if unknown or "notebook" not in told or not told.get("parameters") or not lists:
        raise ValueError(
            f"{path}: expected notebook, parameters (a list of values each), profile, out; unknown: {unknown}"
        )
    notebook = Path(told["notebook"]).stem
    profile = told.get("profile", str(HERE.parent / "notebooks/params/quick.yaml"))
    shared = [notebook, Path(profile).read_text()]
    cells = {}
    for values in product(*told["parameters"].values()):
        cell = dict(zip(told["parameters"], values))
        key = hashlib.sha256(json.dumps([*shared, cell]).encode()).hexdigest()[:KEY_LENGTH]
        cells[
            "-".join(f"{k}-{_label(v)}" for k, v in cell.items()).replace("/", "_") + f".{key}"
        ] = cell
    return Sweep(notebook, cells, profile, told.get("out", f"runs/{Path(path).stem}"))
