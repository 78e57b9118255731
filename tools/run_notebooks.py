"""Run the notebooks with papermill, strictly, into the tree that the site is built from.

    python tools/run_notebooks.py                                 # all, with notebooks/params/quick.yaml
    python tools/run_notebooks.py 02_ridge_encoding -p subjects '[SIM02]' --out runs/sim02

papermill alone forgives a misspelt parameter, a notebook that leaves by `sys.exit`, and more. Here each of these fails,
with one line that says which notebook and why. Seconds and peak memory of each go to `<out>/runs.json`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"
CELL_LIMIT_S = 1200


class NotebookError(Exception):
    """A notebook that must not go into the book; the message is one line."""


def parameters(path: Path) -> dict:
    """Names and defaults of the one cell tagged `parameters`, which may hold literals only."""
    cells = [c for c in nbformat.read(path, 4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(
            f"{path.name}: {len(cells)} cells tagged 'parameters'; expected exactly one"
        )
    found = {}
    for statement in ast.parse(cells[0].source).body:
        targets = (
            statement.targets
            if isinstance(statement, ast.Assign)
            else [getattr(statement, "target", None)]
        )
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise NotebookError(
                f"{path.name}: the parameters cell may hold plain assignments only, found {ast.unparse(statement)!r}"
            )
        try:
            found[targets[0].id] = ast.literal_eval(statement.value)
        except ValueError:
            message = f"{path.name}: parameter {targets[0].id!r} is not a literal; derive it in the next cell"
            raise NotebookError(message) from None
        if isinstance(found[targets[0].id], str) and "=" in found[targets[0].id]:
            raise NotebookError(
                f"{path.name}: the default of {targets[0].id!r} holds '=', which papermill misreads"
            )
    return found


def check_source(path: Path):
    """What no output can show: a notebook that leaves early with success."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type != "code":
            continue
        try:
            tree = ast.parse(
                "\n".join(
                    x for x in cell.source.splitlines() if not x.lstrip().startswith(("%", "!"))
                )
            )
        except SyntaxError as error:
            raise NotebookError(f"{path.name}: a cell is not Python ({error})") from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "sys.exit",
                "exit",
                "quit",
                "os._exit",
            ):
                raise NotebookError(
                    f"{path.name}: calls {ast.unparse(node.func)}, which papermill takes for success"
                )


def check_outputs(path: Path):
    """An executed notebook must have run every code cell, and none may hold an error."""
    for number, cell in enumerate(nbformat.read(path, 4).cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                raise NotebookError(
                    f"{path.name}: cell {number} ended in {output.ename}: {output.evalue.splitlines()[0] if output.evalue else ''}"
                )
        if cell.execution_count is None:
            raise NotebookError(f"{path.name}: cell {number} was never executed")


def known_anywhere(names, folder: Path = NOTEBOOKS):
    """Refuse a parameter that no notebook has."""
    known = set().union(*(parameters(p) for p in sorted(folder.glob("*.ipynb"))))
    unknown = sorted(set(names) - known)
    if unknown:
        raise NotebookError(f"unknown parameter {unknown}; the notebooks know {sorted(known)}")


def run_one(path: Path, given: dict, out: Path, limit: int | None = CELL_LIMIT_S) -> dict:
    """Execute one notebook into `out`; seconds and peak memory of its kernel."""
    defaults = parameters(path)
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise NotebookError(
            f"{path.name}: unknown parameter {unknown}; it knows {sorted(defaults)}"
        )
    check_source(path)
    target = out.resolve() / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    # in a process of its own: the largest child's memory is then this notebook's kernel
    code = (
        "import json, papermill, resource, sys\n"
        "path, target, given, limit = json.loads(sys.stdin.read())\n"
        "papermill.execute_notebook(path, target, given, progress_bar=False, kernel_name='python3', execution_timeout=limit, cwd='.')\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    start = time.perf_counter()
    message = json.dumps([str(path), str(target), given, limit])
    environment = {
        **os.environ,
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=message,
        capture_output=True,
        text=True,
        cwd=target.parent,
        env=environment,
    )
    seconds = time.perf_counter() - start
    if target.exists():
        check_outputs(target)
    if done.returncode:
        raise NotebookError(
            f"{path.name}: {(done.stderr.strip().splitlines() or ['papermill failed'])[-1]}"
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "seconds": round(seconds, 1),
        "peak_mb": round(int(done.stdout.split()[-1]) * unit / 1e6),
        "parameters": given,
    }


def main(arguments=None) -> int:
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
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "stage" / "notebooks")
    given = parser.parse_args(arguments)
    shared = yaml.safe_load(given.params.read_text()) or {}
    named = {name: yaml.safe_load(value) for name, value in given.p}
    chosen = [NOTEBOOKS / f"{Path(n).stem}.ipynb" for n in given.notebooks] or sorted(
        NOTEBOOKS.glob("*.ipynb")
    )
    report, failures = (
        given.out.parent / "runs.json"
        if given.out.name == "notebooks"
        else given.out / "runs.json",
        [],
    )
    runs = json.loads(report.read_text()) if report.exists() else {}
    try:
        known_anywhere([*shared, *named])
    except NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    for path in chosen:
        try:
            if not path.exists():
                raise NotebookError(f"{path.name}: no such notebook in {NOTEBOOKS}")
            own = parameters(path)
            runs[path.stem] = run_one(
                path,
                {
                    k: v
                    for k, v in (shared | named).items()
                    if k in own or (k in named and given.notebooks)
                },
                given.out,
                given.limit or None,
            )
            print(
                f"{path.stem}: {runs[path.stem]['seconds']} s, peak memory {runs[path.stem]['peak_mb']} MB",
                flush=True,
            )
        except NotebookError as error:
            failures.append(path.stem)
            runs.pop(path.stem, None)
            print(f"FAILED {error}", file=sys.stderr, flush=True)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(runs, indent=1))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
