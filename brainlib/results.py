"""One small JSON per run: numbers, their spread, and where they come from; and the zoo, the runs that notebooks share."""

import hashlib
import json
import platform
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

from . import __version__, datasets
from .recipes import Recipe, get_recipe
from .runtime import atomic, read_json, reading, require
from .scores import FLOOR

ASSETS = Path(__file__).parent / "assets"  # of the embedded models
ZOO = Path(__file__).resolve().parents[1] / "results" / "zoo"  # of a checkout
SCORES = ["normalised", "low_level", "beyond_low_level"]
COPIED = ["run", "group", "model", "recipe", "target", "voxels", "n_voxels"]  # from `about`
CHANGES = {"change": "normalised", "beyond_change": "beyond_low_level"}  # against the untuned model
OVER_MAP = {
    "over_map": "normalised",
    "beyond_over_map": "beyond_low_level",
}  # against the linear map
COLUMNS = [
    *(*COPIED, "n_stories", "seed", "method", "tuned_on", "features"),
    *("subject", "kind", "region", "story"),
    *(*SCORES, *CHANGES, *OVER_MAP, "seconds"),
]
AGAIN = "remove it, then `make runs`"
SAME = ["model", "features", "subject", "kind", "region", "story"]  # of scores that compare
MADE_FROM = ["tuned_on", "target", "voxels", "n_voxels", "n_stories"]
SCORING = 1  # of `workflow/tune.py`; raise it when that scores in another way


PARTS = ("numbers", "dataset", "about", "provenance")  # of a result
HIGHEST = 1 / FLOOR  # normalised correlation that there can be


def record(path: str | Path, numbers: dict, *, dataset=None, **about) -> dict:
    """Write a run's numbers with their provenance; the file appears whole or not at all.

    Parameters
    ----------
    path : path
        Ends in ``.json``.
    numbers : dict
        Names to numbers, lists, arrays or nested dicts of them.
    dataset : Dataset, optional
        Its name, and whether it is simulated, are written too.
    **about
        Anything that tells this run from others: subject, model, recipe, seed, seconds.

    Returns
    -------
    entry : dict
        What was written.
    """
    path = Path(path)
    require(
        isinstance(numbers, dict), f"{path}: {type(numbers).__name__}; expected a dict of numbers"
    )
    require(path.suffix == ".json", f"{path}: results are JSON; end the name in .json")
    provenance = {
        "brainlib": __version__,
        "code": _commit(),
        "machine": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "torch", "transformers", "peft")},
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    entry = {
        "numbers": _plain(numbers),
        "dataset": _data(dataset),
        "about": _plain(about),
        "provenance": provenance,
    }
    with atomic(path) as part:
        part.write_text(json.dumps(entry, indent=1, allow_nan=False))
    return entry


def load_results(folder: str | Path) -> pd.DataFrame:
    """Every result under a folder (or one file), one row per file: flat columns such as ``numbers.r`` and ``about.subject``.

    Raises
    ------
    ValueError
        If a file is no result.
    """
    folder = Path(folder)
    require(folder.exists(), f"{folder}: no such file or folder of results", kind=FileNotFoundError)
    paths = [folder] if folder.is_file() else sorted(folder.rglob("*.json"))
    paths = [path for path in paths if not _no_result(path.relative_to(folder))]
    flat = [pd.json_normalize(_read(path)).iloc[0].to_dict() for path in paths]
    return pd.DataFrame([{"file": str(path), **row} for path, row in zip(paths, flat)])


def _no_result(path: Path) -> bool:
    """Whether a JSON file belongs to an adapter, or is hidden, as what is being written is."""
    return "adapters" in path.parts or any(part.startswith(".") for part in path.parts)


def _read(path: Path) -> dict:
    """A file that `record` wrote."""
    expected = "a file that results.record wrote"
    entry = read_json(path, expected, remedy="remove it or run again")
    missing = [name for name in PARTS if not isinstance(entry.get(name), dict)]
    require(not missing, f"{path}: without {missing}; expected {expected}")
    return entry


