"""The recordings of LeBel et al. 2023 (OpenNeuro ds003020, CC0): fetched file by file, checked, and opened as a `Dataset`."""

import hashlib
import os
import shutil
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from .datasets import DERIVATIVE, Dataset, as_list, chosen
from .runtime import atomic, cache_dir, reading, require

VERSION = "3.1.0"  # the snapshot of ds003020 that the manifest lists
BUCKET = (
    "https://s3.amazonaws.com/openneuro.org/ds003020"  # OpenNeuro's public copy, over plain HTTPS
)
KINDS = ("stimuli", "textgrids", "responses", "cortex")
RETRIES, BACKOFF_S = 5, 0.5  # of a file that did not come whole; the wait doubles each time
TRY_AGAIN = (
    408,
    416,
    429,
)  # HTTP states below 500 that pass: timeout, wrong range, too many requests
TIMEOUT_S = 20.0  # to connect, and between two pieces of a reply
CHUNK_BYTES = 1 << 20
SLOW_S, SLOW_BYTES = 60.0, 60_000  # a reply that brings less in that time is given up
TEXT = {"path": str, "md5": str}  # of a manifest, whatever they look like
INSIDE = r"(?!/)(?!(?:.*/)?\.\.(?:/|$))[^\\:]+"  # paths that do not leave the folder
SPARE = 500_000_000  # bytes to leave free
TEST = "wheretheressmoke"  # presented five or ten times, all others once
SESSIONS = (  # noqa: SIM905 the stories of the five sessions that every participant had, in their order, less the test story
    "alternateithicatom souls avatar legacy odetostepfather undertheinfluence howtodraw myfirstdaywiththeyankees naked life "
    "stagefright tildeath fromboyhoodtofatherhood sloth exorcism haveyoumethimyet adollshouse inamoment "
    "theclosetthatateeverything adventuresinsayingyes buck swimmingwithastronauts thatthingonmyarm eyespy itsabox hangtime"
).split()
# Validation stories, as far as they are published. Where sources differ:
#   braintuning: the paper says 24 training, 2 validation, 1 test; its code names 24 and one validation story, stagefright,
#     which leaves life as the second. Its evaluation code trains on another 24, with stagefright, without
#     myfirstdaywiththeyankees.
#   brainwavlm: later code of its authors validates on fromboyhoodtofatherhood and onapproachtopluto; ds003020 lacks the
#     second. The paper had 94 to 103 training stories per participant, ds003020 has 82.
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
    what = "a table of path (within the folder), bytes and md5"
    with reading(path if isinstance(path, Path) else "manifest", what):
        table = path.copy() if isinstance(path, pd.DataFrame) else pd.read_csv(path, dtype=TEXT)
        right = table.path.str.fullmatch(INSIDE) & table.md5.str.fullmatch("[0-9a-f]{32}")
        wrong = table[~(right & (table.bytes >= 0)).fillna(False).astype(bool)]
        require(
            not len(wrong),
            f"{len(wrong)} rows are not that, first {wrong.head(1).to_dict('records')}",
        )
    parts = table.path.str.extract(
        rf"^(?:{DERIVATIVE}/)?(stimuli|TextGrids|preprocessed_data|freesurfer_subjdir|pycortex-db)/(?:(UTS\d+)/)?(.*)$"
    )
    kinds = {
        "stimuli": "stimuli",
        "TextGrids": "textgrids",
        "preprocessed_data": "responses",
        "freesurfer_subjdir": "cortex",
        "pycortex-db": "cortex",
    }
    tables = table.path.isin([f"{DERIVATIVE}/respdict.json", f"{DERIVATIVE}/subject_xfms.json"])
    table["kind"] = parts[0].map(kinds).mask(tables, "textgrids")  # the two go with them
    table["subject"] = parts[1].fillna("")
    table["story"] = parts[2].str.rsplit(".", n=1).str[0].where(table.kind != "cortex").fillna("")
    used = r"aparc\.a2009s\.annot|sphere\.reg|surfaces/(?:pia|wm)_[lr]h\.|mask_thick|matrices\.xfm"
    return table[
        table.kind.notna() & ((table.kind != "cortex") | table.path.str.contains(used))
    ].reset_index(drop=True)


