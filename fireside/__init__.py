"""fireside: spoken stories written for this book, and *simulated* subjects whose cortex follows known features of them.

The package registers itself with brainlib by the entry point ``brainlib.datasets``; ``brainlib.datasets.load("fireside")``
opens it. It can also serve to test encoding methods without the book.
"""

from .bounds import bounds
from .levels import (
    LEVELS,
    driving_features,
    embedded_story,
    hrf,
    log_rank,
    unheard_share,
    vectors,
    word_vectors,
)
from .probe import probe_set
from .sentences import sentences, topics
from .simulation import (
    FOOLING,
    PROJECT,
    SUBJECTS,
    VERSION,
    best_transfer,
    build,
    dimensions,
    level_features,
    level_parts,
    open_dataset,
    without_levels,
)

__all__ = [
    "FOOLING",
    "LEVELS",
    "PROJECT",
    "SUBJECTS",
    "VERSION",
    "best_transfer",
    "bounds",
    "build",
    "dimensions",
    "embedded_story",
    "hrf",
    "level_features",
    "level_parts",
    "driving_features",
    "log_rank",
    "open_dataset",
    "probe_set",
    "sentences",
    "topics",
    "unheard_share",
    "vectors",
    "without_levels",
    "word_vectors",
]
