"""One on-disk layout, that of OpenNeuro ds003020 (LeBel et al. 2023), read into stories, responses, repeats and splits."""

from __future__ import annotations

import difflib
import json
import warnings
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd

from . import cortex
from .files import Story, n_columns, n_repeats, read_hf5, zscore
from .timing import TR_S

AUDIO_KINDS = (".wav", ".flac", ".ogg", ".mp3")
MIDDLE = "derivative"  # singular, as on OpenNeuro


def load(name: str = "fireside", root: str | Path | None = None, **options) -> Dataset:
    """Open a data set: ``"fireside"`` (embedded, simulated), ``"lebel2023"``, or any folder in the same layout.

    Parameters
    ----------
    name : str
        A known name, or the path of a folder that holds ``stimuli/`` and ``derivative/``. ``"lebel2023:brainwavlm"``
        is short for ``split="brainwavlm"``.
    root : path, optional
        Where a known data set lives or is to be made; the cache folder if left out.
    **options
        Passed to the data set's own ``open_dataset``: for fireside ``noise="clean"``, ``"scanner"`` or ``"null"``; for
        lebel2023 ``split="braintuning"`` or ``"brainwavlm"``, ``mirror``. For all: `subjects`, `every` (see `Dataset`).

    Returns
    -------
    ds : Dataset
    """
    name, _, split = name.partition(":") if name.startswith("lebel2023:") else (name, "", "")
    if split:
        options["split"] = split
    registered = {point.name: point for point in entry_points(group="brainlib.datasets")}
    if name in registered:
        return registered[name].load()(root, **options)
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no data set and no folder {name!r}; expected one of {sorted(registered)} or a folder with stimuli/ and {MIDDLE}/"
        )
    return Dataset(folder, **options)


