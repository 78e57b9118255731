"""brainlib: from spoken stories and fMRI to brain-tuned speech models; the thin helper behind the book.

Modules, in the order in which data flows: `runtime`, `timing`, `files`, `encoding`, `lowlevel`, `cortex`, `datasets`, `lebel`, `adapters`, `speech`, `scores`, `surface`, `results`, `recipes`, `evaluation`, `network`, `tuning`. Each is short enough to read; nothing heavy is imported until it is used.
"""

import importlib

__version__ = "0.1.0"
__all__ = [
    "adapters",
    "cortex",
    "datasets",
    "encoding",
    "files",
    "evaluation",
    "lebel",
    "lowlevel",
    "network",
    "recipes",
    "results",
    "runtime",
    "scores",
    "speech",
    "surface",
    "timing",
    "tuning",
]


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"brainlib.{name}")
    raise AttributeError(f"module 'brainlib' has no attribute {name!r}")
