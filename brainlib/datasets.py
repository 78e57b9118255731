"""One on-disk layout, that of OpenNeuro ds003020 (LeBel et al. 2023), read into stories, responses, regions and splits.

`Tree` knows which files there are and when their rows were recorded; `Responses` reads the brain data, `Anatomy` the place
of each voxel; `Dataset` is all of them, with the split and what is computed over it.
"""

from __future__ import annotations

import difflib
import warnings
from functools import cached_property, lru_cache
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pandas as pd

from . import cortex, encoding
from .files import hf5_shape, read_hf5, zscore
from .runtime import read_arrays, read_json, reading, require
from .stories import Story
from .surface import N_VERTICES
from .timing import DS003020, Clock

AUDIO_KINDS = (".wav", ".flac", ".ogg", ".mp3")
DERIVATIVE = "derivative"  # singular, as on OpenNeuro
RESPONSES = "preprocessed_data"
DESCRIBES = "what a data set says of itself"  # dataset_description.json
IN_A_TABLE = {  # derivative/<folder>/<subject>.npz: what its arrays hold, and whether they do
    "rois": ("True or False", lambda x: np.isin(x, (0, 1)).all()),
    "fsaverage5": (
        "vertices of fsaverage5, or -1",
        lambda x: x.dtype.kind in "iu" and np.all((x >= -1) & (x < 2 * N_VERTICES)),
    ),
    "truth": ("finite numbers", lambda x: np.isfinite(x).all()),
}
NOT_LEVELS = ("snr", "hrf_peak", "shared")  # columns of a simulated subject's truth


def load(
    name: str = "fireside",
    root: str | Path | None = None,
    *,
    subjects=None,
    voxel_step: int = 1,
    **options,
) -> Dataset:
    """Open a data set: ``"fireside"`` (embedded, simulated), ``"lebel2023"``, or any folder in the same layout.

    Parameters
    ----------
    name : str
        A data set that is registered under the entry point group ``brainlib.datasets``, or the path of a folder that
        holds ``stimuli/`` and ``derivative/``. ``"lebel2023:brainwavlm"`` is short for ``split="brainwavlm"``.
    root : path, optional
        Where a registered data set lives or is to be made; the cache folder if left out.
    subjects, voxel_step
        See `Dataset`.
    **options
        Passed to the data set's own ``open_dataset``: for fireside ``noise="clean"``, ``"scanner"`` or ``"null"``; for
        lebel2023 ``split="braintuning"`` or ``"brainwavlm"``, ``mirror``.

    Returns
    -------
    ds : Dataset

    Raises
    ------
    FileNotFoundError
        If no data set and no folder has this name.
    """
    options |= {"subjects": subjects, "voxel_step": voxel_step}
    registered = {point.name: point for point in entry_points(group="brainlib.datasets")}
    base, _, split = name.partition(":")
    if base in registered:
        if split:
            options["split"] = split
        return registered[base].load()(root, **options)
    folder = Path(name).expanduser()
    require(
        folder.is_dir(),
        f"no data set and no folder {name!r}; expected one of {sorted(registered)} or a folder with "
        f"stimuli/ and {DERIVATIVE}/",
        kind=FileNotFoundError,
    )
    return Dataset(folder, **options)


def as_list(names) -> list:
    """One name, or several, as a list."""
    return [names] if isinstance(names, str) else list(names)


def chosen(names, known, *, what: str, of: str) -> list[str]:
    """A choice of subjects or stories as a list: one name or several, all that are known for None.

    Raises
    ------
    ValueError
        For none at all, and for one that comes twice.
    KeyError
        For one that is not known; close ones are suggested.
    """
    names = as_list(known if names is None else names)
    require(
        names and len(set(names)) == len(names),
        f"{of}: each {what} of {names}; expected at least one, and none twice (leave it out for all)",
    )
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, 3, 0.5)
            hint = f"did you mean {close}?" if close else f"it has {list(known)}"
            raise KeyError(f"{of} has no {what} {name!r}; {hint}")
    return names