class Dataset:
    """A tree in the layout of ds003020.

    Parameters
    ----------
    root : path
        Holds ``stimuli/<story>.<ext>``, ``derivative/TextGrids/<story>.TextGrid`` and
        ``derivative/preprocessed_data/<subject>/<story>.hf5``; ``derivative/respdict.json`` and
        ``dataset_description.json`` are used where they are.
    prepare : callable, optional
        Called as ``prepare(subjects, stories, what)`` before files are first read, with `what` some of "stimuli",
        "responses" and "cortex": builds or fetches them.
    description : dict, optional
        What ``dataset_description.json`` may say: `Name`, `Simulated`, `Subjects`, `Stories`, `Split`; goes before it.
    subjects : list of str, optional
        Only these; where the tree states no split, it is then of stories that all of them heard.
    voxel_step : int
        Keep one voxel in so many: of responses, ceilings, regions and surfaces. For a first look at a large cortex.
    """

    tr = TR_S

    def __init__(self, root, prepare=None, description=None, subjects=None, voxel_step: int = 1):
        self.root, self.voxel_step = Path(root), int(voxel_step)
        if self.voxel_step < 1:
            raise ValueError(f"voxel_step={voxel_step}; expected one voxel in 1, 2, 3, ...")
        self._prepare, self._ready = prepare, set()
        self.filled: dict[
            tuple[str, str], int
        ] = {}  # (subject, story): how many NaNs were replaced by 0
        described = self.root / "dataset_description.json"
        self.description = (json.loads(described.read_text()) if described.exists() else {}) | (
            description or {}
        )
        self.name = self.description.get("Name", self.root.name)
        self.simulated = bool(self.description.get("Simulated", False))
        counts = self.root / MIDDLE / "respdict.json"
        self._scan_trs = json.loads(counts.read_text()) if counts.exists() else {}
        there = (self.root / MIDDLE / "TextGrids").glob("[!.]*.TextGrid")
        self.stories = self.description.get("Stories") or sorted(p.stem for p in there)
        if not self.stories:
            raise FileNotFoundError(
                f"{self.root}: no TextGrids; expected {MIDDLE}/TextGrids/<story>.TextGrid"
            )
        found = sorted(
            p.name
            for p in (self.root / MIDDLE / "preprocessed_data").glob("*")
            if p.is_dir() and not p.name.startswith(".")
        )
        self.subjects = list(self.description.get("Subjects", found))
        subjects = [subjects] if isinstance(subjects, str) else subjects
        for subject in subjects or ():
            self._known(subject, self.subjects, "subject")
        self._asked, self.subjects = bool(subjects), list(subjects or self.subjects)

    def __repr__(self):
        kind = "simulated listeners" if self.simulated else "recordings"
        who = (
            ", ".join(self.subjects) if len(self.subjects) < 3 else f"{len(self.subjects)} subjects"
        )
        return f"Dataset({self.name!r}: {kind}, {who}, {len(self.stories)} stories)"

    # ---------------------------------------------------------------- stories
    def story(self, name: str) -> Story:
        """The story of that name; its audio and times are read when first used, and then kept.

        Unknown names are a KeyError; a missing or broken file is named when it is read.
        """
        self._known(name, self.stories, "story")
        return self._story(name)

    @lru_cache(maxsize=128)  # noqa: B019  a Dataset lives as long as its notebook
    def _story(self, name):
        paths = [self.root / "stimuli" / f"{name}{kind}" for kind in AUDIO_KINDS]
        audio = next((p for p in paths if p.exists() or p.is_symlink()), paths[0])
        rows = self._scan_trs.get(name)
        grid = self.root / MIDDLE / "TextGrids" / f"{name}.TextGrid"
        return Story(
            name,
            audio,
            grid,
            None if rows is None else rows - 20,
            lambda what: self.fetch([], [name], [what]),
        )

    @cached_property
    def split(self) -> dict[str, list[str]]:
        """Whole stories, disjoint: ``{"train": [...], "val": [...], "test": [...]}``.

        As the data set states it; else the test stories are those with the most repeats, the validation stories the
        other repeated ones, or the last two where nothing else was repeated (the last three, if nothing was).
        """
        if "Split" in self.description:
            return {k: list(v) for k, v in self.description["Split"].items()}
        self.fetch(self.subjects[:1], self.stories, ["responses"])
        asked = self.subjects if self._asked else self.subjects[:1]
        has = [s for s in self.stories if all(self._response_path(u, s).exists() for u in asked)]
        if not has:
            raise FileNotFoundError(f"{self.root}: no story that {asked} all have responses to")
        counts = {s: self.n_repeats(asked[0], s) for s in has}
        most = max(counts.values())
        test = [s for s in has if counts[s] == most] if most > 1 else has[-1:]
        rest = [s for s in has if s not in test]
        val = [s for s in rest if counts[s] > 1] or rest[-2:]
        return {"train": [s for s in rest if s not in val], "val": val, "test": test}

    # ---------------------------------------------------------------- responses
    def responses(self, subject: str, name: str, voxels=None, repeats=None) -> np.ndarray:
        """Responses of one subject to one story: (n_trs, n_voxels) float32, z-scored over the story, NaN-free.

        Parameters
        ----------
        voxels : indices or mask, optional
            Read only these columns; others never are in memory.
        repeats : indices or slice, optional
            Of a repeated story: the mean of these, instead of `data`.

        Raises
        ------
        KeyError
            Unknown subject or story.
        FileNotFoundError
            No response file.
        ValueError
            The file is empty, truncated or a git-annex pointer, or its rows do not fit the story's TRs.
        """
        if repeats is not None:
            return self._clean(self.repeats(subject, name, voxels)[repeats].mean(0), subject, name)
        data, path = self._read(subject, name, "data", voxels)
        return self._clean(
            data, subject, name, scaled=n_repeats(path) == 1
        )  # the mean of repeats has less spread than one

    def repeats(self, subject: str, name: str, voxels=None) -> np.ndarray:
        """Responses to each repeat of a repeated story: (n_repeats, n_trs, n_voxels), each z-scored. See `responses`.

        Warns where `data`, z-scored, is not their mean, z-scored: so it was found to be of UTS01 in an earlier release.

        Raises
        ------
        ValueError
            If the story was heard once.
        """
        repeats, path = self._read(subject, name, "individual_repeats", voxels)
        mean, data = repeats.mean(0), read_hf5(path, "data", self._columns(path, voxels))
        zscore(mean), zscore(data)
        other = int((np.abs(mean - data) > 0.02).any(0).sum())
        if other:
            told = f"{other} of {data.shape[1]} voxels, z-scored"
            warnings.warn(
                f"{subject} {name}: `data` is not the mean of `individual_repeats` ({told})",
                stacklevel=2,
            )
        return self._clean(repeats, subject, name)

    def n_repeats(self, subject: str, name: str) -> int:
        """How often a subject heard a story; reads no responses."""
        self.fetch([subject], [name], ["responses"])
        return n_repeats(self._response_path(subject, name))

    def _read(self, subject, name, key, voxels):
        self._known(subject, self.subjects, "subject")
        self._known(name, self.stories, "story")
        self.fetch([subject], [name], ["responses"])
        path = self._response_path(subject, name)
        data = read_hf5(path, key, self._columns(path, voxels))
        expected = len(self._story(name).tr_times)
        if data.shape[-2] != expected:
            raise ValueError(
                f"story {name!r}, {path}: {data.shape[-2]} response rows but {expected} TRs (scan less 20); was the audio cut, or the file another story's?"
            )
        return data, path

    def _columns(self, path, voxels):
        """Columns of a response file that hold some of the voxels kept."""
        if voxels is None:
            return slice(None, None, self.voxel_step)
        kept = np.arange(n_columns(path))[:: self.voxel_step]
        try:
            return kept[
                voxels
                if isinstance(voxels, slice)
                else np.asarray(voxels, None if len(voxels) else int)
            ]
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"{path}: {len(kept)} voxels; expected a mask of as many, indices of them, or a slice ({error})"
            ) from error

    def _clean(self, data, subject, name, scaled=False):
        bad, dead, far = zscore(data)
        if bad:
            self.filled[subject, name] = bad
            warnings.warn(
                f"{subject} {name}: {bad} NaN values replaced by 0 ({dead} voxels have no number at all)",
                stacklevel=3,
            )
        if scaled and far > 0.1:
            warnings.warn(
                f"{subject} {name}: responses were not z-scored (mean or spread off by {far:.2g}); done here",
                stacklevel=3,
            )
        return data

    def noise_ceiling(self, subject: str, split: str = "test", repeats=None) -> np.ndarray:
        """CC_max of each voxel in [0, 1], shape (n_voxels,): the mean over the repeated stories of a split (of some `repeats`)."""
        from .encoding import noise_ceiling

        ceilings = [
            noise_ceiling(self.repeats(subject, s)[slice(None) if repeats is None else repeats])
            for s in self.split[split]
        ]
        return np.mean(ceilings, axis=0)

    # ---------------------------------------------------------------- space and truth
    def rois(self, subject: str) -> dict[str, np.ndarray]:
        """Named regions as boolean masks of shape (n_voxels,); empty for a tree without them.

        Of ``derivative/rois/<subject>.npz``, or of the listener's own surfaces (see `cortex.REGIONS`).
        """
        try:
            given = self._extra(subject, "rois") or {
                k: v[:: self.voxel_step] for k, v in self._cortex(subject).regions.items()
            }
        except FileNotFoundError:
            return {}
        except ConnectionError as error:
            warnings.warn(f"no regions of {subject}: {error}", stacklevel=2)
            return {}
        return {k: v.astype(bool) for k, v in given.items()}

    def fsaverage5(self, subject: str):
        """Sparse matrix (20484, n_voxels) from voxels to the vertices of fsaverage5, left hemisphere first.

        Rows sum to one; those of vertices without a voxel are empty.

        Raises
        ------
        FileNotFoundError
            If this tree holds no surface.
        """
        given = self._extra(subject, "fsaverage5")
        if "vertices" in given:
            return cortex.from_vertices(given["vertices"])
        matrix = self._cortex(subject).matrix
        return matrix if self.voxel_step == 1 else cortex.thinned(matrix, self.voxel_step)

    def vertices(self, subject: str) -> np.ndarray:
        """fsaverage5 vertex of each voxel, shape (n_voxels,): left 0 to 10241, right 10242 to 20483, -1 for none."""
        given = self._extra(subject, "fsaverage5")
        return (
            given["vertices"]
            if "vertices" in given
            else self._cortex(subject).vertices[:: self.voxel_step]
        )

    @lru_cache(maxsize=16)  # noqa: B019
    def _cortex(self, subject):
        try:
            found = cortex.read(self.root, subject)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name}: no surface for {subject}, and no {MIDDLE}/fsaverage5/{subject}.npz ({error})"
            ) from error
        files = (self.root / MIDDLE / "preprocessed_data" / subject).glob("[!.]*.hf5")
        some = next((p for p in files if p.exists() and p.stat().st_size > 1000), None)
        columns = found.matrix.shape[1] if some is None else n_columns(some)
        if columns != found.matrix.shape[1]:
            raise ValueError(
                f"{some}: {columns} columns, but {subject}'s mask holds {found.matrix.shape[1]} voxels; is it another listener's?"
            )
        return found

    def truth(self, subject: str) -> pd.DataFrame:
        """What was planted in a simulated listener, one row a voxel: a column a level (share of the signal's variance),
        `snr` (signal's share of one repeat's variance), `hrf_peak` (seconds), `level` (the strongest, or "none").

        Raises
        ------
        ValueError
            For real recordings, whose truth nobody knows.
        """
        if not self.simulated:
            raise ValueError(
                f"{self.name} holds recordings: their truth is not known; use noise_ceiling instead"
            )
        table = pd.DataFrame(self._extra(subject, "truth"))
        levels = [c for c in table.columns if c not in ("snr", "hrf_peak")]
        names = np.array(levels)[table[levels].to_numpy().argmax(1)]
        return table.assign(level=np.where(table.snr > 0, names, "none"))

    def _extra(self, subject, kind):
        self._known(subject, self.subjects, "subject")
        self.fetch([subject], [], ["cortex"])
        path = self.root / MIDDLE / kind / f"{subject}.npz"
        return {k: v[:: self.voxel_step] for k, v in np.load(path).items()} if path.exists() else {}

    # ---------------------------------------------------------------- helpers
    def _response_path(self, subject, name):
        return self.root / MIDDLE / "preprocessed_data" / subject / f"{name}.hf5"

    def fetch(self, subjects, stories, what=("stimuli", "responses", "cortex")):
        """Bring (or build) what these subjects and stories need, in one go; done by itself, file by file, when left out."""
        subjects, stories = ([x] if isinstance(x, str) else list(x) for x in (subjects, stories))
        wanted = {
            (kind, subject, story)
            for kind in what
            for subject in [*subjects, ""]
            for story in [*stories, ""]
        } - self._ready
        if self._prepare is not None and wanted:
            self._prepare(subjects, stories, list(what))
        self._ready |= wanted

    def _known(self, name, known, what):
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 3, 0.5)
            raise KeyError(
                f"{self.name} has no {what} {name!r}; "
                + (f"did you mean {close}?" if close else f"it has {known}")
            )
