"""Run the notebooks with papermill, strictly, into the tree that the site is built from.

    python tools/run_notebooks.py                                 # all, with notebooks/params/quick.yaml
    python tools/run_notebooks.py 02_ridge_encoding -p subjects '[SIM02]' --out runs/sim02

    python tools/run_notebooks.py --jobs 2                        # two at a time, which share the threads

papermill alone forgives a misspelt parameter, a notebook that leaves by `sys.exit`, and more. Here each of these fails,
with one line that says which notebook and why. Seconds, peak memory, parameters and hashes of what each ran go to
`<out>/runs.json` as soon as it is done, so that tools/build_book.py can refuse pages that do not belong together.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import yaml

from brainlib.runtime import atomic, read_json

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
STAGE = ROOT / "_build" / "stage"
SITE = ROOT / "_build" / "html"
CELL_LIMIT_S = 1200
LOCK = threading.Lock()  # of the report and of what is printed


class NotebookError(Exception):
    """A notebook that must not go into the book; the message is one line."""


def read(path: Path):
    """A notebook, or a line that says why it is none."""
    try:
        return nbformat.read(path, 4)
    except Exception as error:  # cut, garbled, of another format
        said = str(error).partition("\n")[0][:200]
        raise NotebookError(
            f"{path.name}: {path} is no notebook that can be read ({type(error).__name__}: {said})"
        ) from error


def parameters(path: Path) -> dict:
    """Names and defaults of the one cell tagged `parameters`, which may hold literals only."""
    cells = [c for c in read(path).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(
            f"{path.name}: {len(cells)} cells tagged 'parameters'; expected exactly one"
        )
    defaults = {}
    for statement in ast.parse(cells[0].source).body:
        name, value = literal(path, statement)
        if isinstance(value, str) and "=" in value:
            raise NotebookError(
                f"{path.name}: the default of {name!r} holds '=', which papermill misreads"
            )
        defaults[name] = value
    return defaults


def literal(path: Path, statement: ast.stmt) -> tuple:
    """Name and value of an assignment of a literal; anything else is refused."""
    plain = isinstance(statement, ast.Assign) and len(statement.targets) == 1
    target = statement.targets[0] if plain else getattr(statement, "target", None)
    if not isinstance(target, ast.Name):
        raise NotebookError(
            f"{path.name}: the parameters cell may hold plain assignments only,"
            f" found {ast.unparse(statement)!r}"
        )
    try:
        return target.id, ast.literal_eval(statement.value)
    except ValueError:
        raise NotebookError(
            f"{path.name}: parameter {target.id!r} is not a literal; derive it in the next cell"
        ) from None


EXITS = ("sys.exit", "exit", "quit", "os._exit")


def check_source(path: Path):
    """What no output can show: a notebook that leaves early with success."""
    for cell in read(path).cells:
        if cell.cell_type != "code":
            continue
        lines = [x for x in cell.source.splitlines() if not x.lstrip().startswith(("%", "!"))]
        try:
            tree = ast.parse("\n".join(lines))
        except SyntaxError as error:
            raise NotebookError(f"{path.name}: a cell is not Python ({error})") from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in EXITS:
                raise NotebookError(
                    f"{path.name}: calls {ast.unparse(node.func)}, which papermill takes for success"
                )


def check_outputs(path: Path):
    """An executed notebook must have run every code cell, and none may hold an error."""
    for number, cell in enumerate(read(path).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                said = (output.evalue.splitlines() or [""])[0]
                raise NotebookError(f"{path.name}: cell {number} ended in {output.ename}: {said}")
        if cell.execution_count is None:
            raise NotebookError(f"{path.name}: cell {number} was never executed")


def known_anywhere(names, folder: Path = NOTEBOOKS):
    """Refuse a parameter that no notebook has."""
    known = {p.stem for p in folder.glob("*.ipynb")}  # what is a notebook's own
    known = known.union(*(parameters(p) for p in sorted(folder.glob("*.ipynb"))))
    unknown = sorted(set(names) - known)
    if unknown:
        raise NotebookError(f"unknown parameter {unknown}; the notebooks know {sorted(known)}")


def values_for(path: Path, profile: dict) -> dict:
    """What a notebook knows of a profile; what stands under the notebook's own name goes before the rest."""
    values = profile | profile.get(path.stem, {})
    return {name: value for name, value in values.items() if name in parameters(path)}


