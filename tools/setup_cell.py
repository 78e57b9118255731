# @title Set-up { display-mode: "form" }
# The same in every notebook: brainlib where it is missing, beside the torch and numpy there.
import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version

SOURCE = "@@SOURCE@@"


def versions(names=("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas")):
    return {name: version(name) for name in names if importlib.util.find_spec(name)}


if not all(map(importlib.util.find_spec, ("brainlib", "praatio"))):
    if not SOURCE:
        raise RuntimeError(
            "no brainlib, and this copy of the book names no address to install it from: "
            "pip install the folder that holds its pyproject.toml"
        )
    before = versions()
    kept = [f"{name}=={number}" for name, number in before.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(kept))
    print(
        f"Installing brainlib from {SOURCE}: a minute or two. Left as they are: {', '.join(kept)}"
    )
    pip = [sys.executable, "-m", "pip", "install", "-c", file.name, f"brainlib @ {SOURCE}"]
    said = []
    with subprocess.Popen(
        pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout:
            said.append(line)
            if line.startswith(("Collecting", "Building", "Installing", "Successfully")):
                print(line, end="", flush=True)
    importlib.invalidate_caches()
    if process.returncode or versions() != before:
        said = "".join(said)[-800:]
        raise RuntimeError(f"no brainlib: {said} {before} became {versions()}")
from brainlib import runtime

globals().update(runtime.set_up(globals()))
