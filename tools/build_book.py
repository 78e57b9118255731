"""Build the site from executed notebooks, and refuse a site that only looks built.

    python tools/build_book.py           # _build/stage/notebooks (from run_notebooks.py) -> _build/html
    python tools/build_book.py --sync    # write address, branch and set-up cell into every file that holds them

Staged: `_config.yml`, `_toc.yml`, `book/`, and the executed notebooks under the same relative paths, so that Colab links
point at the clean notebooks in git. Then jupyter-book with warnings as errors, then assertions on the HTML.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml
from run_notebooks import NotebookError, check_outputs

ROOT = Path(__file__).resolve().parents[1]
STAGE, SITE = ROOT / "_build" / "stage", ROOT / "_build" / "html"
HOLDERS = (
    "README.md",
    "CITATION.cff",
    "pyproject.toml",
    "CONTRIBUTING.md",
    "notebooks/*.ipynb",
    "book/*.md",
)


class BookError(Exception):
    """A site that must not be published; the message is one line."""


def config() -> dict:
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def pages() -> list[str]:
    """Every entry of the table of contents, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


# ------------------------------------------------------------------ staging
def stage(stage_dir: Path):
    """Copy the prose, check the executed notebooks, hide injected parameters, say on each page what made it."""
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, stage_dir / name)
    shutil.rmtree(stage_dir / "book", ignore_errors=True)
    shutil.copytree(ROOT / "book", stage_dir / "book")
    shutil.rmtree(stage_dir / "_static", ignore_errors=True)
    (stage_dir / "book" / "_static").rename(
        stage_dir / "_static"
    )  # where jupyter-book looks for style sheets
    runs = (
        json.loads((stage_dir / "runs.json").read_text())
        if (stage_dir / "runs.json").exists()
        else {}
    )
    for page in pages():
        if not page.startswith("notebooks/"):
            continue
        path = stage_dir / f"{page}.ipynb"
        if not path.exists() or path.stem not in runs:
            raise BookError(f"{page}: not executed; run tools/run_notebooks.py first")
        if path.stat().st_mtime < (ROOT / f"{page}.ipynb").stat().st_mtime:
            raise BookError(
                f"{page}: changed since it was executed; run tools/run_notebooks.py again"
            )
        check_outputs(path)
        notebook = nbformat.read(path, 4)
        prepare(notebook, runs[path.stem])
        nbformat.write(notebook, path)
    values = measured() | {"RUNS": status_table(runs)}
    for path in (stage_dir / "book").glob("*.md"):
        path.write_text(re.sub(r"@@(\w+)@@", lambda m: values[m[1]], path.read_text()))


def prepare(notebook, run: dict):
    """Edit an executed notebook for the site (twice does no harm)."""
    other = run["parameters"].get("dataset", "fireside") != "fireside"
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if other and "mystnb" in cell.metadata:
            cell.metadata.mystnb.image.alt = cell.metadata.mystnb.image.alt.removesuffix(
                "; simulated"
            )
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        if cell.cell_type == "markdown":
            lines = [
                x
                for x in cell.source.splitlines()
                if not x.startswith(("[![Open In Colab]", "*Made by", "*Not made from"))
            ]
            cell.source = "\n".join(lines)
    title, _, rest = notebook.cells[0].source.partition("\n")
    given = ", ".join(f"`{k}` {v}" for k, v in run["parameters"].items() if v != "")
    note = f"*Made by `make book` in {run['seconds']:.0f} s with {run['peak_mb'] / 1000:.1f} GB of memory; parameters: {given or 'defaults'}.*"
    if other:
        note += "\n\n*Not made from fireside: what the text says of simulated listeners does not hold of the figures and numbers.*"
    notebook.cells[0].source = f"{title}\n\n{note}\n{rest}"


