"""Downstream tasks in the manner of SUPERB (Yang et al. 2021): a frozen speech model, a learnt mix of its layers, a small head.

A task is data (`TASKS`). `evaluate_task` trains its head on training items, chooses learning rate and epoch on validation
items, and scores the test items once per seed. Items are words or sentences with their hidden states of all layers.
"""

import copy
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import accuracy_score, f1_score, roc_curve

from .lowlevel import LETTERS, PHONES
from .runtime import require

PARTS = ("train", "val", "test")
LEARNING_RATES = (0.01, 0.03, 0.1)  # of Adam; one is chosen on validation items
CTC_RATES = (0.01,)  # better than 0.02 and 0.03 on the validation items of whisper-tiny.en
BATCH = 16  # sentences, where every frame counts
STEPS = 5  # of all items at once, where they do not: an epoch
CHARACTERS = [*LETTERS, "'", " "]
ERRORS = ("PER", "WER", "EER")  # metrics of which less is better


@dataclass(frozen=True)
class Task:
    """What a head is asked, and how its answers are scored.

    Attributes
    ----------
    name : str
    level : {"voice", "phonetic", "lexical", "semantic"}
        What of speech it is about.
    kind : {"class", "presence", "symbols", "pairs"}
        One class per item; several that are present or not; a sequence of symbols (CTC); or whether two items are of one
        class that training did not have.
    metric : {"F1", "accuracy", "PER", "WER", "EER"}
        F1 is the mean over classes.
    unit : {"word", "sentence", "frames"}
        States of an item: means over a word or sentence, or all frames of a sentence.
    epochs : int
        At most.
    pool : int
        Frames that are to be averaged to one before, where frames count.
    alphabet : tuple of str
        Symbols of a sequence; empty: letters for WER, else fireside's phonemes. Of a corpus: ``table.attrs["labels"]``.
    """

    name: str
    level: str
    kind: str
    metric: str
    unit: str
    epochs: int = 20
    pool: int = 1
    alphabet: tuple[str, ...] = ()

    @property
    def rates(self) -> tuple[float, ...]:
        """Learning rates to choose from."""
        return CTC_RATES if self.kind == "symbols" else LEARNING_RATES

    @property
    def sign(self) -> int:
        """1 if more is better, -1 for error rates."""
        return -1 if self.metric in ERRORS else 1

    @property
    def symbols(self) -> list[str]:
        """That a sequence is made of."""
        return list(self.alphabet) or (CHARACTERS if self.metric == "WER" else PHONES)


TASKS = {
    task.name: task
    for task in (
        Task("speaker identification", "voice", "class", "accuracy", "word"),
        Task("speaker verification", "voice", "pairs", "EER", "sentence"),
        Task("phoneme recognition", "phonetic", "symbols", "PER", "frames", epochs=12, pool=2),
        Task("phoneme presence", "phonetic", "presence", "F1", "sentence"),
        Task("word recognition", "lexical", "symbols", "WER", "frames", epochs=12),
        Task("word identification", "lexical", "class", "F1", "word"),
        Task("sentence type", "semantic", "class", "F1", "sentence"),
        Task("sentence topic", "semantic", "class", "F1", "sentence"),
    )
}


# ------------------------------------------------------------------ items
def phrases(words: pd.DataFrame, *, pause: float = 0.3, longest: float = 8.0) -> pd.DataFrame:
    """Stretches between pauses, for recordings whose text has no punctuation.

    Parameters
    ----------
    words : DataFrame
        Columns `start`, `end` and `text`, in order.
    pause : float
        Seconds of silence that end a phrase.
    longest : float
        Seconds; a phrase that would get longer ends before.

    Returns
    -------
    table : DataFrame
        `start`, `end`, `text` (words with spaces between) and `n_words` of each phrase.
    """
    number, began, before = [], None, None
    for start, end in zip(words.start, words.end):
        new = before is None or start - before > pause or end - began > longest
        began = start if new else began
        number.append(int(new))
        before = end
    groups = words.groupby(np.cumsum(number))
    columns = {"start": groups.start.first(), "end": groups.end.last()}
    columns |= {"text": groups.text.agg(" ".join), "n_words": groups.size()}
    return pd.DataFrame(columns).reset_index(drop=True)


