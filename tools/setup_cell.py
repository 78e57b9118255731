# Set-up, the same in every notebook: brainlib where it is missing, beside the torch and numpy there.
import importlib.util
import subprocess
import sys
import tempfile
from importlib.metadata import version


def versions(names=("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas")):
    return {name: version(name) for name in names if importlib.util.find_spec(name)}


if not all(map(importlib.util.find_spec, ("brainlib", "praatio"))):
    before = versions()
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(f"{name}=={number}" for name, number in before.items()))
    pip = [sys.executable, "-m", "pip", "install", "-c", file.name]
    pip += ["brainlib @ @@SOURCE@@"]
    done = subprocess.run(pip, capture_output=True, text=True)
    importlib.invalidate_caches()
    if done.returncode or versions() != before:
        raise RuntimeError(f"no brainlib: {done.stderr[-800:]} {before} became {versions()}")
    print(done.stdout.strip().splitlines()[-1])
from brainlib import runtime

globals().update(runtime.set_up(globals()))
