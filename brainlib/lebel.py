"""The recordings of LeBel et al. 2023 (OpenNeuro ds003020, CC0): fetched file by file, checked, and opened as a `Dataset`."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from .datasets import DERIVATIVE, Dataset
from .runtime import atomic, cache_dir

VERSION = "3.1.0"  # the snapshot of ds003020 that the manifest lists
BUCKET = (
    "https://s3.amazonaws.com/openneuro.org/ds003020"  # OpenNeuro's public copy, over plain HTTPS
)
KINDS = ("stimuli", "textgrids", "responses", "cortex")
RETRIES, BACKOFF_S = 5, 0.5  # of a file that did not come whole; the wait doubles each time
SPARE = 500_000_000  # bytes to leave free
TEST = "wheretheressmoke"  # heard five or ten times, all others once
SESSIONS = (  # noqa: SIM905 the stories of the five sessions that every listener had, in their order there, less the test story
    "alternateithicatom souls avatar legacy odetostepfather undertheinfluence howtodraw myfirstdaywiththeyankees naked life "
    "stagefright tildeath fromboyhoodtofatherhood sloth exorcism haveyoumethimyet adollshouse inamoment "
    "theclosetthatateeverything adventuresinsayingyes buck swimmingwithastronauts thatthingonmyarm eyespy itsabox hangtime"
).split()
# Validation stories, as far as they can be told. Where sources differ:
#   braintuning: the paper says 24 training, 2 validation, 1 test; its code names 24 and one validation story, stagefright,
#     which leaves life as the second. Its evaluation code trains on another 24, with stagefright, without
#     myfirstdaywiththeyankees.
#   brainwavlm: later code of its authors validates on fromboyhoodtofatherhood and onapproachtopluto; ds003020 lacks the
#     second. The paper had 94 to 103 training stories a listener, ds003020 has 82.
SPLITS = {"braintuning": ("stagefright", "life"), "brainwavlm": ("fromboyhoodtofatherhood",)}


def manifest(path: str | Path | pd.DataFrame | None = None) -> pd.DataFrame:
    """Files of ds003020 that this book can use, one row each: `path`, `bytes`, `md5`, and what they are (`kind`, `subject`, `story`).

    A table is given back as it is; of a folder, its ``manifest.csv`` is read, or the shipped one if it has none.
    """
    if isinstance(path, pd.DataFrame) and "kind" in path:
        return path
    if path is None or (isinstance(path, Path) and path.is_dir()):
        shipped = Path(__file__).parent / "assets" / "lebel" / "manifest.csv"
        path = path / "manifest.csv" if path and (path / "manifest.csv").exists() else shipped
    table = path.copy() if isinstance(path, pd.DataFrame) else pd.read_csv(path)
    parts = table.path.str.extract(
        rf"^(?:{DERIVATIVE}/)?(stimuli|TextGrids|preprocessed_data|freesurfer_subjdir|pycortex-db)/(?:(UTS\d+)/)?(.*)$"
    )
    names = {
        "TextGrids": "textgrids",
        "preprocessed_data": "responses",
        "freesurfer_subjdir": "cortex",
        "pycortex-db": "cortex",
    }
    table["kind"] = parts[0].replace(names)
    table.loc[
        table.path.isin([f"{DERIVATIVE}/respdict.json", f"{DERIVATIVE}/subject_xfms.json"]), "kind"
    ] = "textgrids"  # they go with them
    table["subject"] = parts[1].fillna("")
    table["story"] = parts[2].str.rsplit(".", n=1).str[0].where(table.kind != "cortex").fillna("")
    used = r"aparc\.a2009s\.annot|sphere\.reg|surfaces/(?:pia|wm)_[lr]h\.|mask_thick|matrices\.xfm"
    return table[
        table.kind.notna() & ((table.kind != "cortex") | table.path.str.contains(used))
    ].reset_index(drop=True)


def stories_of(subject: str, table: pd.DataFrame | None = None) -> list[str]:
    """The stories that one listener heard; UTS01 to UTS03 all 84, UTS09 54, the others 26 or 27."""
    table = manifest() if table is None else table
    heard = sorted(table.story[(table.kind == "responses") & (table.subject == subject)])
    if not heard:
        raise KeyError(
            f"ds003020 has no subject {subject!r}; it has {sorted(set(table.subject) - {''})}"
        )
    return heard


def _heard_by_all(subjects, table) -> list[str]:
    return sorted(set.intersection(*(set(stories_of(s, table)) for s in subjects)))


def split_of(
    subjects, name: str = "braintuning", table: pd.DataFrame | None = None
) -> dict[str, list[str]]:
    """Whole stories that all `subjects` heard, split as a paper did: ``{"train": [...], "val": [...], "test": [...]}``.

    "braintuning" is of the 27 stories that nearly all listeners heard, "brainwavlm" of all stories. Who heard no
    validation story of a split validates on its last two training stories. Where the sources of a split disagree is said
    beside `SPLITS` and on the book's page *Running on real recordings*.
    """
    if name not in SPLITS:
        raise KeyError(f"no split {name!r} of ds003020; expected one of {sorted(SPLITS)}")
    heard = _heard_by_all(subjects, table)
    rest = [s for s in (SESSIONS if name == "braintuning" else heard) if s in heard and s != TEST]
    val = [s for s in SPLITS[name] if s in heard] or rest[-2:]
    return {"train": [s for s in rest if s not in val], "val": val, "test": [TEST]}


def open_dataset(
    root=None, *, subjects=None, split: str = "braintuning", mirror=None, table=None, **options
) -> Dataset:
    """ds003020 as a `Dataset` whose files are fetched when they are first asked for (or in one go by its `fetch`).

    Parameters
    ----------
    root : path, optional
        Where the files are or go: ``$BRAINLIB_LEBEL`` or ``cache_dir("lebel2023")`` if left out.
    subjects : list of str, optional
        The split then holds only stories that all of them heard.
    split : {"braintuning", "brainwavlm"}
    mirror, table
        See `fetch`.
    **options
        See `Dataset`.
    """
    root = _root(root)
    files = manifest(root if table is None else table)
    subjects = [subjects] if isinstance(subjects, str) else subjects
    everybody = sorted(set(files.subject) - {""})
    chosen = split_of(
        subjects or everybody[:1], split, files
    )  # the first listener heard all stories

    def prepare(subjects, stories, what):
        fetch(subjects, stories, what=what, root=root, mirror=mirror, table=files, strict=False)

    prepare([], sum(chosen.values(), []), ["textgrids"])
    heard = _heard_by_all(subjects or everybody[:1], files)
    about = {
        "Name": "lebel2023",
        "Subjects": list(subjects or everybody),
        "Stories": heard,
        "Split": chosen,
    }
    return Dataset(root, prepare=prepare, description=about, **options)


def fetch(
    subjects=(),
    stories=None,
    *,
    what=KINDS,
    root=None,
    mirror=None,
    jobs: int = 4,
    check: bool = False,
    replace: bool = False,
    strict: bool = True,
    quiet: bool = False,
    table=None,
) -> Path:
    """Bring files of ds003020 here, only those asked for; what is whole already is left alone, and needs no network.

    Parameters
    ----------
    subjects : list of str
        UTS01 to UTS09.
    stories : list of str, optional
        Those of the "braintuning" split if left out.
    what : subset of {"stimuli", "textgrids", "responses", "cortex"}
    root : path, optional
        ``$BRAINLIB_LEBEL`` or ``cache_dir("lebel2023")`` if left out.
    mirror : str or path, optional
        An address, or a folder on this machine, with the same tree; ``$BRAINLIB_MIRROR`` or OpenNeuro's bucket if left out.
    jobs : int
        Files fetched at a time.
    check : bool
        Also compare the MD5 of files that are here already (their size always is).
    replace, strict : bool
        What to do with files here that are not the release's (yours, corrected): put the release's in their place; or
        refuse to go on (or, if not strict, warn of them and use them).
    table : path or DataFrame, optional
        Another manifest (`path`, `bytes`, `md5`); that of `root` if it holds a ``manifest.csv``.

    Returns
    -------
    root : Path

    Raises
    ------
    KeyError
        A subject or story that ds003020 lacks.
    ValueError
        A story that a subject did not hear; files here that are not the release's (see `replace`).
    OSError
        Too little disk (nothing is fetched then), or files that did not come whole. Those that did are in place, begun ones
        are kept under ``.partial``: call again to go on.

    Notes
    -----
    openneuro-py does the transfer, with resume and retries. A file gets its name only after its size and MD5 were found to
    be those of the manifest. Data: LeBel et al. 2023, https://doi.org/10.1038/s41597-023-02437-z, CC0.
    """
    root = _root(root)
    chosen = _chosen(subjects, stories, what, manifest(root if table is None else table))
    found = {f.path: _wrong(root / f.path, f, check) for f in chosen.itertuples()}
    other = [
        path for path, why in found.items() if why and why != "missing" and "instead" not in why
    ]
    if other and not replace:
        told = f"{root}: {len(other)} files are not those of ds003020 {VERSION}: " + ", ".join(
            f"{x} ({found[x]})" for x in other[:3]
        )
        if strict:
            raise ValueError(f"{told}. Move them away, or fetch with replace=True")
        warnings.warn(f"{told}; used as they are", stacklevel=2)
        found |= dict.fromkeys(other)
    if not any(found.values()):
        return root
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock, parts = FileLock(root / ".fetch.lock"), root / ".partial"
    source = (
        str(mirror or os.environ.get("BRAINLIB_MIRROR") or BUCKET)
        .rstrip("/")
        .removeprefix("file://")
    )
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is fetching into {root}: waiting for it", flush=True)
        held = lock.acquire()
        found = {
            f.path: found[f.path] and _wrong(root / f.path, f, check) for f in chosen.itertuples()
        }
    with held:
        failed = _place(
            chosen[[found[path] is not None for path in chosen.path]], parts, root
        )  # whole when a run was ended
        todo = chosen[chosen.path.isin(failed)]
        if todo.empty:
            return root
        here = sum((parts / p).stat().st_size for p in todo.path if (parts / p).exists())
        need, free = max(int(todo.bytes.sum()) - here, 0), shutil.disk_usage(root).free
        if not quiet:
            size = _gb(todo.bytes.sum()) + (f" ({_gb(here)} of it here)" if here else "")
            print(
                f"ds003020: fetching {len(todo)} of {len(chosen)} files, {size}, into {root} ({_gb(free)} free)",
                flush=True,
            )
        if need + SPARE > free:
            raise OSError(
                f"{root}: {_gb(free)} free, {_gb(need + SPARE)} needed; free some, ask for less, or give another root"
            )
        told = (_download if "://" in source else _copy)(source, todo, parts, jobs, quiet)
        failed = _place(todo, parts, root)
    if failed:
        reasons = {
            p: told[p]
            if p in told and why == "missing"
            else "; ".join(filter(None, [told.get(p), why]))
            for p, why in failed.items()
        }
        first = "; ".join(f"{path}: {why}" for path, why in list(reasons.items())[:3])
        raise ConnectionError(
            f"{len(failed)} of {len(todo)} files did not come whole from {source}: {first}{' ...' if len(failed) > 3 else ''}. "
            "The others are in place; call again to go on, or give mirror= a copy"
        )
    return root


def _place(rows, parts: Path, root: Path) -> dict[str, str]:
    """Give whole files their names; what is wrong with the others."""
    failed = {}
    for f in rows.itertuples():
        wrong = _wrong(parts / f.path, f, True)
        if wrong is None:
            with atomic(
                root / f.path
            ) as new:  # beside its place: a part of the tree may lie on another disk
                shutil.move(parts / f.path, new)
            continue
        failed[f.path] = wrong
        if "instead" in wrong:  # nothing that could be resumed
            (parts / f.path).unlink()
    return failed


def _gb(n) -> str:
    return (
        f"{n / 1e9:.2f} GB"
        if n >= 1e8
        else f"{n / 1e6:.1f} MB"
        if n >= 1e5
        else f"{n / 1e3:.1f} kB"
    )


def _root(root) -> Path:
    return Path(root or os.environ.get("BRAINLIB_LEBEL") or cache_dir("lebel2023")).expanduser()


def _chosen(subjects, stories, what, table):
    """The rows of the manifest that were asked for."""
    subjects, unknown = (
        [subjects] if isinstance(subjects, str) else list(subjects),
        sorted(set(what) - set(KINDS)),
    )
    if unknown or isinstance(what, str):
        raise ValueError(f"what={what!r}; expected a list of some of {KINDS}")
    heard = {s: stories_of(s, table) for s in subjects}
    if stories is None:
        stories = sum(split_of(subjects or ["UTS01"], table=table).values(), [])
    stories = [stories] if isinstance(stories, str) else list(stories)
    strange = sorted(set(stories) - set(table.story[table.kind == "textgrids"]))
    if strange:
        raise KeyError(f"ds003020 has no story {strange}")
    for subject in subjects if "responses" in what else ():
        if set(stories) - set(heard[subject]):
            raise ValueError(
                f"{subject} did not hear {sorted(set(stories) - set(heard[subject]))}; `stories_of` lists what they heard"
            )
    return table[
        table.kind.isin(set(what))
        & table.subject.isin([*subjects, ""])
        & table.story.isin([*stories, ""])
    ]


def _wrong(path: Path, row, md5: bool) -> str | None:
    """What is wrong with a file, or None; its MD5 is computed only if asked for."""
    if not path.exists():
        return "missing"
    size = path.stat().st_size
    if size != row.bytes or md5:
        with path.open("rb") as file:
            head = file.read(300).lstrip().lower()
            if size != row.bytes:
                if head.startswith((b"<!doctype html", b"<html")):
                    return "a web page instead (a login page, or a proxy's?)"
                if b"annex/objects" in head:
                    return "a git-annex pointer instead"
                return f"{size} bytes, expected {row.bytes}"
            file.seek(0)
            if hashlib.file_digest(file, "md5").hexdigest() != row.md5:
                return "its MD5 is not the manifest's"
    return None


def _download(base, todo, parts, jobs, quiet) -> dict[str, str]:
    """Fetch over HTTP into `parts`; reasons of what failed."""
    try:
        from openneuro import _console, _download
        from openneuro._models import DatasetFile
    except ImportError as error:
        raise ImportError(
            "openneuro-py fetches the recordings: URLLIB3_NO_OVERRIDE=1 pip install --no-binary urllib3-future 'openneuro-py>=2026.9.1,<2026.10'"
        ) from error
    files = [
        DatasetFile(
            filename=f.path,
            urls=[f"{base}/{quote(f.path)}"],
            size=f.bytes,
            id=f.path,
            checksum=f.md5,
            checksum_algorithm="md5",
        )
        for f in todo.itertuples()
    ]
    logger = logging.getLogger("openneuro")
    before, level = _console.console.quiet, logger.level
    _console.console.quiet = quiet
    logger.setLevel(logging.CRITICAL if quiet else logging.ERROR)
    try:
        # the step of `openneuro.download` after it has asked OpenNeuro for a list of files: ours is the manifest
        failures = _download._run_coroutine_blocking(
            _download._download_files(
                target_dir=parts,
                files=files,
                verify_hash=True,
                verify_size=True,
                max_retries=RETRIES,
                retry_backoff=BACKOFF_S,
                max_concurrent_downloads=jobs,
                query_str="",
                stats=_download._DownloadStats(),
                dataset_id="ds003020",
                debug_hint="",
            )
        )
    finally:
        _console.console.quiet = before
        logger.setLevel(level)
    return {path: error.reason for path, error in failures}


def _copy(source, todo, parts, jobs, quiet) -> dict[str, str]:
    """Copy from a folder into `parts`; reasons of what failed."""

    def one(path):
        (parts / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(Path(source).expanduser() / path, parts / path)
        except OSError as error:
            return str(error)

    with ThreadPoolExecutor(jobs) as pool:
        return {path: why for path, why in zip(todo.path, pool.map(one, todo.path)) if why}