# ------------------------------------------------------------------ head
class MixedHead(torch.nn.Module):
    """A softmax-weighted sum of layers, as transformers' ``use_weighted_layer_sum``, and a linear map.

    Parameters
    ----------
    n_layers, width, n_out : int
    """

    def __init__(self, n_layers: int, width: int, *, n_out: int):
        super().__init__()
        self.layer_weights = torch.nn.Parameter(torch.zeros(n_layers))  # all alike at first
        self.linear = torch.nn.Linear(width, n_out)

    def mix(self) -> torch.Tensor:
        """Weight of each layer, (n_layers,); their sum is 1."""
        return self.layer_weights.softmax(0)

    def mixed(self, states):
        """(n_layers, n, width) to (n, width)."""
        return torch.tensordot(self.mix(), states, 1)

    def forward(self, states):
        """(n_layers, n, width) to (n, n_out)."""
        return self.linear(self.mixed(states))


# ------------------------------------------------------------------ metrics
def greedy_decode(best, *, blank: int = 0) -> list[int]:
    """CTC's best path (Graves et al. 2006): equal neighbours become one, then blanks go.

    Parameters
    ----------
    best : sequence of int
        Most probable symbol of each frame.
    blank : int
    """
    kept = [a for a, b in zip(best, [None, *best[:-1]]) if a != b]
    return [int(a) for a in kept if a != blank]


def error_rate(truth, guesses) -> float:
    """Substitutions, deletions and insertions per true symbol, over all items together: `jiwer`'s word error rate.

    Parameters
    ----------
    truth, guesses : lists of lists of str
        Symbols must hold no space.
    """
    import jiwer

    return jiwer.wer([" ".join(x) for x in truth], [" ".join(x) for x in guesses])


def equal_error_rate(same, scores) -> float:
    """Where false acceptances are as frequent as false rejections.

    Parameters
    ----------
    same : boolean array of shape (n_pairs,)
        Whether both are of one class.
    scores : array of shape (n_pairs,)
        Higher: more alike.
    """
    false_accept, true_accept, _ = roc_curve(same, scores, drop_intermediate=False)
    gap = false_accept - (1 - true_accept)  # rises from -1 to 1
    return float(np.interp(0, gap, false_accept))


class _Classes:
    """One class per item."""

    def __init__(self, task, targets):
        self.task, self.labels = task, sorted(set(targets))
        self.n_out = len(self.labels)
        require(self.n_out > 1, f"{task.name}: one class, {self.labels}; expected two or more")
        counts = pd.Series(targets).value_counts()[self.labels].to_numpy()
        self.weights = torch.tensor(len(targets) / (self.n_out * counts), dtype=torch.float32)

    def encode(self, targets):
        unknown = sorted(set(targets) - set(self.labels))
        require(not unknown, f"{self.task.name}: {unknown} not among the training items' classes")
        return torch.tensor([self.labels.index(x) for x in targets])

    def loss(self, logits, target):
        return torch.nn.functional.cross_entropy(logits, target, weight=self.weights)

    def guess(self, logits):
        return [self.labels[i] for i in logits.argmax(-1)]

    def score(self, truth, guesses):
        if self.task.metric != "F1":
            return accuracy_score(truth, guesses)
        return f1_score(truth, guesses, labels=sorted(set(truth)), average="macro")