def precomputed(path: str | Path, compute, *, dataset=None, write: bool = False, **about):
    """Numbers of a precomputed result where there is one of just these settings; else they are computed now.

    Parameters
    ----------
    path : path
        Of the result; it need not exist.
    compute : callable or None
        Gives the numbers, as for `record`. None: compute nothing.
    dataset : Dataset, optional
    write : bool
        Whether numbers that are computed now are recorded under `path`.
    **about
        Settings that shape the numbers, such as ``model=encoder.fingerprint()``: a result of other ones is stale.

    Returns
    -------
    numbers : dict or None
        The same whether read or computed: lists and dicts, NaN as None. None if there are none and `compute` is None.
    """
    path = Path(path)
    if path.exists():
        entry = _read(path)
        asked = {"dataset": _data(dataset), "about": _plain(about)}
        if all(entry[part].get(k) == v for part in asked for k, v in asked[part].items()):
            return entry["numbers"]
    if compute is None:
        return None
    numbers = _plain(compute())
    if write:
        record(path, numbers, dataset=dataset, **about)
    return numbers


def _data(dataset) -> dict:
    """Name, simulated or not, and what else tells this version of the data from another."""
    if dataset is None:
        return {}
    more = {
        k: dataset.description[k]
        for k in ("NoiseLevel", "SimulationVersion")
        if k in dataset.description
    }
    return {"name": dataset.name, "simulated": dataset.simulated, **more}


def _plain(value):
    """Numbers, arrays, tensors and tables as JSON's own kinds; NaN and infinity as None."""
    value = value.to_dict() if isinstance(value, (pd.Series, pd.DataFrame)) else value
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)


