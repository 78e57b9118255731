"""Where and how things run: seeds, device, cache folder, time and memory, Colab."""

import contextlib
import errno
import glob
import json
import os
import platform
import random
import shutil
import sys
import tempfile
import time
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
    require(
        prefer in (None, "auto") or prefer.split(":")[0] in devices,
        f"device {prefer!r} is not on this machine; found {devices}: choose one or leave it out",
    )
    return devices[0] if prefer in (None, "auto") else prefer


def fast_bf16() -> bool:
    """Whether this machine multiplies in bfloat16 by itself; elsewhere it is emulated, and ten times slower than float32."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability() >= (8, 0)
    tell = getattr(torch.cpu, "get_capabilities", dict)  # torch >= 2.11
    return any(tell().get(name, False) for name in ("amx_bf16", "avx512_bf16"))


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
    _sweep(path)
    prefix = f".{path.name}.{platform.node()}.{os.getpid()}."
    holder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".part", dir=path.parent))
    try:
        yield holder / path.name
        _swap(holder / path.name, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def _sweep(path):
    """Remove what processes of this machine that were killed have left beside `path`."""
    import psutil

    prefix = glob.escape(f".{path.name}.{platform.node()}.")
    for left in path.parent.glob(f"{prefix}*.part"):
        pid = left.name.split(".")[-3]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _swap(new, path):
    """Rename `new` to `path`; a folder in its place steps aside, also one that another process just put there."""
    for attempt in range(20):
        old = new.parent / f"old{attempt}"
        if path.is_dir() and new.is_dir():  # a folder cannot replace a full one in a single step
            with contextlib.suppress(FileNotFoundError):  # another process was first
                path.rename(old)
        try:
            new.replace(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == 19:
                if old.exists() and not path.exists():
                    old.rename(path)
                raise


def require(holds, message: str, *, kind=ValueError) -> None:
    """Raise an error unless the condition holds. Its message says what was found, what was expected, and what to do."""
    if not holds:
        raise kind(message)


@contextlib.contextmanager
def reading(path, what: str, *, remedy: str = "make or fetch it again"):
    """Whatever goes wrong in the block becomes a ValueError that names the file, what was expected, and the remedy.

    A missing file stays a FileNotFoundError, and an error that begins with the file's name stays as it is.
    """
    try:
        yield
    except Exception as error:  # libraries raise many kinds for a file that is cut or garbled
        passes = isinstance(error, (FileNotFoundError, MemoryError))
        if passes or str(error).startswith(str(path)):
            raise
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: cannot be read ({type(error).__name__}: {said}); expected {what}: {remedy}"
        ) from error


def read_json(path: str | Path, what: str, **options) -> dict:
    """The object that a JSON file holds; see `reading`."""
    with reading(path, what, **options):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        kind = type(content).__name__
        require(isinstance(content, dict), f"holds a {kind}, not {{...}}", kind=TypeError)
    return content


def read_arrays(path: str | Path, what: str, **options) -> dict[str, np.ndarray]:
    """The arrays of an npz file, which holds a checksum of each; see `reading`."""
    with reading(path, what, **options), np.load(path) as file:
        return dict(file.items())


@contextlib.contextmanager
def track(label: str):
    """Measure a block, and print wall time in seconds and peak resident memory of the process so far in MB."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - start
        print(f"{label}: {seconds:.1f} s, peak memory {peak_memory_mb():.0f} MB")


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
    "epochs": 2,
    "n_tuning_stories": 4,
    "tuning_voxel_step": 4,
}


def on_colab() -> bool:
    """True on a hosted Colab machine, False elsewhere and in Colab's plain Docker image."""
    return "COLAB_RELEASE_TAG" in os.environ and HOSTNAME.exists()


def _whole(smallest):
    return f"a whole number from {smallest}", lambda x: type(x) is int and x >= smallest


PARAMETERS = {  # of the notebooks: what is expected, and whether a value is that
    "dataset speech_model recipe": ("a name", lambda x: isinstance(x, str) and x),
    "precomputed tuned_run out": ("a string", lambda x: isinstance(x, str)),
    "window hop": ("seconds above 0", lambda x: type(x) in (int, float) and 0 < x < float("inf")),
    "resume drive": ("true or false", lambda x: isinstance(x, bool)),
    "voxel_step tuning_voxel_step epochs n_tuning_stories": _whole(1),
    "n_train": _whole(4),  # the solutions compare models over four stories and more
    "seed": _whole(0),
    "layer": ("a whole number or None", lambda x: x is None or type(x) is int),
    "subjects": (
        "a list of at least one name",
        lambda x: isinstance(x, list) and x and all(isinstance(name, str) for name in x),
    ),
}


def check_parameters(parameters: dict) -> None:
    """ValueError that names every parameter of a notebook with a value of another type or range than PARAMETERS has it."""
    wrong = [
        f"{name}={parameters[name]!r} (expected {what})"
        for names, (what, right) in PARAMETERS.items()
        for name in names.split()
        if name in parameters and not right(parameters[name])
    ]
    if not wrong and parameters.get("hop", 0) > parameters.get("window", float("inf")):
        wrong = [f"hop={parameters['hop']} (expected at most the window)"]
    require(
        not wrong,
        f"parameters: {'; '.join(wrong)}: change them in the first cell",
    )


def set_up(parameters: dict) -> dict:
    """Check a notebook's parameters, print what it runs on, and fit them to it; the last line of every set-up cell.

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

    Raises
    ------
    ValueError
        For parameters of another type or range (see `check_parameters`).
    """
    check_parameters(parameters)
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