# runs in a process of its own, so that the largest child's memory is this notebook's kernel
EXECUTE = """
import json, papermill, resource, sys
path, target, values, limit = json.loads(sys.stdin.read())
papermill.execute_notebook(
    path, target, values, progress_bar=False, kernel_name="python3", execution_timeout=limit, cwd="."
)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
QUIET = {
    "PYTHONWARNINGS": "ignore::DeprecationWarning,ignore:IProgress not found",
    "TOKENIZERS_PARALLELISM": "false",
}


def run_one(
    path: Path,
    values: dict,
    out: Path,
    limit: int | None = CELL_LIMIT_S,
    threads: int | None = None,
) -> dict:
    """Execute one notebook with these parameters into `out`; seconds and peak memory of its kernel."""
    defaults = parameters(path)
    unknown = sorted(set(values) - set(defaults))
    if unknown:
        raise NotebookError(
            f"{path.name}: unknown parameter {unknown}; it knows {sorted(defaults)}"
        )
    check_source(path)
    target = out.resolve() / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | QUIET
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE],
        input=json.dumps([str(path), str(target), values, limit]),
        capture_output=True,
        text=True,
        cwd=target.parent,
        env=environment,
    )
    seconds = time.perf_counter() - start
    if target.exists():
        check_outputs(target)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["papermill failed"])[-1]
        raise NotebookError(f"{path.name}: {reason}")
    unit = 1 if sys.platform == "darwin" else 1024
    peak = int(done.stdout.split()[-1]) * unit
    return {"seconds": round(seconds, 1), "peak_mb": round(peak / 1e6), "parameters": values}


def read_parameters(path: Path) -> dict:
    """A file of parameters, which must be a mapping of names to values."""
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise NotebookError(f"{path}: no parameters that can be read ({said})") from error
    if not isinstance(values or {}, dict):
        raise NotebookError(
            f"{path}: holds a {type(values).__name__}; expected `name: value`, one to a line"
        )
    return values or {}


# ------------------------------------------------------------------ what a page was made from
def code_hash() -> str:
    """Of the code of brainlib and fireside, without comments and docstrings."""
    total = hashlib.blake2b(digest_size=6)
    for path in sorted(
        p for folder in ("brainlib", "fireside") for p in (ROOT / folder).glob("*.py")
    ):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            if documented and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
        total.update(f"{path.name} {ast.dump(tree)}".encode())
    return total.hexdigest()


def made_from(path: Path, asked: dict) -> dict:
    """Hashes of a notebook, of the parameters that all notebooks were asked to run with, and of the code."""
    text = path.read_bytes()
    values = json.dumps(asked, sort_keys=True, default=str).encode()
    notebook, profile = (hashlib.blake2b(x, digest_size=6).hexdigest() for x in (text, values))
    return {"notebook": notebook, "profile": profile, "code": code_hash()}


def note(report: Path, name: str, run: dict | None):
    """Write what a notebook's run was into the report, whole or not at all; None takes it out."""
    with LOCK:
        try:
            runs = read_json(report, "runs of notebooks") if report.exists() else {}
        except ValueError:
            runs = {}  # broken: what it held has to be run again
        runs.pop(name, None)
        with atomic(report) as part:
            part.write_text(json.dumps(runs | ({name: run} if run else {}), indent=1))


def say(line: str, to):
    """Print a line, whole, whatever other notebooks have to say."""
    with LOCK:
        print(line, file=to, flush=True)


def shares(wanted: int, n_notebooks: int) -> tuple:
    """How many notebooks at a time, at most one per core; and the threads of each, None for as many as it likes."""
    cores = os.cpu_count() or 1
    jobs = max(1, min(wanted, n_notebooks, cores))
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores)
    return jobs, max(1, threads // jobs) if jobs > 1 else None


def retire_site():
    """Put the site that is there aside: it must not pass for one of the notebooks as they are now."""
    if SITE.exists():
        previous = SITE.with_name(f"{SITE.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        SITE.rename(previous)


def arguments_of(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", help="names, such as 02_ridge_encoding; all if left out"
    )
    parser.add_argument("--params", type=Path, default=NOTEBOOKS / "params" / "quick.yaml")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="YAML value of one parameter",
    )
    parser.add_argument(
        "--limit", type=int, default=CELL_LIMIT_S, help="seconds a cell may take; 0 for any time"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="notebooks at a time, at most one per core"
    )
    parser.add_argument("--out", type=Path, default=STAGE / "notebooks")
    return parser.parse_args(arguments)


def run_and_note(path: Path, shared: dict, named: dict, options, share: tuple) -> bool:
    """Run a notebook, write into the report what came of it, and print a line; whether it ran well."""
    folder = options.out.parent if options.out.name == "notebooks" else options.out
    report, (jobs, threads) = folder / "runs.json", share
    try:
        if not path.exists():
            raise NotebookError(f"{path.name}: no such notebook in {NOTEBOOKS}")
        note(report, path.stem, None)
        made = made_from(path, shared | named) | {"at_a_time": jobs}
        # a notebook asked for by name must know every -p; else each takes those it knows
        strict = named if options.notebooks else {}
        values = values_for(path, shared) | values_for(path, named) | strict
        if values.get("out") == "":  # the page on the claims reads them: tools/claims.py
            numbers = folder.resolve() / "numbers" / f"{path.stem}.json"
            numbers.unlink(missing_ok=True)  # of an earlier run
            values["out"] = str(numbers)
        run = run_one(path, values, options.out, options.limit or None, threads)
    except NotebookError as error:
        note(report, path.stem, None)
        say(f"FAILED {error}", sys.stderr)
        return False
    note(report, path.stem, run | made)
    say(f"{path.stem}: {run['seconds']} s, peak memory {run['peak_mb']} MB", sys.stdout)
    return True


def main(arguments=None) -> int:
    options = arguments_of(arguments)
    named = {name: yaml.safe_load(value) for name, value in options.p}
    paths = [NOTEBOOKS / f"{Path(n).stem}.ipynb" for n in options.notebooks]
    try:
        shared = read_parameters(options.params)
        known_anywhere([*shared, *named])
    except NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    if options.out.resolve() == STAGE / "notebooks":
        retire_site()
    paths = paths or sorted(NOTEBOOKS.glob("*.ipynb"))
    share = shares(options.jobs, len(paths))
    if share[0] > 1 and not options.notebooks:
        paths.reverse()  # later pages take longer: the short first ones fill the end

    def run(path):
        return run_and_note(path, shared, named, options, share)

    with ThreadPoolExecutor(share[0]) as pool:  # what has not begun is left out after Ctrl-C
        return 0 if all(list(pool.map(run, paths))) else 1


if __name__ == "__main__":
    sys.exit(main())