def _commit() -> str:
    """Commit of the code that runs, "+" if it was changed since; "unknown" outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return described.stdout.strip() or "unknown"


def in_short(verdict: str, lines, *, label: str, fold: str = "All answers") -> str:
    """A notebook's verdict as Markdown: its sentences as points, and the lines of a list folded below them.

    `label` says what the data are, such as "simulated"; `fold` is what the folded part is called.
    """
    points = "\n".join(f"- {point}." for point in verdict.rstrip(".").split(". "))
    listed = "\n".join(lines)
    folded = f"<details><summary>{fold}</summary>\n\n{listed}\n\n</details>"
    return f"**In short** ({label})\n\n{points}\n\n{folded}"


# ------------------------------------------------------------------ the zoo
def load_zoo(folder: str | Path | None = None, *, dataset=None) -> pd.DataFrame:
    """Scores of the tuned models that ``make runs`` makes: a row per run, evaluated subject, kind, region and test story.

    Parameters
    ----------
    folder : path, optional
        ``results/zoo`` of the checkout if left out. One that is empty or missing gives a table without rows.
    dataset : Dataset, optional
        Keep the runs on this version of this data set; if left out, on the version that is installed.

    Returns
    -------
    table : DataFrame
        ``kind`` is "noisy" or "noise-free"; ``normalised`` the noise-ceiling-normalised correlation, ``low_level`` that of
        low-level features, ``beyond_low_level`` what the model adds to them (NaN where it was not computed). ``method`` is
        "untuned", "linear map" or "tuned", ``tuned_on`` is empty for an untuned model; ``n_voxels`` and ``n_stories`` are NaN where a run took all of them. ``change`` and
        ``beyond_change`` are `normalised` and `beyond_low_level` less those of the untuned model on the same responses,
        ``over_map`` and ``beyond_over_map`` less those of its features after the `evaluation.linear_map` of the same
        target, voxels and stories; NaN where there are none. ``table.attrs["stale"]`` holds the runs left out, each with the reason (recipe, data or model
        have changed), ``table.attrs["learning_curves"]`` the history of each run, ``table.attrs["learning_rates"]`` the rate of each,
        ``table.attrs["parameter_changes"]`` what full tuning changed (columns of `inside.parameter_change`).
    """
    entries, stale = _current(Path(folder or ZOO), dataset)
    rows, curves, rates = [], {}, {}
    for name, entry in entries.items():
        with reading(f"run {name} of {folder or ZOO}", "a run of the zoo", remedy=AGAIN):
            rows += _rows(entry)
            curves[name] = entry["numbers"]["history"]
            rates[name] = _recipe(entry["about"]).lr
    table = pd.DataFrame(rows, columns=COLUMNS)
    numeric = ["n_voxels", "n_stories", *SCORES, *CHANGES, *OVER_MAP]
    table = table.astype(dict.fromkeys(numeric, float))
    _add_differences(table, CHANGES, table[table.method == "untuned"], SAME)
    _add_differences(table, OVER_MAP, table[table.method == "linear map"], [*MADE_FROM, *SAME])
    changes = {
        name: entry["numbers"]["parameter_change"]
        for name, entry in entries.items()
        if "parameter_change" in entry["numbers"]
    }
    table.attrs = {"stale": stale, "learning_curves": curves, "learning_rates": rates}
    table.attrs["parameter_changes"] = changes
    return table


def load_tuned(name: str, folder: str | Path | None = None) -> tuple:
    """A tuned model of the zoo whose adapter is kept.

    Parameters
    ----------
    name : str
        Of the run, such as "whole-cortex-SIM01".
    folder : path, optional
        As in `load_zoo`.

    Returns
    -------
    encoder : SpeechEncoder
        The base model with the adapter in it.
    about : dict
        Settings and provenance of the run.

    Raises
    ------
    FileNotFoundError
        If there is no such run, or its adapter is not whole; the message says how to make it.
    ValueError
        If recipe, data or model have changed since, or the adapter has lost tensors or holds some that are no numbers.
    """
    from .saving import check_digests, load_adapter
    from .speech import SpeechEncoder

    folder = Path(folder or ZOO)
    entries, stale = _current(folder, None)
    again = f"make it by: snakemake --cores 1 --config only={name} out={folder}"
    require(name not in stale, f"run {name!r} is stale: {stale.get(name)}; {again}")
    require(
        name in entries,
        f"no run {name!r} in {folder}; it has {sorted(entries)}; {again}",
        kind=FileNotFoundError,
    )
    about = entries[name]["about"]
    adapter = folder / "adapters" / f"{name}.{about['key']}"
    remade = f"remove {adapter}, then {again}"
    parts = ("adapter_config.json", "adapter_model.safetensors")
    missing = [part for part in parts if not (adapter / part).exists()]
    require(
        not missing,
        f"{adapter}: {missing} not found; with keep_model in the grid, {remade}",
        kind=FileNotFoundError,
    )
    check_digests(adapter, about.get("adapter", {}), remedy=remade)
    encoder = SpeechEncoder.from_pretrained(about["model"])
    load_adapter(encoder, adapter, base=about["base_fingerprint"], remedy=remade)
    encoder.name = f"{about['model']}+{name}"
    return encoder, about | entries[name]["provenance"]


def load_models(runs: dict, folder: str | Path | None = None, *, model: str, recipe=None) -> tuple:
    """Those tuned models of the zoo that are there.

    Parameters
    ----------
    runs : dict of str
        Name for the reader to name of the run.
    folder : path, optional
        As in `load_zoo`.
    model : str
        The base model that they must be tuned from, such as "whisper-tiny.en".
    recipe : Recipe, optional
        If given, they must share its window and hop: hidden states of other windows do not compare.

    Returns
    -------
    encoders : dict of SpeechEncoder
        By name, in the order of `runs`.
    absent : dict of str
        The other names, with the reason.
    """
    encoders, absent = {}, {}
    for name, run in runs.items():
        try:
            encoder, about = load_tuned(run, folder)
        except FileNotFoundError:
            absent[name] = "not made, or not kept"
            continue
        except ValueError:
            absent[name] = "stale or damaged"
            continue
        used = _recipe(about)
        if about["model"] != model:
            absent[name] = f"tuned from {about['model']}"
        elif recipe and (used.window, used.hop) != (recipe.window, recipe.hop):
            absent[name] = "of other windows"
        else:
            encoders[name] = encoder
    return encoders, absent


@lru_cache
def weights_hash(model: str) -> str:
    """Hash of an embedded model's weights, 12 hex digits; other models by their name."""
    weights = ASSETS / model / "model.safetensors"
    if not weights.exists():
        return model
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:12]