def measured() -> dict[str, str]:
    """Numbers that the prose names as @@NAME@@, from the assets themselves."""
    import soundfile

    folder = ROOT / "brainlib" / "assets"
    minutes = [
        soundfile.info(f).duration / 60
        for f in sorted((ROOT / "fireside" / "assets" / "audio").glob("*.ogg"))
    ]
    aligned = json.loads((ROOT / "fireside" / "assets" / "alignment.json").read_text())
    log = json.loads((folder / "wavlm-pico" / "training.json").read_text())
    judged = json.loads((folder / "wavlm-pico" / "evaluation.json").read_text())
    levels, fresh = judged["share_of_ceiling"], judged["random_weights_best_layer"]
    table = ["| layer | " + " | ".join(levels) + " |", "|---" * (len(levels) + 1) + "|"]
    table += [
        f"| {i} | " + " | ".join(f"{v:.2f}" for v in row) + " |"
        for i, row in enumerate(zip(*levels.values()))
    ]
    table += [
        "| random weights, best layer | " + " | ".join(f"{fresh[k]:.2f}" for k in levels) + " |"
    ]
    numbers = {
        "PICO_TABLE": "\n".join(table),
        "PICO_LAYER": judged["probe_layer"],
        "PICO_PHONEMES": ", ".join(f"{v:.2f} ({k})" for k, v in judged["phoneme_accuracy"].items()),
        "N_STORIES": len(minutes),
        "MINUTES": f"{sum(minutes):.0f}",
        "SHORTEST": f"{min(minutes):.1f}",
        "LONGEST": f"{max(minutes):.1f}",
        "ALIGNED": f"{aligned['within_50_ms']:.1%}",
        "HELD_OUT": f"{aligned['within_50_ms_stories_not_used']:.1%}",
        "ONSETS": aligned["onsets"],
        "PICO_HOURS": log["hours_of_speech"],
        "PICO_MINUTES": f"{log['curve'][-1]['minutes']:.0f}",
    }
    return {k: str(v) for k, v in (numbers | recordings()).items()}


def recordings() -> dict:
    """What the page on real recordings says of them: from the shipped list of files, the regions' table, and the benchmark."""
    from brainlib import cortex, lebel

    files, rows = (
        lebel.manifest(),
        [
            "| listener | stories | responses (GB) | test story (GB) | anatomy (MB) |",
            "|---|---|---|---|---|",
        ],
    )
    for subject in sorted(set(files.subject) - {""}):
        names = sum(lebel.split_of([subject]).values(), [])
        mine = files[files.subject == subject]
        heard = mine[mine.story.isin(names)]
        test, anatomy = (
            heard[heard.story == lebel.TEST].bytes.sum() / 1e9,
            mine[mine.kind == "cortex"].bytes.sum() / 1e6,
        )
        rows.append(
            f"| {subject} | {len(names)} | {heard.bytes.sum() / 1e9:.2f} | {test:.2f} | {anatomy:.0f} |"
        )
    regions = ["| region | aparc.a2009s | HCP-MMP1 |", "|---|---|---|"]
    regions += [
        f"| `{k}` | {', '.join(a.split())} | {', '.join(b.split())} |"
        for k, (a, b) in cortex.REGIONS.items()
    ]
    for name, parts in (("auditory", cortex.AUDITORY), ("late_language", cortex.LATE_LANGUAGE)):
        regions.append(f"| `{name}` | {' + '.join(f'`{p}`' for p in parts)} | the same |")
    names = sum(lebel.split_of(["UTS03"]).values(), [])
    given = yaml.safe_load((ROOT / "notebooks" / "params" / "colab_lebel.yaml").read_text())
    few = [n for n in names if n not in lebel.split_of(["UTS03"])["train"][given["n_train"] :]]
    part = files[files.subject.isin(["", *given["subjects"]]) & files.story.isin([*few, ""])]
    bench = json.loads((ROOT / "benchmarks" / "recordings.json").read_text())
    table = ["| what | voxels | seconds | peak memory (GB) |", "|---|---|---|---|"]
    table += [
        f"| {r['what']} | {'all' if r['every'] == 1 else 'one in ' + str(r['every'])} | {r['seconds']:.0f} | {r['peak_gb']:.1f} |"
        for r in bench["runs"]
    ]
    return {
        "LEBEL_TABLE": "\n".join(rows),
        "REGION_TABLE": "\n".join(regions),
        "RECORDINGS_TABLE": "\n".join(table),
        "LEBEL_FILES": len(files),
        "LEBEL_AUDIO": f"{files[(files.kind == 'stimuli') & files.story.isin(names)].bytes.sum() / 1e9:.1f}",
        "SLICE": f"{part.bytes.sum() / 1e9:.1f}",
        "RECORDINGS_SUBJECT": bench["subject"],
        "RECORDINGS_SHAPE": f"{bench['rows']:,} rows of {bench['voxels']:,} voxels",
    }


def status_table(runs: dict) -> str:
    rows = [
        f"| {name} | {run['seconds']:.0f} | {run['peak_mb'] / 1000:.2f} |"
        for name, run in sorted(runs.items())
    ]
    return "\n".join(["", "| notebook | seconds | peak memory (GB) |", "|---|---|---|", *rows, ""])


