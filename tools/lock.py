"""Write requirements.lock: the versions of everything that this environment installs for the book.

    .venv/bin/python tools/lock.py     # after make, in the environment that it made

What pyproject.toml asks for, with the extras book, test and dev, and what that asks for in turn. `make LOCKED=1 book` installs
these versions. What torch's wheel for a GPU needs besides is not in it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from brainlib.runtime import atomic

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
EXTRAS = ("book", "test", "dev")
GPU = re.compile(r"nvidia-|cuda-|triton")  # a torch wheel without CUDA needs none of them
HEAD = """\
# Versions of everything that the book was built and tested with on Python {}.{}; written by tools/lock.py.
# What the book needs stands in pyproject.toml; make LOCKED=1 installs exactly these.
"""


def asked() -> list[Requirement]:
    """What pyproject.toml asks for, with the extras that make installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    return [Requirement(text) for text in texts]


def applies(requirement: Requirement, extras) -> bool:
    """Whether a requirement holds on this machine for a package that was asked for with these extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def versions() -> dict[str, str]:
    """Installed version of each package that is needed, and of what it needs in turn."""
    found, waiting, done = {}, [(requirement, ()) for requirement in asked()], set()
    while waiting:
        requirement, extras = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = name, frozenset(requirement.extras)
        if key in done or GPU.match(name) or not applies(requirement, extras):
            continue
        done.add(key)
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed: run make first, then this") from None
        found[name] = installed.version.partition("+")[0]  # 2.13.0+cpu is 2.13.0 elsewhere
        needs = map(Requirement, installed.requires or [])
        waiting += [(need, tuple(requirement.extras)) for need in needs]
    return found


def main():
    lines = [f"{name}=={version}\n" for name, version in sorted(versions().items())]
    with atomic(LOCK) as part:
        part.write_text(HEAD.format(*sys.version_info) + "".join(lines))
    print(f"{LOCK.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
