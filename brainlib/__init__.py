"""brainlib: from spoken stories and fMRI to brain-tuned speech models; the thin helper behind the book.

`brainlib.__all__` lists the files in the order in which data flows: a file imports only from files before it. Nothing
heavy is imported until it is used.
"""

import importlib

__version__ = "0.1.0"
__all__ = [
    "runtime",
    "timing",
    "surface",
    "cortex",
    "files",
    "encoding",
    "lowlevel",
    "stories",
    "datasets",
    "lebel",
    "adapters",
    "families",
    "windows",
    "speech",
    "scores",
    "recipes",
    "evaluation",
    "network",
    "training",
    "saving",
    "tuning",
    "ablation",
    "probes",
    "tasks",
    "corpora",
    "inside",
    "results",
]


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"brainlib.{name}")
    raise AttributeError(f"module 'brainlib' has no attribute {name!r}")