class _Presence:
    """Several classes that are each present or not: targets are rows of zeros and ones."""

    def __init__(self, task, targets):
        targets = np.stack(targets)
        require(np.isin(targets, (0, 1)).all(), f"{task.name}: targets other than 0 and 1")
        self.n_out = targets.shape[1]
        present = targets.mean(0).clip(0.5 / len(targets), 1 - 0.5 / len(targets))
        self.weights = torch.tensor((1 - present) / present, dtype=torch.float32)

    def encode(self, targets):
        return torch.tensor(np.stack(targets), dtype=torch.float32)

    def loss(self, logits, target):
        lost = torch.nn.functional.binary_cross_entropy_with_logits
        return lost(logits, target, pos_weight=self.weights)

    def guess(self, logits):
        return (logits > 0).numpy().astype(int)

    def score(self, truth, guesses):
        truth, guesses = np.stack(truth), np.stack(guesses)
        some = truth.any(0)  # a class that is never there has no F1
        if not some.any():
            return np.nan
        return f1_score(truth[:, some], guesses[:, some], average="macro", zero_division=0)


class _Symbols:
    """A sequence of symbols by connectionist temporal classification; the blank is 0."""

    def __init__(self, task, targets):
        self.task, self.n_out = task, 1 + len(task.symbols)

    def encode(self, targets):
        number = {x: i for i, x in enumerate(self.task.symbols, 1)}
        unknown = sorted({x for target in targets for x in target} - set(number))
        require(not unknown, f"{self.task.name}: symbols {unknown}; expected {self.task.symbols}")
        return [torch.tensor([number[x] for x in target]) for target in targets]

    def loss(self, logits, target):
        lengths = [len(x) for x in logits]
        padded = torch.nn.utils.rnn.pad_sequence(logits)  # (n_frames, n, n_out)
        return torch.nn.functional.ctc_loss(
            padded.log_softmax(-1),
            torch.cat(target),
            torch.tensor(lengths),
            torch.tensor([len(x) for x in target]),
            zero_infinity=True,  # a sentence spoken faster than frames come
        )

    def guess(self, logits):
        best = [greedy_decode(x.argmax(-1).tolist()) for x in logits]
        return [[self.task.symbols[i - 1] for i in x] for x in best]

    def score(self, truth, guesses):
        if self.task.metric == "WER":
            truth, guesses = (["".join(x).split() for x in some] for some in (truth, guesses))
        return error_rate(truth, guesses)


KINDS = {"class": _Classes, "pairs": _Classes, "presence": _Presence, "symbols": _Symbols}


# ------------------------------------------------------------------ training
@dataclass
class _Batch:
    """Items whose states lie side by side: (n_layers, n, width), of items or of their frames one after another."""

    states: torch.Tensor
    rows: np.ndarray
    lengths: list | None = None  # frames of each item

    def of(self, function):
        """A function of the states, (n, n_out); if frames count, a list of (n_frames, n_out)."""
        values = function(self.states)
        return values if self.lengths is None else values.split(self.lengths)