def _current(folder: Path, dataset) -> tuple[dict, dict]:
    """Entries of the runs that are up to date, the newest of each name, and {run: why it is not}."""
    found = []
    for path in sorted(folder.glob("[!.]*.json")):
        with reading(path, "a run of the zoo", remedy=AGAIN):
            entry = _read(path)
            _check_scores(entry["numbers"])
            name, when = entry["about"]["run"], entry["provenance"]["when"]
            found.append((when, name, _stale(entry, dataset), entry))
    found.sort(key=lambda one: one[0])
    entries = {name: entry for _, name, reason, entry in found if not reason}
    return entries, {name: reason for _, name, reason, _ in found if name not in entries}


def _recipe(about: dict) -> Recipe:
    """What a run was tuned by."""
    return get_recipe(about["recipe"]).with_(**about["changes"], seed=about["seed"])


def _check_scores(numbers: dict):
    """ValueError unless every score has a possible number, or none, for each of the stories."""
    stories = numbers["stories"]
    kinds = [kind for subject in numbers["scores"].values() for kind in subject.values()]
    lists = [values for kind in kinds for scores in kind.values() for values in scores.values()]
    possible = [x is None or abs(x) <= HIGHEST for values in lists for x in values]
    right = all(len(values) == len(stories) for values in lists)
    require(
        len(set(stories)) == len(stories) and right and all(possible),
        f"stories {stories} and {len(lists)} lists of scores; expected a number for each story in each list, "
        f"none beyond {HIGHEST:g}",
    )


def _stale(entry: dict, dataset) -> str:
    """Why a run's numbers no longer hold; empty if they do."""
    about = entry["about"]
    if about.get("scoring", SCORING) != SCORING:
        return "it was scored in another way"
    if weights_hash(about["model"]) != about["weights"]:
        return f"the weights of {about['model']} have changed"
    try:
        recipe = _recipe(about)
    except (KeyError, TypeError, ValueError, FileNotFoundError) as error:
        return f"recipe {about['recipe']} cannot be made: {error}"
    if recipe.hash() != about["recipe_hash"]:
        return f"recipe {about['recipe']} has changed"
    if dataset is None and "SimulationVersion" not in entry["dataset"]:
        return ""  # data that say no version
    expected = _data(dataset) if dataset is not None else _installed(about["tree"])
    if entry["dataset"] != expected:
        return f"made from {entry['dataset']}; here {expected}"
    return ""


@lru_cache
def _installed(name: str) -> dict:
    return _data(datasets.load(name))


def _add_differences(table, columns: dict, baseline, same: list):
    """Fill columns {difference: score}: each row less the row of a baseline that agrees in the columns `same`."""
    keys, baseline = table[same].fillna(-1), baseline.fillna(dict.fromkeys(same, -1))
    baseline = baseline.drop_duplicates(same).set_index(same)
    before = baseline.reindex(pd.MultiIndex.from_frame(keys))
    for difference, score in columns.items():
        table[difference] = table[score] - before[score].to_numpy()


def _rows(entry: dict):
    """Of one run, in the columns of `load_zoo`."""
    about, numbers = entry["about"], entry["numbers"]
    shared = {name: about[name] for name in [*COPIED, "seed", "seconds"]}
    recipe = _recipe(about)
    method = "untuned" if recipe.adapter == "none" else "tuned"
    method = "linear map" if about.get("linear_map") else method
    shared["voxels"] += f" in {about.get('region')}" * bool(about.get("region"))
    shared |= {
        "n_stories": about["stories"],
        "method": method,
        "tuned_on": "+".join(about["subjects"]) * (method != "untuned"),
        "features": f"{recipe.window:g} s every {recipe.hop:g} s, layer {recipe.layer}",
    }
    for subject, kinds in numbers["scores"].items():
        for kind, regions in kinds.items():
            at = {"subject": subject, "kind": kind.replace("_", "-")}
            for region, scores in regions.items():
                for story, values in zip(numbers["stories"], zip(*scores.values()), strict=True):
                    yield (
                        shared | at | {"region": region, "story": story} | dict(zip(scores, values))
                    )