def stories_of(subject: str, table: pd.DataFrame | None = None) -> list[str]:
    """The stories that a subject was presented; UTS01 to UTS03 all 84, UTS09 54, the others 26 or 27."""
    table = manifest() if table is None else table
    stories = sorted(table.story[(table.kind == "responses") & (table.subject == subject)])
    require(
        stories,
        f"ds003020 has no subject {subject!r}; it has {sorted(set(table.subject) - {''})}",
        kind=KeyError,
    )
    return stories


def _shared_stories(subjects, table) -> list[str]:
    return sorted(set.intersection(*(set(stories_of(s, table)) for s in subjects)))


def split_of(
    subjects, name: str = "braintuning", *, table: pd.DataFrame | None = None
) -> dict[str, list[str]]:
    """Whole stories that all `subjects` were presented, split as a paper did: ``{"train": [...], "val": [...], "test": [...]}``.

    "braintuning" is of the 27 stories that nearly all participants were presented, "brainwavlm" of all stories. A subject
    without the validation stories of a split validates on its last two training stories. Where the sources of a split
    disagree is said beside `SPLITS` and on the book's page *Running on real recordings*.
    """
    require(
        name in SPLITS,
        f"no split {name!r} of ds003020; expected one of {sorted(SPLITS)}",
        kind=KeyError,
    )
    shared = _shared_stories(subjects, table)
    rest = [s for s in (SESSIONS if name == "braintuning" else shared) if s in shared and s != TEST]
    val = [s for s in SPLITS[name] if s in shared] or rest[-2:]
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
        The split then holds only stories that all of them were presented.
    split : {"braintuning", "brainwavlm"}
    mirror, table
        See `fetch`.
    **options
        See `Dataset`.
    """
    root = _root(root)
    files = manifest(root if table is None else table)
    everybody = sorted(set(files.subject) - {""})
    # where nobody is asked for: the first participant was presented all stories
    asked = everybody[:1] if subjects is None else subjects
    those = chosen(asked, everybody, what="subject", of="ds003020")
    subjects = everybody if subjects is None else those
    description = {
        "Name": "lebel2023",
        "Subjects": subjects,
        "Stories": _shared_stories(those, files),
        "Split": split_of(those, split, table=files),
    }

    def prepare(subjects, stories, what):
        fetch(subjects, stories, what=what, root=root, mirror=mirror, table=files, strict=False)

    prepare([], sum(description["Split"].values(), []), ["textgrids"])
    return Dataset(root, prepare=prepare, description=description, **options)


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
        A story that a subject was not presented; files here that are not the release's (see `replace`).
    OSError
        Too little disk (nothing is fetched then), or files that did not come whole. Those that did are in place, begun ones
        are kept under ``.partial``: call again to go on.

    Notes
    -----
    Transfers go on where they were cut, and are tried again after stalls and server errors. A file gets its name only
    after its size and MD5 were checked against the manifest. Data: LeBel et al. 2023,
    https://doi.org/10.1038/s41597-023-02437-z, CC0.
    """
    require(
        jobs >= 1,
        f"jobs={jobs}; expected at least one file at a time",
    )
    root = _root(root)
    rows = _chosen_rows(subjects, stories, what, manifest(root if table is None else table))
    defects = _defects(root, rows, md5=check)
    altered = {p: d for p, d in defects.items() if d != "missing" and "instead" not in d}
    if altered and not replace:
        _report_altered(root, altered, strict)
        defects = {p: d for p, d in defects.items() if p not in altered}
    if defects:
        source = str(mirror or os.environ.get("BRAINLIB_MIRROR") or BUCKET).rstrip("/")
        with _sole_fetcher(root):
            rows_left = rows[rows.path.isin(defects)]
            rows_left = rows_left[rows_left.path.isin(_defects(root, rows_left, md5=check))]
            _bring(rows_left, root, source=source, n_chosen=len(rows), jobs=jobs, quiet=quiet)
    return root