def read_clock(description: dict, *, path: Path) -> Clock:
    """TR, first row and trimming of a ``dataset_description.json``; what it does not state is as in ds003020.

    Raises
    ------
    ValueError
        For values that are no such numbers.
    """
    tr = description.get("RepetitionTime", DS003020.tr)
    first = description.get("FirstRowTime", DS003020.first)
    trimmed = description.get("VolumesTrimmed", list(DS003020.trimmed))
    valid_times = all(isinstance(x, (int, float)) for x in (tr, first)) and tr > 0
    pair = isinstance(trimmed, (list, tuple)) and len(trimmed) == 2
    require(
        valid_times and pair and all(isinstance(n, int) and n >= 0 for n in trimmed),
        f"{path}: RepetitionTime {tr!r}, FirstRowTime {first!r}, VolumesTrimmed {trimmed!r}; expected "
        "seconds above 0, seconds after sound onset, and [volumes cut at the start, at the end]",
    )
    if tr != DS003020.tr and "FirstRowTime" not in description:
        warnings.warn(
            f"{path}: RepetitionTime {tr:g} s without FirstRowTime; row 0 is taken to be centred {first:g} s "
            "after sound onset, as in ds003020: state it",
            stacklevel=3,
        )
    return Clock(float(tr), float(first), tuple(trimmed))


