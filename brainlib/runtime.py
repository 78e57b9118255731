"""Where and how things run: seeds, device, cache folder, time and memory, Colab."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def seed_everything(seed: int = 0) -> None:
    """Seed Python, numpy and torch, and ask torch for repeatable kernels."""
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def pick_device(prefer: str | None = None) -> str:
    """Name of the device to compute on: `prefer` where this machine has it, else "cuda", "mps" or "cpu".

    Raises
    ------
    ValueError
        If `prefer` names a device that this machine lacks.
    """
    import torch

    backends = {"cuda": torch.cuda, "mps": torch.backends.mps, "cpu": torch.cpu}
    devices = [name for name, backend in backends.items() if backend.is_available()]
    if prefer not in (None, "auto") and prefer.split(":")[0] not in devices:
        raise ValueError(
            f"device {prefer!r} is not on this machine; found {devices}: choose one or leave it out"
        )
    return devices[0] if prefer in (None, "auto") else prefer


def cache_dir(*parts: str) -> Path:
    """Folder for what can be made again, created if missing: ``$BRAINLIB_CACHE`` or ``~/.cache/brainlib``, then `parts`.

    What took long and is small ("tuning", "models") goes to ``$BRAINLIB_DRIVE`` where that is set.
    """
    drive = os.environ.get("BRAINLIB_DRIVE") if parts and parts[0] in ("tuning", "models") else None
    root = Path(drive or os.environ.get("BRAINLIB_CACHE") or Path.home() / ".cache" / "brainlib")
    path = root.expanduser().joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def atomic(path: str | Path):
    """Yield a temporary file or folder name beside `path`; rename it to `path` if the block ends well, else remove it.

    A reader never sees half a file: either the old state, or the whole new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))
    try:
        yield holder / path.name
        new = holder / path.name
        old = holder / "old"
        if path.is_dir() and new.is_dir():  # a folder cannot replace a full one in a single step
            path.rename(old)
        try:
            new.replace(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@dataclass
class Track:
    """What `track` measured: wall time in seconds, peak resident memory of the process so far in MB."""

    label: str = ""
    seconds: float = 0.0
    peak_mb: float = 0.0

    def __str__(self):
        return f"{self.label}: {self.seconds:.1f} s, peak memory {self.peak_mb:.0f} MB"


@contextlib.contextmanager
def track(label: str = "step", *, quiet: bool = False):
    """Measure a block and print one line about it; yields the `Track` that is filled in at the end."""
    note, start = Track(label), time.perf_counter()
    try:
        yield note
    finally:
        note.seconds = time.perf_counter() - start
        note.peak_mb = peak_memory_mb()
        if not quiet:
            print(note)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10**6 bytes); NaN where the system does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


# ------------------------------------------------------------------ notebooks
HOSTNAME = Path("/var/colab/hostname")  # of a hosted Colab machine; its plain Docker image lacks it
DRIVE = Path("/content/drive")
SMALL_MODELS = ("pico", "tiny")  # in the name of a speech model that two CPU cores can tune
CPU_SIZED = {
    "speech_model": "whisper-tiny.en",
    "window": 10.0,
    "hop": 8.0,
    "layer": None,
    "epochs": 3,
    "n_tuning_stories": 8,
    "tuning_voxel_step": 4,
}


def on_colab() -> bool:
    """True on a hosted Colab machine, False elsewhere and in Colab's plain Docker image."""
    return "COLAB_RELEASE_TAG" in os.environ and HOSTNAME.exists()


def set_up(parameters: dict) -> dict:
    """Print what a notebook runs on, and fit its parameters to it; the last line of every notebook's set-up cell.

    Parameters
    ----------
    parameters : dict
        The notebook's names and values. With `drive` true, checkpoints and tuned models are kept on Google Drive, where
        Colab asks first; recordings and hidden states are too large for it.

    Returns
    -------
    changed : dict
        On a hosted machine without a GPU that is asked for a speech model whose name says neither "pico" nor "tiny": the
        parameters that a CPU can do, with a note. Else empty. Models are asked for without a token unless ``$HF_TOKEN``
        is set.
    """
    gpu = _print_machine()
    name = parameters.get("speech_model") or "wavlm-pico"
    slow = not gpu and not any(word in name.lower() for word in SMALL_MODELS)
    if slow:
        print(f"{name} without a GPU: tuning a base-sized model (95 M parameters) takes hours")
    if not on_colab():
        return {}
    if "HF_TOKEN" not in os.environ:  # looking for one in Colab's secrets can hang
        os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"
    if parameters.get("drive"):
        _mount_drive()
    if not slow:
        return {}
    changed = {k: v for k, v in CPU_SIZED.items() if k in parameters and parameters[k] != v}
    print(f"so this runs what a CPU can do: {changed} (Runtime > Change runtime type gives a GPU)")
    return changed


def _print_machine() -> bool:
    """Print GPU, cores and memory; whether the machine has a GPU."""
    import psutil
    import torch

    gpu = torch.cuda.is_available()
    if gpu:
        free, total = (n / 1e9 for n in torch.cuda.mem_get_info())
        print(f"GPU: {torch.cuda.get_device_name()}, {total:.1f} GB, {free:.1f} GB of it free")
    else:
        print("no GPU")
    print(f"{os.cpu_count()} CPU cores, {psutil.virtual_memory().total / 1e9:.1f} GB of memory")
    return gpu


def _mount_drive():
    """Keep results on Google Drive, or say why not; nothing about it should end a notebook."""
    try:
        from google.colab import drive

        drive.mount(str(DRIVE))
    except Exception as error:  # refused, timed out, forbidden by an administrator
        print(
            f"no Drive ({type(error).__name__}: {error}); results stay on this machine, which forgets them"
        )
        return
    os.environ["BRAINLIB_DRIVE"] = str(DRIVE / "MyDrive" / "brainlib")