class _States:
    """States of items, which come out z-scored on the training items."""

    def __init__(self, task, states, rows):
        self.frames = task.unit == "frames"
        self.all = [torch.from_numpy(np.asarray(x)) for x in states]
        train = (torch.cat if self.frames else torch.stack)([self.all[i] for i in rows]).float()
        self.mean, self.scale = train.mean(0), train.std(0).clamp(min=1e-6)  # (n_layers, width)

    def batch(self, rows) -> _Batch:
        some = [(self.all[i].float() - self.mean) / self.scale for i in rows]
        if self.frames:
            return _Batch(torch.cat(some).movedim(1, 0).contiguous(), rows, [len(x) for x in some])
        return _Batch(torch.stack(some, 1), rows)

    def batches(self, rows) -> list[_Batch]:
        """All items at once, or some sentences at a time, those of like length together."""
        if not self.frames:
            return [self.batch(rows)]
        rows = rows[np.argsort([len(self.all[i]) for i in rows], kind="stable")]
        return [self.batch(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]


def _evaluate(kind, head, *, batches, targets):
    """Guesses and targets of all items of some batches, their rows, and the mean loss of a batch."""
    guesses, losses = [], []
    rows = np.concatenate([batch.rows for batch in batches])
    with torch.no_grad():
        for batch in batches:
            logits = batch.of(head)
            guesses += list(kind.guess(logits))
            losses.append(kind.loss(logits, kind.encode([targets[i] for i in batch.rows])))
    return guesses, [targets[i] for i in rows], rows, float(np.mean(losses))


def _fit(task, kind, *, batches, targets, seed, lr) -> tuple:
    """Train a head on the batches of part "train".

    Head, value and number of its best epoch on the validation items; where scores are alike, that of the least loss.
    """
    n_layers, _, width = batches["train"][0].states.shape
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = MixedHead(n_layers, width, n_out=kind.n_out)
    optimizer, best = torch.optim.Adam(head.parameters(), lr), None
    wanted = [kind.encode([targets[i] for i in batch.rows]) for batch in batches["train"]]
    for epoch in range(1, task.epochs + 1):
        steps = order.permutation(len(wanted)) if len(wanted) > 1 else [0] * STEPS
        for i in steps:
            loss = kind.loss(batches["train"][i].of(head), wanted[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        guesses, truth, _, lost = _evaluate(kind, head, batches=batches["val"], targets=targets)
        score = kind.score(truth, guesses)  # of pairs, how well the known classes are told apart
        value = -score if task.kind == "symbols" else score, -lost
        if best is None or value > best[1]:
            best = copy.deepcopy(head), value, epoch
    return best


# ------------------------------------------------------------------ evaluation
def evaluate_task(task, states, table, *, seeds=(0, 1, 2), learning_rates=None) -> dict:
    """Train heads on frozen states, and score them on test items that no choice has seen.

    Parameters
    ----------
    task : Task or str
        A name of `TASKS`.
    states : array of shape (n, n_layers, width), or list of n arrays of shape (n_frames, n_layers, width)
        Of each item; the latter where the unit is "frames".
    table : DataFrame of n rows
        `part` ("train", "val" or "test"), `story`, and `target`: a class; a row of zeros and ones; or a sequence of symbols.
    seeds : sequence of int
        Each gives the head other initial weights and another order of batches.
    learning_rates : sequence of float
        The one that is best on the validation items with the first seed is taken; `task.rates` if left out.

    Returns
    -------
    result : dict
        `metric`; `scores`, one per seed; `stories`, the same for each test story by name (for pairs, each class); `mix`,
        the weights of the layers per seed; `learning_rate`; `epochs`, the chosen one per seed; `n`, items by part.

    Raises
    ------
    ValueError
        If a part has no items, training has a single class, or other items have classes or symbols that it lacks.

    Notes
    -----
    For pairs, each class in turn is unknown to training: the head learns to tell the others, and its rate and epoch are
    those at which it tells them best. A pair is a validation item of this class with any test item, so always of two
    stories; its score is the cosine of the two mixed states, without the linear map. The threshold of an equal error rate
    is, by definition, found on the pairs that are scored.
    """
    task = TASKS[task] if isinstance(task, str) else task
    part = table.part.to_numpy()
    n = {name: int((part == name).sum()) for name in PARTS}
    others = sorted(set(part) - set(PARTS))
    require(all(n.values()) and not others, f"{task.name}: items {n}, other parts {others}")
    require(len(states) == len(table), f"{task.name}: {len(states)} states, {len(table)} items")
    wrong = sum(not np.isfinite(np.asarray(x, np.float32)).all() for x in states)
    require(not wrong, f"{task.name}: states of {wrong} items hold NaN or infinity")
    states = _States(task, states, np.flatnonzero(part == "train"))
    run = (_pairs if task.kind == "pairs" else _items)(task, states, table)
    tried = {lr: run(seeds[0], lr) for lr in learning_rates or task.rates}
    lr = max(tried, key=lambda rate: tried[rate]["value"])
    runs = [tried[lr], *(run(seed, lr) for seed in seeds[1:])]
    return {
        "metric": task.metric,
        "scores": [one["score"] for one in runs],
        "stories": {k: [one["stories"][k] for one in runs] for k in runs[0]["stories"]},
        "mix": [one["mix"] for one in runs],
        "learning_rate": lr,
        "epochs": [one["epoch"] for one in runs],
        "n": n,
    }


def _made(task, targets, part):
    """What the kind of a task needs to know of its training items."""
    train = [x for x, name in zip(targets, part) if name == "train"]
    return KINDS[task.kind](task, train)


def _items(task, states, table):
    """A function of seed and learning rate: one run of a task whose items are scored one by one."""
    part, targets, stories = table.part.to_numpy(), list(table.target), table.story.to_numpy()
    batches = {name: states.batches(np.flatnonzero(part == name)) for name in PARTS}
    kind = _made(task, targets, part)

    def run(seed, lr):
        head, value, epoch = _fit(task, kind, batches=batches, targets=targets, seed=seed, lr=lr)
        guesses, truth, rows, _ = _evaluate(kind, head, batches=batches["test"], targets=targets)

        def score(at):
            return kind.score([truth[i] for i in at], [guesses[i] for i in at])

        told = {name: np.flatnonzero(stories[rows] == name) for name in sorted(set(stories[rows]))}
        return {
            "score": score(range(len(rows))),
            "stories": {name: score(at) for name, at in told.items()},
            "mix": head.mix().tolist(),
            "value": value,
            "epoch": epoch,
        }

    return run


def _pairs(task, states, table):
    """A function of seed and learning rate: one run of verification, in which each class in turn is unknown to training."""
    part, targets = table.part.to_numpy(), table.target.to_numpy()
    classes = sorted(set(targets[part == "test"]))
    lacking = [name for name in classes if not any((part == "val") & (targets == name))]
    require(not lacking, f"{task.name}: {lacking} have test but no validation items")
    require(len(classes) > 1, f"{task.name}: test items of {classes} alone; expected two or more")

    def leave_out(name, seed, lr):
        known = targets != name
        rows = {k: np.flatnonzero((part == k) & known) for k in ("train", "val")}
        batches = {k: states.batches(at) for k, at in rows.items()}
        kind = _made(task, targets[known], part[known])
        head, value, epoch = _fit(task, kind, batches=batches, targets=targets, seed=seed, lr=lr)
        ends = np.flatnonzero((part == "val") & ~known), np.flatnonzero(part == "test")
        with torch.no_grad():
            a, b = (states.batch(at).of(head.mixed) for at in ends)
        score = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
        same = np.broadcast_to(targets[ends[1]] == name, score.shape)
        return head, value, epoch, equal_error_rate(same.ravel(), score.numpy().ravel())

    def run(seed, lr):
        heads, values, epochs, rates = zip(*(leave_out(name, seed, lr) for name in classes))
        return {
            "score": float(np.mean(rates)),
            "stories": dict(zip(classes, rates)),
            "mix": torch.stack([head.mix() for head in heads]).mean(0).tolist(),
            "value": tuple(np.mean(values, axis=0)),
            "epoch": float(np.mean(epochs)),
        }

    return run


def chance_level(task, table, *, seeds=(0, 1, 2)) -> float:
    """Mean score of heads on states that hold nothing: noise in place of the states of each item.

    Parameters
    ----------
    task : Task or str
    table : DataFrame
        As in `evaluate_task`.
    seeds : sequence of int

    Returns
    -------
    level : float
        For sequences of symbols 1, the error rate of an empty answer.
    """
    task = TASKS[task] if isinstance(task, str) else task
    if task.kind == "symbols":
        return 1.0
    scores = []
    for seed in seeds:
        noise = np.random.default_rng(seed).standard_normal((len(table), 1, 16))
        found = evaluate_task(task, noise, table, seeds=[seed], learning_rates=task.rates[:1])
        scores += found["scores"]
    return float(np.mean(scores))