class Tree:
    """Which stories and subjects a folder holds, where their files are, and when their rows were recorded."""

    def __init__(self, root, *, prepare=None, description=None, subjects=None, voxel_step: int = 1):
        self.root = Path(root)
        self.voxel_step = int(voxel_step)
        require(
            self.voxel_step >= 1,
            f"voxel_step={voxel_step}; expected one voxel in 1, 2, 3, ...",
        )
        self._prepare = prepare
        self._fetched = set()
        self._n_columns = {}  # subject: the first response file that was read, and its columns
        self.filled: dict[tuple[str, str], int] = {}  # (subject, story): NaNs replaced by 0
        path = self.root / "dataset_description.json"
        self.description = read_json(path, DESCRIBES) if path.exists() else {}
        self.description |= description or {}
        self.name = self.description.get("Name", self.root.name)
        self.simulated = self.description.get("Simulated", False)
        require(
            isinstance(self.simulated, bool),
            f"{path}: Simulated is {self.simulated!r}; expected true or false",
        )
        self.clock = read_clock(self.description, path=path)
        self.tr = self.clock.tr  # seconds from one response row to the next
        volumes = self.root / DERIVATIVE / "respdict.json"
        stated = read_json(volumes, "volumes per story") if volumes.exists() else {}
        with reading(volumes, "volumes per story"):
            self._volumes = {story: int(n) for story, n in stated.items()}
        self.stories = as_list(self.description.get("Stories") or self._stories_on_disk())
        self.subjects = as_list(self.description.get("Subjects") or self._subjects_on_disk())
        self._all_subjects = subjects is None
        self.subjects = chosen(subjects, self.subjects, what="subject", of=self.name)

    def _stories_on_disk(self) -> list[str]:
        """Stories with a TextGrid, or with both sound and responses; all sounds without any of these."""
        grids = {p.stem for p in (self.root / DERIVATIVE / "TextGrids").glob("[!.]*.TextGrid")}
        files = (self.root / "stimuli").glob("[!.]*")
        sounds = {p.stem for p in files if p.suffix in AUDIO_KINDS}
        recorded = {p.stem for p in (self.root / DERIVATIVE / RESPONSES).glob("*/[!.]*.hf5")}
        stories = sorted(grids | (sounds & recorded)) or sorted(sounds)
        require(
            stories,
            f"{self.root}: no stories; expected stimuli/<story>.wav (or .flac, .ogg, .mp3), and "
            f"{DERIVATIVE}/TextGrids/<story>.TextGrid where words are known",
            kind=FileNotFoundError,
        )
        return stories

    def _subjects_on_disk(self) -> list[str]:
        folders = (self.root / DERIVATIVE / RESPONSES).glob("[!.]*")
        return sorted(p.name for p in folders if p.is_dir())

    def story(self, name: str) -> Story:
        """The story of that name; its audio and times are read when first used, and then stay in memory.

        Unknown names are a KeyError; a missing or broken file is named when it is read.
        """
        self._check_name(name, self.stories, "story")
        return self._story(name)

    @lru_cache(maxsize=128)  # noqa: B019  a Dataset lives as long as its notebook
    def _story(self, name):
        paths = [self.root / "stimuli" / f"{name}{kind}" for kind in AUDIO_KINDS]
        return Story(
            name,
            next((p for p in paths if p.exists() or p.is_symlink()), paths[0]),
            grid_path=self.root / DERIVATIVE / "TextGrids" / f"{name}.TextGrid",
            n_rows=lambda: self._n_rows(name),
            clock=self.clock,
            volumes=self._volumes.get(name),
            prepare=lambda what: self.fetch([], [name], what=[what]),
        )

    def has_words(self, story: str) -> bool:
        """Whether a story has a TextGrid, that is words and phonemes with times."""
        self._check_name(story, self.stories, "story")
        self.fetch([], [story], what=["textgrids"])
        return self._story(story).grid_path.exists()

    def _n_rows(self, story) -> int:
        """Rows of a story: its volumes less the trimming, or those of the first response file where none are stated."""
        if story in self._volumes:
            return self._volumes[story] - sum(self.clock.trimmed)
        self.fetch(self.subjects[:1], [story], what=["responses"])
        paths = [self._response_path(subject, story) for subject in self.subjects]
        path = next((p for p in paths if p.exists()), None)
        require(
            path is not None,
            f"story {story!r}: no number of volumes in {DERIVATIVE}/respdict.json and no response file of "
            f"{self.subjects}; expected one of them, to know its TRs",
            kind=FileNotFoundError,
        )
        return hf5_shape(path)[1]

    def _response_path(self, subject, story) -> Path:
        return self.root / DERIVATIVE / RESPONSES / subject / f"{story}.hf5"

    def fetch(self, subjects, stories, *, what=("stimuli", "responses", "cortex")):
        """Bring (or build) what these subjects and stories need, in one go; if left out, files come one by one as they are read.

        Parameters
        ----------
        subjects, stories : str or list of str
        what : subset of {"stimuli", "textgrids", "responses", "cortex"}
        """
        subjects, stories = as_list(subjects), as_list(stories)
        pairs = [(subject, story) for subject in [*subjects, ""] for story in [*stories, ""]]
        missing = {(kind, *pair) for kind in what for pair in pairs} - self._fetched
        if self._prepare is not None and missing:
            self._prepare(subjects, stories, list(what))
        self._fetched |= missing

    def _check_name(self, name, names, kind):
        chosen([name], names, what=kind, of=self.name)