def _defects(root, rows, *, md5) -> dict[str, str]:
    defects = {row.path: _defect(root / row.path, row, md5=md5) for row in rows.itertuples()}
    return {path: defect for path, defect in defects.items() if defect}


def _report_altered(root, altered, strict):
    first = ", ".join(f"{path} ({defect})" for path, defect in list(altered.items())[:3])
    message = f"{root}: {len(altered)} files are not those of ds003020 {VERSION}: {first}"
    require(not strict, f"{message}. Move them away, or fetch with replace=True")
    warnings.warn(f"{message}; used as they are", stacklevel=3)


def _sole_fetcher(root):
    """Take the lock of a folder, to hold in a ``with``; another process that has it is waited for."""
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".fetch.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"another process is fetching into {root}: waiting for it", flush=True)
        return lock.acquire()


def _bring(rows, root, *, source, n_chosen, jobs, quiet):
    """Transfer files into ``.partial``, and give those that are whole their names."""
    parts = root / ".partial"
    todo = rows[rows.path.isin(_place(rows, parts, root))]  # others came whole before a crash
    if todo.empty:
        return
    n_here = sum((parts / p).stat().st_size for p in todo.path if (parts / p).exists())
    free = shutil.disk_usage(root).free
    if not quiet:
        size = _gb(todo.bytes.sum()) + (f" ({_gb(n_here)} of it here)" if n_here else "")
        print(
            f"ds003020: fetching {len(todo)} of {n_chosen} files, {size}, into {root} ({_gb(free)} free)",
            flush=True,
        )
    needed = max(int(todo.bytes.sum()) - n_here, 0) + SPARE
    require(
        needed <= free,
        f"{root}: {_gb(free)} free, {_gb(needed)} needed; free some, ask for less, or give another root",
        kind=OSError,
    )
    reasons = _transfer(source, todo, parts, jobs=jobs, quiet=quiet)
    failed = _place(todo, parts, root)
    first = "; ".join(f"{p}: {reasons.get(p) or d}" for p, d in list(failed.items())[:3])
    require(
        not failed,
        f"{len(failed)} of {len(todo)} files did not come whole from {source}: {first}"
        f"{' ...' if len(failed) > 3 else ''}. "
        "The others are in place; call again to go on, or give mirror= a copy",
        kind=ConnectionError,
    )


def _place(rows, parts: Path, root: Path) -> dict[str, str]:
    """Give whole files their names; what is wrong with the others."""
    failed = {}
    for row in rows.itertuples():
        failed[row.path] = _transfer_defect(parts / row.path, row)
        if failed[row.path] is None:  # beside its place: a part of the tree may lie on another disk
            with atomic(root / row.path) as new:
                shutil.move(parts / row.path, new)
    return {path: defect for path, defect in failed.items() if defect}


def _transfer_defect(part: Path, row) -> str | None:
    """What is wrong with a transferred file; one that could not be resumed is removed."""
    defect = _defect(part, row, md5=True)
    if defect and "instead" in defect:
        part.unlink()
    return defect


def _gb(n) -> str:
    return f"{n / 1e9:.2f} GB" if n >= 1e8 else f"{n / 1e6:.2f} MB"


def _root(root) -> Path:
    return Path(root or os.environ.get("BRAINLIB_LEBEL") or cache_dir("lebel2023")).expanduser()


