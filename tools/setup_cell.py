# Set-up, the same in every notebook: brainlib where it is missing, beside the torch and numpy there.
import importlib.util
import os
import subprocess
import sys
import tempfile
from importlib.metadata import distributions

if importlib.util.find_spec("brainlib") is None:
    source = "brainlib[openneuro] @ @@SOURCE@@"
    stay = ("torch", "torchvision", "torchaudio", "numpy", "scipy", "pandas")
    before = {d.name: d.version for d in distributions() if d.name in stay}
    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write("\n".join(f"{name}=={version}" for name, version in before.items()))
    pip = [sys.executable, "-m", "pip", "install", "-q", "-c", file.name, source]
    pip += ["--no-binary", "urllib3-future"]  # built so that it leaves urllib3 alone
    own = {**os.environ, "URLLIB3_NO_OVERRIDE": "1"}
    done = subprocess.run(pip, env=own, capture_output=True, text=True)
    after = {d.name: d.version for d in distributions() if d.name in before}
    if done.returncode or before != after:
        raise RuntimeError(f"no brainlib: {done.stderr[-800:]} Before: {before}, after: {after}")
from brainlib import runtime

globals().update(runtime.set_up(globals()))