class Responses(Tree):
    """Reads response files: checked against the story's clock, z-scored per story, without NaN."""

    def responses(
        self, subject: str, story: str, *, voxels=None, repeats=None, noise_free: bool = False
    ) -> np.ndarray:
        """Responses of one subject to one story: (n_trs, n_voxels) float32, z-scored over the story, NaN-free.

        Parameters
        ----------
        voxels : indices or mask, optional
            Read only these columns; others never are in memory.
        repeats : indices or slice, optional
            Of a repeated story: the mean of these repeats, instead of `data`.
        noise_free : bool
            Of simulated subjects: the signal that all repeats share, without noise; zeros where nothing drives a voxel.

        Raises
        ------
        KeyError
            Unknown subject or story.
        FileNotFoundError
            No response file.
        ValueError
            The file is empty, truncated or a git-annex pointer, or its rows do not fit the story's TRs or sound; or
            the responses are recordings, which are never without noise.
        """
        if noise_free:
            self._check_simulated("noise-free responses are")
            signal, _ = self._read(subject, story, "noise_free", voxels)
            return self._zscored(signal, subject, story)
        if repeats is not None:
            mean = self.repeats(subject, story, voxels=voxels)[repeats].mean(0)
            return self._zscored(mean, subject, story)
        data, path = self._read(subject, story, "data", voxels)
        once = hf5_shape(path)[0] == 1  # the mean of repeats has less spread than one
        data = self._zscored(data, subject, story, warn_unscaled=once)
        if data.size and not data.any():
            warnings.warn(f"{path}: no voxel varies; its responses are all 0", stacklevel=2)
        return data

    def _check_simulated(self, what):
        require(
            self.simulated,
            f"{self.name} holds recordings: their {what} not known; a noise ceiling says what noise permits",
        )

    def repeats(self, subject: str, story: str, *, voxels=None) -> np.ndarray:
        """Responses to each repeat of a repeated story: (n_repeats, n_trs, n_voxels), each z-scored. See `responses`.

        Warns where `data`, z-scored, is not their mean, z-scored (so it was in UTS01 of an earlier release).

        Raises
        ------
        ValueError
            If the story was presented once.
        """
        repeats, path = self._read(subject, story, "individual_repeats", voxels)
        mean = repeats.mean(0)
        data = read_hf5(path, "data", columns=self._columns(path, voxels))
        zscore(mean)
        zscore(data)
        n_other = int((np.abs(mean - data) > 0.02).any(0).sum())
        if n_other:
            warnings.warn(
                f"{subject} {story}: `data` is not the mean of `individual_repeats` "
                f"({n_other} of {data.shape[1]} voxels, z-scored)",
                stacklevel=2,
            )
        return self._zscored(repeats, subject, story)

    def n_repeats(self, subject: str, story: str) -> int:
        """How often a story was presented to a subject; reads no responses."""
        self._check_name(subject, self.subjects, "subject")
        self._check_name(story, self.stories, "story")
        self.fetch([subject], [story], what=["responses"])
        return hf5_shape(self._response_path(subject, story))[0]

    def n_voxels(self, subject: str) -> int:
        """Number of voxels of a subject, after `voxel_step`; reads no responses."""
        self._check_name(subject, self.subjects, "subject")
        path = self._any_response_file(subject)
        if path is None:
            self.fetch([subject], self.stories[:1], what=["responses"])
            path = self._any_response_file(subject) or self._response_path(subject, self.stories[0])
        return len(range(0, hf5_shape(path)[2], self.voxel_step))

    def _any_response_file(self, subject) -> Path | None:
        paths = (self._response_path(subject, story) for story in self.stories)
        return next((p for p in paths if p.exists() and p.stat().st_size > 1000), None)

    def _read(self, subject, story, key, voxels):
        self._check_name(subject, self.subjects, "subject")
        self._check_name(story, self.stories, "story")
        self.fetch([subject], [story], what=["responses"])
        path = self._response_path(subject, story)
        data = read_hf5(path, key, columns=self._columns(path, voxels))
        n_columns = hf5_shape(path)[2]
        other, expected = self._n_columns.setdefault(subject, (path, n_columns))
        require(
            n_columns == expected,
            f"{path}: {n_columns} voxels, but {other} has {expected}; expected the same voxels in all files of "
            "a subject, (TRs x voxels): is one of them transposed?",
        )
        n_rows = self._story(story).n_rows
        source = "respdict.json, less the trimming" if story in self._volumes else "other subjects"
        require(
            data.shape[-2] == n_rows,
            f"story {story!r}, {path}: {data.shape[-2]} response rows but {n_rows} TRs ({source}); "
            "was the audio cut, or is the file another story's?",
        )
        if self._story(story).audio_path.exists():
            _ = self._story(story).tr_times  # refuses rows beyond the sound
        return data, path

    def _columns(self, path, voxels):
        """Columns of a response file that hold these voxels, counted after `voxel_step`."""
        if voxels is None:
            return slice(None, None, self.voxel_step)
        columns = np.arange(hf5_shape(path)[2])[:: self.voxel_step]
        try:
            if not isinstance(voxels, slice):
                voxels = np.asarray(voxels, None if len(voxels) else int)
            return columns[voxels]
        except (IndexError, TypeError) as error:
            raise ValueError(
                f"{path}: {len(columns)} voxels; expected a mask of as many, indices of them, or a slice ({error})"
            ) from error

    def _zscored(self, data, subject, story, *, warn_unscaled=False):
        n_filled, n_empty, deviation = zscore(data)
        if n_filled:
            self.filled[subject, story] = n_filled
            warnings.warn(
                f"{subject} {story}: {n_filled} NaN values replaced by 0 "
                f"({n_empty} voxels have no number at all)",
                stacklevel=3,
            )
        if warn_unscaled and deviation > 0.1:
            warnings.warn(
                f"{subject} {story}: responses were not z-scored (mean or spread off by {deviation:.2g}); done here",
                stacklevel=3,
            )
        return data


