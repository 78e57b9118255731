"""One small JSON per run: numbers, their spread, and where they come from."""

from __future__ import annotations

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd

from . import __version__
from .runtime import atomic


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
    if path.suffix != ".json":
        raise ValueError(f"{path}: results are JSON; end the name in .json")
    packages = {}
    for name in ("numpy", "torch", "transformers", "peft"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    provenance = {
        "brainlib": __version__,
        "code": _commit(),
        "machine": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        "packages": packages,
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
    rows = []
    folder = Path(folder)
    for path in [folder] if folder.is_file() else sorted(folder.rglob("*.json")):
        try:
            entry = json.loads(path.read_text())
            missing = {"numbers", "dataset", "about", "provenance"} - set(entry)
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}: not JSON ({error}); remove it or run again") from error
        if missing:
            raise ValueError(
                f"{path}: without {sorted(missing)}; expected a file that results.record wrote"
            )
        rows.append({"file": str(path), **pd.json_normalize(entry).iloc[0].to_dict()})
    return pd.DataFrame(rows)


def matches(path: str | Path, *, dataset=None, **about) -> bool:
    """Whether a precomputed result is of this data set and of these settings; else its numbers say nothing about them."""
    result = load_results(path).iloc[0]
    expected = {f"dataset.{k}": v for k, v in _data(dataset).items()}
    expected |= {f"about.{k}": v for k, v in _plain(about).items()}
    for name, value in expected.items():
        recorded = result.get(name)
        if recorded != value and not (value is None and pd.isna(recorded)):
            return False
    return True


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
    """Numbers and arrays as JSON's own kinds; NaN and infinity as None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value if value is None else str(value)


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
