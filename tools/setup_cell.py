# @title Set-up { display-mode: "form" }
# The same in every notebook: brainlib where it is missing, beside the torch and numpy there.
import subprocess
import sys
import tempfile
from importlib import invalidate_caches, metadata, util

SOURCE = "@@SOURCE@@"


def versions(names=("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas")):
    return {name: metadata.version(name) for name in names if util.find_spec(name)}


if not all(map(util.find_spec, ("brainlib", "praatio"))):
    if not SOURCE:
        raise RuntimeError("this book names no address of brainlib: pip install the folder of it")
    before, said = versions(), ""
    kept = [f"{name}=={number}" for name, number in before.items()]
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(kept))
    print(f"Installing brainlib from {SOURCE}: a minute or two. Left as they are: {kept}")
    pip = [sys.executable, "-m", "pip", "install", "-c", file.name, f"brainlib @ {SOURCE}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(pip, **pipes) as process:
        for line in process.stdout:
            said += line
            if line.startswith(("Collecting", "Building", "Installing", "Successfully")):
                print(line, end="", flush=True)
    invalidate_caches()
    if process.returncode or versions() != before:
        raise RuntimeError(f"no brainlib: {said[-800:]} {before} became {versions()}")
from brainlib import runtime

globals().update(runtime.set_up(globals()))