class Anatomy(Responses):
    """Where each voxel lies: regions by name, and the way to fsaverage5."""

    def rois(self, subject: str) -> dict[str, np.ndarray]:
        """Named regions as boolean masks of shape (n_voxels,); empty for a tree without them.

        From ``derivative/rois/<subject>.npz``, or from the subject's own surfaces (see `cortex.REGIONS`).
        """
        try:
            masks = self._arrays("rois", subject)
            if not masks:
                regions = self._cortex(subject).regions
                masks = {name: mask[:: self.voxel_step] for name, mask in regions.items()}
        except FileNotFoundError:
            return {}
        except ConnectionError as error:
            warnings.warn(f"no regions of {subject}: {error}", stacklevel=2)
            return {}
        return {name: mask.astype(bool) for name, mask in masks.items()}

    def has_surface(self, subject: str) -> bool:
        """Whether the subject's voxels can be brought to fsaverage5, that is drawn on a cortex."""
        try:
            self.vertices(subject)
        except (FileNotFoundError, ConnectionError):
            return False
        return True

    def fsaverage5(self, subject: str):
        """Sparse matrix (20484, n_voxels) from voxels to the vertices of fsaverage5, left hemisphere first.

        Rows sum to one; those of vertices without a voxel are empty.

        Raises
        ------
        FileNotFoundError
            If this tree holds no surface.
        """
        arrays = self._arrays("fsaverage5", subject)
        if "vertices" in arrays:
            return cortex.from_vertices(arrays["vertices"])
        matrix = self._cortex(subject).matrix
        return matrix if self.voxel_step == 1 else cortex.every_nth(matrix, self.voxel_step)

    def vertices(self, subject: str) -> np.ndarray:
        """fsaverage5 vertex of each voxel, shape (n_voxels,): left 0 to 10241, right 10242 to 20483, -1 for none."""
        arrays = self._arrays("fsaverage5", subject)
        if "vertices" in arrays:
            return arrays["vertices"]
        return self._cortex(subject).vertices[:: self.voxel_step]

    @lru_cache(maxsize=16)  # noqa: B019
    def _cortex(self, subject):
        try:
            anatomy = cortex.read(self.root, subject)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{self.name}: no surface for {subject}, and no {DERIVATIVE}/fsaverage5/{subject}.npz ({error})"
            ) from error
        path = self._any_response_file(subject)
        in_mask = anatomy.matrix.shape[1]
        n_voxels = in_mask if path is None else hf5_shape(path)[2]
        require(
            n_voxels == in_mask,
            f"{path}: {n_voxels} columns, but {subject}'s mask holds {in_mask} voxels; is it "
            "another subject's?",
        )
        return anatomy

    def _arrays(self, folder, subject) -> dict[str, np.ndarray]:
        """What ``derivative/<folder>/<subject>.npz`` holds, one entry per voxel; empty without such a file."""
        self._check_name(subject, self.subjects, "subject")
        self.fetch([subject], [], what=["cortex"])
        path = self.root / DERIVATIVE / folder / f"{subject}.npz"
        if not path.exists():
            return {}
        what, valid = IN_A_TABLE[folder]
        arrays = read_arrays(path, f"per voxel {what}")
        response = self._any_response_file(subject)
        length = (
            len(next(iter(arrays.values()), ())) if response is None else hf5_shape(response)[2]
        )
        with reading(path, f"per voxel {what}"):
            wrong = [n for n, x in arrays.items() if x.shape != (length,) or not valid(x)]
        require(
            arrays and not wrong,
            f"{path}: {wrong or 'nothing'} not of shape ({length},) or of another kind; expected per voxel {what}: "
            "write it again",
        )
        return {name: values[:: self.voxel_step] for name, values in arrays.items()}