def _chosen_rows(subjects, stories, what, table):
    """The rows of the manifest that were asked for."""
    require(
        not isinstance(what, str) and set(what) <= set(KINDS),
        f"what={what!r}; expected a list of some of {KINDS}",
    )
    subjects = as_list(subjects)
    presented = {s: stories_of(s, table) for s in subjects}
    if stories is None:
        stories = sum(split_of(subjects or ["UTS01"], table=table).values(), [])
    stories = as_list(stories)
    unknown = sorted(set(stories) - set(table.story[table.kind == "textgrids"]))
    require(
        not unknown,
        f"ds003020 has no story {unknown}",
        kind=KeyError,
    )
    for subject in subjects if "responses" in what else ():
        lacking = sorted(set(stories) - set(presented[subject]))
        require(
            not lacking,
            f"{subject} was not presented {lacking}; `stories_of` lists the stories that {subject} was presented",
        )
    chosen = table.kind.isin(set(what)) & table.subject.isin([*subjects, ""])
    return table[chosen & table.story.isin([*stories, ""])]


def _defect(path: Path, row, *, md5: bool) -> str | None:
    """What is wrong with a file, or None; its MD5 is computed only if asked for."""
    if not path.exists():
        return "missing"
    size = path.stat().st_size
    if size == row.bytes and not md5:
        return None
    with path.open("rb") as file:
        if size == row.bytes:
            right = hashlib.file_digest(file, "md5").hexdigest() == row.md5
            return None if right else "its MD5 is not the manifest's"
        head = file.read(300).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page instead (a login page, or a proxy's?)"
    if b"annex/objects" in head:
        return "a git-annex pointer instead"
    return f"{size} bytes, expected {row.bytes}"


def _transfer(source, todo, parts, *, jobs, quiet) -> dict[str, str]:
    """Bring files into `parts`, several at a time; reasons of what failed."""
    from tqdm.auto import tqdm

    bring = _download if source.startswith(("http://", "https://")) else _copy
    with (
        tqdm(total=int(todo.bytes.sum()), unit="B", unit_scale=True, disable=quiet) as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        results = pool.map(lambda row: bring(source, row, parts / row.path, bar), todo.itertuples())
        return {path: reason for path, reason in zip(todo.path, results) if reason}


def _copy(source, row, part, bar) -> str | None:
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(Path(source.removeprefix("file://")).expanduser() / row.path, part)
    except OSError as error:
        return str(error)
    bar.update(row.bytes)


def _download(source, row, part, bar) -> str | None:
    """Fetch one file over HTTP, from where it was cut, a few times; why it failed, or None."""
    import requests
    import urllib3

    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(RETRIES + 1):
        time.sleep(BACKOFF_S * 2 ** (attempt - 1) if attempt else 0)
        try:
            _download_rest(f"{source}/{quote(row.path)}", part, row.bytes, bar)
            reason = _transfer_defect(part, row)
            if reason is None:
                return None
        except requests.HTTPError as error:
            reason = f"HTTP {error.response.status_code}"
            if error.response.status_code < 500 and error.response.status_code not in TRY_AGAIN:
                return reason
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            stalled = isinstance(error, (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError))
            what = "The server stalled" if stalled else "Could not connect, or lost the connection"
            reason = f"{what} ({type(error).__name__})"
    return reason


def _download_rest(url, part, size, bar):
    """Append to `part` what it lacks of `size` bytes; all of it anew if it has as many, or the server ignores ranges."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if 0 < start < size:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # what is here is not the start of the server's file
            part.unlink()
        response.raise_for_status()
        with part.open("ab" if response.status_code == 206 else "wb") as file:
            until, goal = time.monotonic() + SLOW_S, file.tell() + SLOW_BYTES
            while file.tell() < size:  # a reply may be longer: its rest is not read
                if time.monotonic() > until:
                    if file.tell() < goal:
                        raise requests.ReadTimeout(f"under {SLOW_BYTES} bytes in {SLOW_S:g} s")
                    until, goal = time.monotonic() + SLOW_S, file.tell() + SLOW_BYTES
                chunk = response.raw.read1(CHUNK_BYTES)
                if not chunk:
                    break
                bar.update(file.write(chunk[: size - file.tell()]))
