"""fireside: spoken stories written for this book, and *simulated* subjects whose cortex follows known features of them.

The package registers itself with brainlib by the entry point ``brainlib.datasets``; ``brainlib.datasets.load("fireside")``
opens it. It can also serve to test encoding methods without the book.
"""

from .simulation import (
    LEVELS,
    SUBJECTS,
    VERSION,
    build,
    embedded_story,
    hrf,
    level_features,
    open_dataset,
    word_vectors,
)

__all__ = [
    "LEVELS",
    "SUBJECTS",
    "VERSION",
    "build",
    "embedded_story",
    "hrf",
    "level_features",
    "open_dataset",
    "word_vectors",
]