class Dataset(Anatomy):
    """A tree in the layout of ds003020: fMRI responses to spoken stories, at any TR. EEG, MEG and ECoG are not read.

    Parameters
    ----------
    root : path
        Holds ``stimuli/<story>.<ext>`` and ``derivative/preprocessed_data/<subject>/<story>.hf5``. Used where they are:
        ``derivative/TextGrids/<story>.TextGrid`` (words), ``derivative/respdict.json`` (volumes per story),
        ``derivative/rois``, ``fsaverage5`` or the subject's anatomy, and ``dataset_description.json``.
    prepare : callable, optional
        Called as ``prepare(subjects, stories, what)`` before files are first read, with `what` a list of "stimuli",
        "textgrids", "responses" or "cortex": builds or fetches them.
    description : dict, optional
        What ``dataset_description.json`` may say, and goes before it: `Name`, `Simulated`, `Subjects`, `Stories`, `Split`
        ({"train": [...], "val": [...], "test": [...]}), and the clock of the rows: `RepetitionTime` (the TR in s, default
        2.0), `FirstRowTime` (centre of response row 0 in s after sound onset, default 11.0) and `VolumesTrimmed` (those
        that response files lack of the volumes in ``respdict.json``, [at the start, at the end], default [10, 10]). The
        defaults are ds003020's.
    subjects : str or list of str, optional
        Only these; where the tree states no split, it is then of stories that all of them were presented.
    voxel_step : int
        Use every n-th voxel alone, in responses, ceilings, regions and surfaces: for a first look at a large cortex.

    Attributes
    ----------
    name : str
    simulated : bool
    tr : float
        Seconds. FIR delays count TRs, so their span in seconds follows it.
    subjects, stories : list of str
    split : dict of lists of str
    description : dict
    filled : dict
        (subject, story): NaNs that were replaced by 0.

    Notes
    -----
    With ``respdict.json`` a response file must have as many rows as its story has volumes, less the trimming; without it,
    the file's own rows count. Rows that lie beyond the sound are refused when they are read: the last one's centre may be
    at most half a TR after the sound's end, the first one's at most a TR before its start.
    """

    def __repr__(self):
        kind = "simulated subjects" if self.simulated else "recordings"
        who = (
            ", ".join(self.subjects) if len(self.subjects) < 3 else f"{len(self.subjects)} subjects"
        )
        return f"Dataset({self.name!r}: {kind}, {who}, {len(self.stories)} stories)"

    @cached_property
    def split(self) -> dict[str, list[str]]:
        """Whole stories, disjoint: ``{"train": [...], "val": [...], "test": [...]}``.

        As the data set states it, else by repeats (see `split_by_repeats`).
        """
        if "Split" in self.description:
            expected = "a Split into train, val and test stories that do not overlap"
            with reading(self.root / "dataset_description.json", expected):
                stated = self.description["Split"]
                chosen(sum(stated.values(), []), self.stories, what="story", of=self.name)
                return {part: list(stated[part]) for part in ("train", "val", "test")}
        subjects = self.subjects[:1] if self._all_subjects else self.subjects
        self.fetch(subjects[:1], self.stories, what=["responses"])
        n_repeats = {
            story: self.n_repeats(subjects[0], story)
            for story in self.stories
            if subjects and all(self._response_path(s, story).exists() for s in subjects)
        }
        require(
            n_repeats,
            f"{self.root}: no story with responses of {subjects or 'any subject'}; expected "
            f"{DERIVATIVE}/{RESPONSES}/<subject>/<story>.hf5",
            kind=FileNotFoundError,
        )
        return split_by_repeats(n_repeats)

    def training_stories(self, stories=None, *, apart_from=("val", "test")) -> list[str]:
        """Stories to train or fit on: those given, or all of the split; at least one, none of the parts `apart_from`.

        Raises
        ------
        ValueError
            For no story, or one that the model is chosen or scored by.
        """
        picked = self.split["train"] if stories is None else stories
        picked = chosen(picked, self.stories, what="story", of=self.name)
        held_out = sorted(set(picked) & {s for part in apart_from for s in self.split[part]})
        require(
            not held_out,
            f"training stories of {self.name}: {held_out} are held out; expected none of {list(apart_from)}",
        )
        return picked

    def has_repeats(self, subject: str, *, split: str = "test", at_least: int = 2) -> bool:
        """Whether every story of a split was presented to the subject more than once, or as often as stated."""
        return all(self.n_repeats(subject, story) >= at_least for story in self.split[split])

    def noise_ceiling(self, subject: str, *, split: str = "test", repeats=None) -> np.ndarray:
        """CC_max per voxel in [0, 1], shape (n_voxels,), of the stories of a split end to end (see `encoding.noise_ceiling`).

        Parameters
        ----------
        repeats : indices or slice, optional
            Of these repeats alone.

        Raises
        ------
        ValueError
            If the stories were presented once (see `has_repeats`).
        """
        require(
            self.has_repeats(subject, split=split),
            f"{self.name}: {split} stories {self.split[split]} were presented to {subject} once; a noise "
            "ceiling needs repeats (ask has_repeats first)",
        )
        repeats = slice(None) if repeats is None else repeats
        return encoding.noise_ceiling(
            self.repeats(subject, story)[repeats] for story in self.split[split]
        )

    def truth(self, subject: str) -> pd.DataFrame:
        """What drives each voxel of a simulated subject, one row per voxel.

        Columns: one per level (its share of the signal's variance), `snr` (the signal's share of one repeat's variance),
        `hrf_peak` (seconds), `shared` (the share of the noise-free variance that comes from what all subjects share),
        `level` (the strongest, or "none").

        Raises
        ------
        ValueError
            For recordings, whose ground truth is not known.
        """
        self._check_simulated("ground truth is")
        table = pd.DataFrame(self._arrays("truth", subject))
        levels = [c for c in table.columns if c not in NOT_LEVELS]
        names = np.array(levels)[table[levels].to_numpy().argmax(1)]
        return table.assign(level=np.where(table.snr > 0, names, "none"))


def split_by_repeats(n_repeats: dict[str, int]) -> dict[str, list[str]]:
    """Train, validation and test stories of a data set that states none.

    Parameters
    ----------
    n_repeats : dict
        How often each story was presented.

    Returns
    -------
    split : dict of lists
        The test stories are those with the most repeats (the last story where all have as many); the validation stories
        are the other repeated ones, else the last two of the rest (fewer where no training story would be left).
    """
    stories = list(n_repeats)
    most = max(n_repeats.values())
    test = [s for s in stories if n_repeats[s] == most]
    if len(test) == len(stories):
        test = stories[-1:]
    rest = [s for s in stories if s not in test]
    val = [s for s in rest if n_repeats[s] > 1]
    if len(val) in (0, len(rest)):
        val = rest[max(1, len(rest) - 2) :]
    return {"train": [s for s in rest if s not in val], "val": val, "test": test}