# ------------------------------------------------------------------ assertions on the site
def check_site(site: Path):
    """Every page is there with its title; notebooks have outputs, alt texts and one Colab link to a file in git."""
    settings = config()["repository"]
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    for page in pages():
        path = site / f"{page}.html"
        if not path.exists():
            raise BookError(f"{page}: no page {path}")
        text = path.read_text(encoding="utf-8")
        if not re.search(r"<h1[^>]*>\s*[^<\s]", text):
            raise BookError(f"{page}: no title")
        body = text[text.index("<main") : text.index("</main>")] if "<main" in text else text
        for image in re.findall(r"<img\b[^>]*>", body):
            alt = html.unescape((re.search(r'alt="([^"]*)"', image) or [None, ""])[1])
            if len(alt.split()) < 4 and "logo" not in image:
                raise BookError(
                    f"{page}: an image without alt text of at least four words: {image[:120]}"
                )
        if 'class="output traceback' in body or "Traceback (most recent call last)" in body:
            raise BookError(f"{page}: holds an error")
        if not page.startswith("notebooks/"):
            continue
        if 'class="cell_output' not in body:
            raise BookError(f"{page}: no outputs")
        if "injected-parameters" in body:
            raise BookError(f"{page}: shows the injected parameters")
        links = set(re.findall(r'href="(https://colab\.research\.google\.com/[^"]+)"', text))
        wanted = f"https://colab.research.google.com/github/{address(settings)}/blob/{settings['branch']}/{page}.ipynb"
        if links != {wanted}:
            raise BookError(f"{page}: Colab links {sorted(links)}; expected {wanted}")
        if listed and f"{page}.ipynb" not in listed:
            raise BookError(f"{page}.ipynb is not in git, so its Colab link is dead")


# ------------------------------------------------------------------ the public address
def address(settings: dict | None = None) -> str:
    """`owner/name` of the repository, from the one place where it stands."""
    return (
        (settings or config()["repository"])["url"].removeprefix("https://github.com/").strip("/")
    )


def holders() -> list[Path]:
    return sorted(p for pattern in HOLDERS for p in ROOT.glob(pattern))


def addresses(text: str) -> set[str]:
    """Every `owner/name` that a text gives as this book's own address (marked by the book's install, badge or clone line)."""
    own = r"(?:git\+https://github\.com/|git clone https://github\.com/|colab\.research\.google\.com/github/)([\w.-]+/[\w-]+)"
    return set(re.findall(own, text))


def setup_cell() -> str:
    """The set-up cell of every notebook, installing from the address and the branch or tag of _config.yml."""
    settings, text = config()["repository"], (ROOT / "tools" / "setup_cell.py").read_text().strip()
    return text.replace("@@SOURCE@@", f"git+{settings['url']}@{settings['branch']}")


def sync():
    """Write address, branch or tag, and set-up cell into every file that holds them."""
    wanted, settings = address(), config()["repository"]
    for path in holders():
        text = path.read_text(encoding="utf-8")
        new = text
        for old in addresses(text) - {wanted}:
            new = new.replace(old, wanted)
        if path.suffix == ".ipynb":
            notebook = nbformat.reads(new, 4)
            for cell in notebook.cells:
                if "find_spec" in cell.source and cell.cell_type == "code":
                    cell.source = setup_cell()
                cell.source = re.sub(
                    rf"blob/[^/]+/notebooks/{path.name}",
                    f"blob/{settings['branch']}/notebooks/{path.name}",
                    cell.source,
                )
            notebook.metadata["colab"]["name"] = path.name
            new = nbformat.writes(notebook) + "\n"
        if new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: brought up to date with _config.yml")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="only write the public address and the set-up cell where they belong",
    )
    if parser.parse_args(arguments).sync:
        sync()
        return 0
    try:
        stage(STAGE)
        shutil.rmtree(STAGE / "_build", ignore_errors=True)
        command = [
            sys.executable,
            "-c",
            "from jupyter_book.cli.main import main; main()",
            "build",
            str(STAGE),
            "-n",
            "-W",
            "--keep-going",
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
            raise BookError("jupyter-book found something to warn of (above)")
        check_site(STAGE / "_build" / "html")
        shutil.rmtree(SITE, ignore_errors=True)
        shutil.copytree(STAGE / "_build" / "html", SITE)
    except (BookError, NotebookError) as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    print(f"{len(pages())} pages in {SITE / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
