"""Build the site from executed notebooks, and refuse a site that is not whole.

    python tools/build_book.py           # _build/stage/notebooks (from run_notebooks.py) -> _build/html
    python tools/build_book.py --links   # ask every link that leads out of the book
    python tools/build_book.py --own runs/uts03/numbers  # beside a run of yours, on the page *Paper against book*
    python tools/build_book.py --sync    # write address, branch, set-up cell and the notebooks' own parameter files

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
import tempfile
from pathlib import Path

import address
import claims
import glossary
import mdtable
import nbformat
import polish
import views
import yaml
from run_notebooks import (
    SITE,
    STAGE,
    NotebookError,
    check_outputs,
    code_hash,
    made_from,
    read,
    retire_site,
    values_for,
)

from brainlib.runtime import atomic, read_json

ROOT = Path(__file__).resolve().parents[1]
PARAMS = ROOT / "notebooks" / "params"
AGAIN = "run tools/run_notebooks.py first"


class BookError(Exception):
    """A site that must not be published; the message is one line."""


def pages() -> list[str]:
    """Every entry of the table of contents, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    return [toc["root"], *(c["file"] for part in toc["parts"] for c in part["chapters"])]


# ------------------------------------------------------------------ staging
def stage(stage_dir: Path, own: Path | None = None):
    """Copy the prose, check the executed notebooks, hide injected parameters, say on each page what made it.

    `own` is the folder of numbers of a reader's run, which the page on the claims sets beside the book's.
    """
    report = stage_dir / "runs.json"
    runs = read_json(report, "runs of notebooks", remedy=AGAIN) if report.exists() else {}
    check_runs(runs)
    stage_prose(stage_dir, runs, own)
    for page in pages():
        if page.startswith("notebooks/"):
            stage_notebook(stage_dir, page, runs)


def stage_prose(stage_dir: Path, runs: dict, own: Path | None = None):
    """Copy settings and prose, and put the measured numbers into it."""
    shutil.copy(ROOT / "_toc.yml", stage_dir / "_toc.yml")
    settings = yaml.safe_dump(address.settings_of_the_site(), sort_keys=False)
    (stage_dir / "_config.yml").write_text(settings)
    shutil.rmtree(stage_dir / "book", ignore_errors=True)
    shutil.copytree(ROOT / "book", stage_dir / "book")
    for folder in ("_static", "tools"):
        shutil.rmtree(stage_dir / folder, ignore_errors=True)
    # style sheets belong at the top
    (stage_dir / "book" / "_static").rename(stage_dir / "_static")
    shutil.copytree(ROOT / "tools", stage_dir / "tools")  # pages show scripts by literalinclude
    values = measured() | address.said() | {"RUNS": status_table(runs)}
    values["CLAIMS"] = claims.table(stage_dir / "numbers", own)
    values["CLAIMS_SHORT"] = claims.short_table(stage_dir / "numbers")
    values |= views.values(stage_dir / "_static")
    for path in (stage_dir / "book").glob("*.md"):
        text = path.read_text()
        if path.name != "glossary.md":
            (text,) = glossary.link_terms([text])
        path.write_text(filled(text, values, path.name))


def filled(text: str, values: dict, name: str) -> str:
    """A page with what was measured in the place of each @@NAME@@."""
    unknown = sorted(set(re.findall(r"@@(\w+)@@", text)) - set(values))
    if unknown:
        raise BookError(
            f"book/{name} names {unknown}, which nothing measures; see tools/*_facts.py"
        )
    return re.sub(r"@@(\w+)@@", lambda found: values[found[1]], text)


def check_runs(runs: dict):
    """Refuse pages that were not made from the notebooks and the code as they are, and all with the same parameters."""
    code, profiles = code_hash(), {}
    for page in [page for page in pages() if page.startswith("notebooks/")]:
        path = ROOT / f"{page}.ipynb"
        run = runs.get(path.stem)
        if run is None:
            raise BookError(f"{page}: not executed; {AGAIN}")
        if run.get("notebook") != made_from(path, {})["notebook"]:
            raise BookError(f"{page}: changed since it was executed; {AGAIN}")
        if run.get("code") != code:
            raise BookError(f"{page}: brainlib or fireside changed since it was executed; {AGAIN}")
        profiles[run["profile"]] = page
    if len(profiles) > 1:
        raise BookError(
            f"{' and '.join(profiles.values())} were executed with different parameters; {AGAIN}"
        )


def stage_notebook(stage_dir: Path, page: str, runs: dict):
    """Refuse a notebook that was not executed as it stands in git; prepare the executed one for the site."""
    path = stage_dir / f"{page}.ipynb"
    if not path.exists():
        raise BookError(f"{page}: {path} is missing; {AGAIN}")
    check_outputs(path)
    notebook = read(path)
    prepare(notebook, runs[path.stem])
    prose = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell, text in zip(prose, glossary.link_terms([cell.source for cell in prose])):
        cell.source = text
    with atomic(path) as part:
        nbformat.write(notebook, part)


GENERATED = ("[![Open In Colab]", "*Made by", "*Not made from")  # lines that stage writes or drops


def prepare(notebook, run: dict):
    """Edit an executed notebook for the site (twice does no harm)."""
    other = run["parameters"].get("dataset", "fireside") != "fireside"
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if other and "image" in cell.metadata.get("mystnb", {}):
            image = cell.metadata.mystnb.image
            image.alt = image.alt.removesuffix("; simulated")
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        if label := fold_label(cell):
            prompts = {"code_prompt_show": label, "code_prompt_hide": label}
            cell.metadata.setdefault("mystnb", {}).update(prompts)
        if cell.cell_type == "markdown":
            lines = cell.source.splitlines()
            cell.source = "\n".join(x for x in lines if not x.startswith(GENERATED))
    title, _, rest = notebook.cells[0].source.partition("\n")
    values = [(k, v) for k, v in run["parameters"].items() if v not in ("", None) and k != "out"]
    listed = ", ".join(f"`{k}` {v}" for k, v in values) or "defaults"
    took = f"{run['seconds']:.0f} s with {run['peak_mb'] / 1000:.1f} GB of memory"
    note = f"*Made by `make book` in {took}; parameters: {listed}.*"
    if other:
        note += (
            "\n\n*Not made from fireside: what the text says of simulated subjects does not hold"
            " for the figures and numbers.*"
        )
    notebook.cells[0].source = f"{title}\n\n{note}\n{rest}"


def fold_label(cell) -> str:
    """What a folded cell is called on its page, from its `# @title`, which is what Colab calls it; "" without one."""
    title = re.match(r"# @title ([^:{\n]+)", cell.source) if cell.cell_type == "code" else None
    return title[1].strip() if title else ""


def measured() -> dict[str, str]:
    """Numbers that the prose names as @@NAME@@, from the assets themselves."""
    import fireside_facts
    import zoo_facts

    numbers = embedded_stories() | fireside_facts.facts() | whisper() | embedded_model()
    numbers |= zoo_facts.facts()
    numbers |= recordings() | reading_times()
    return {k: str(v) for k, v in numbers.items()}


def embedded_stories() -> dict:
    import soundfile

    assets = ROOT / "fireside" / "assets"
    minutes = [soundfile.info(f).duration / 60 for f in sorted((assets / "audio").glob("*.ogg"))]
    aligned = json.loads((assets / "alignment.json").read_text())
    return {
        "N_STORIES": len(minutes),
        "MINUTES": f"{sum(minutes):.0f}",
        "SHORTEST": f"{min(minutes):.1f}",
        "LONGEST": f"{max(minutes):.1f}",
        "ALIGNED": f"{aligned['within_50_ms']:.1%}",
        "HELD_OUT": f"{aligned['within_50_ms_stories_not_used']:.1%}",
        "ONSETS": aligned["onsets"],
    }


def whisper() -> dict:
    """Size and check of the embedded Whisper encoder."""
    from safetensors.numpy import load_file

    folder = ROOT / "brainlib" / "assets" / "whisper-tiny.en"
    shape = json.loads((folder / "config.json").read_text())
    check = json.loads((folder / "check.json").read_text())
    size = sum(weights.size for weights in load_file(folder / "model.safetensors").values())
    return {
        "WHISPER_PARAMETERS": f"{size / 1e6:.1f}",
        "WHISPER_LAYERS": shape["encoder_layers"],
        "WHISPER_WIDTH": shape["d_model"],
        "WHISPER_DIFFERENCE": f"{max(check['largest_difference_by_layer']):g}",
    }


def embedded_model() -> dict:
    folder = ROOT / "brainlib" / "assets" / "wavlm-pico"
    log = json.loads((folder / "training.json").read_text())
    scores = json.loads((folder / "evaluation.json").read_text())
    phonemes = scores["phoneme_accuracy"].items()
    return {
        "MODELS_TABLE": level_table(scores["models"]),
        "PICO_LAYER": scores["probe_layer"],
        "PICO_PHONEMES": ", ".join(f"{v:.2f} ({k})" for k, v in phonemes),
        "PICO_MEANING": f"{best_beyond(scores, 'wavlm-pico'):.2f}",
        "WHISPER_MEANING": f"{best_beyond(scores, 'whisper-tiny.en'):.2f}",
        "PICO_HOURS": log["hours_of_speech"],
        "PICO_MINUTES": f"{log['curve'][-1]['minutes']:.0f}",
    }


def best_beyond(kept: dict, model: str, level: str = "meaning") -> float:
    """What a model's best layer adds to low-level features in the voxels of a level (tools/check_pico.py)."""
    return max(kept["models"][model]["beyond_low_level"][level])


def level_table(models: dict) -> str:
    """Scores of tools/check_pico.py: a row per model and layer, the correlation without noise and what is beyond low-level."""
    alone = next(iter(models.values()))["low_level"]
    rows = [["low-level features", "", *(f"{r[0]:.2f}" for r in alone.values()), "", ""]]
    for name, scores in models.items():
        columns = [*scores["noise_free"].values()]
        columns += [scores["beyond_low_level"][level] for level in ("meaning", "context")]
        layers = range(len(columns[0]))
        if name == "random weights":  # its layers are alike
            columns, layers = [[max(column)] for column in columns], ["best"]
        for layer, numbers in zip(layers, zip(*columns)):
            rows.append([name, layer, *(f"{r:z.2f}" for r in numbers)])
    beyond = ["meaning, beyond", "context, beyond"]
    return mdtable.table(["features", "layer", *alone, *beyond], rows)


def recordings() -> dict:
    """What the page on real recordings says of them: from the shipped list of files and the regions' table."""
    from brainlib import lebel

    files = lebel.manifest()
    rows = []
    for subject in sorted(set(files.subject) - {""}):
        names = sum(lebel.split_of([subject]).values(), [])
        own = files[files.subject == subject]
        responses = own[own.story.isin(names)]
        test = responses[responses.story == lebel.TEST].bytes.sum() / 1e9
        anatomy = own[own.kind == "cortex"].bytes.sum() / 1e6
        total = responses.bytes.sum() / 1e9
        rows.append([subject, len(names), f"{total:.2f}", f"{test:.2f}", f"{anatomy:.0f}"])
    header = ["subject", "stories", "responses (GB)", "test story (GB)", "anatomy (MB)"]
    split = lebel.split_of(["UTS03"])
    names = sum(split.values(), [])
    profile = yaml.safe_load((PARAMS / "colab_lebel.yaml").read_text())
    few = [n for n in names if n not in split["train"][profile["n_train"] :]]
    part = files[files.subject.isin(["", *profile["subjects"]]) & files.story.isin([*few, ""])]
    sound = files[(files.kind == "stimuli") & files.story.isin(names)]
    return {
        "LEBEL_TABLE": mdtable.table(header, rows),
        "REGION_TABLE": region_table(),
        "LEBEL_FILES": len(files),
        "LEBEL_AUDIO": f"{sound.bytes.sum() / 1e9:.1f}",
        "SLICE": f"{part.bytes.sum() / 1e9:.1f}",
    }


def region_table() -> str:
    from brainlib import cortex

    rows = [
        [f"`{name}`", ", ".join(destrieux.split()), ", ".join(glasser.split())]
        for name, (destrieux, glasser) in cortex.REGIONS.items()
    ]
    for name, parts in cortex.UNIONS.items():
        rows.append([f"`{name}`", " + ".join(f"`{p}`" for p in parts), "the same"])
    return mdtable.table(["region", "aparc.a2009s", "HCP-MMP1"], rows)


def reading_times() -> dict:
    """Time and memory to read a whole subject, from the benchmark."""
    bench = json.loads((ROOT / "benchmarks" / "recordings.json").read_text())
    rows = []
    for run in bench["runs"]:
        step = run["voxel_step"]
        voxels = "all" if step == 1 else f"one in {step}"
        rows.append([run["what"], voxels, f"{run['seconds']:.0f}", f"{run['peak_gb']:.1f}"])
    header = ["what", "voxels", "seconds", "peak memory (GB)"]
    return {
        "RECORDINGS_TABLE": mdtable.table(header, rows),
        "RECORDINGS_SUBJECT": bench["subject"],
        "RECORDINGS_SHAPE": f"{bench['rows']:,} rows of {bench['voxels']:,} voxels",
    }


def status_table(runs: dict) -> str:
    rows = [
        [name, f"{run['seconds']:.0f}", f"{run['peak_mb'] / 1000:.2f}"]
        for name, run in sorted(runs.items())
    ]
    at_a_time = max((run.get("at_a_time", 1) for run in runs.values()), default=1)
    how = "one after the other" if at_a_time == 1 else f"up to {at_a_time} at a time"
    table = mdtable.table(["notebook", "seconds", "peak memory (GB)"], rows)
    return f"\nThey ran {how}.\n\n{table}\n"


# ------------------------------------------------------------------ assertions on the site
def check_site(site: Path):
    """Every page is there with its title; notebooks have outputs, alt texts and one Colab link to a file in git."""
    git = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    listed = git.stdout.split()
    for page in pages():
        path = site / f"{page}.html"
        if not path.exists():
            raise BookError(f"{page}: no page {path}")
        text = path.read_text(encoding="utf-8")
        body = text[text.index("<main") : text.index("</main>")] if "<main" in text else text
        check_page(page, text, body)
        if page.startswith("notebooks/"):
            check_notebook_page(page, text, body)
            if listed and f"{page}.ipynb" not in listed:
                raise BookError(f"{page}.ipynb is not in git, so its Colab link is dead")


def check_page(page: str, text: str, body: str):
    if not re.search(r"<h1[^>]*>\s*[^<\s]", text):
        raise BookError(f"{page}: no title")
    for image in re.findall(r"<img\b[^>]*>", body):
        alt = re.search(r'alt="([^"]*)"', image)
        words = html.unescape(alt[1]).split() if alt else []
        if len(words) < 4 and "logo" not in image:
            raise BookError(
                f"{page}: an image without alt text of at least four words: {image[:120]}"
            )
    if fetched := re.findall(r"<(?:script|img|iframe)[^>]* src=\"(https?://[^\"]+)", text):
        raise BookError(f"{page}: asks for {fetched}, but a page must do without a network")
    if 'class="output traceback' in body or "Traceback (most recent call last)" in body:
        raise BookError(f"{page}: holds an error")


def check_notebook_page(page: str, text: str, body: str):
    if 'class="cell_output' not in body:
        raise BookError(f"{page}: no outputs")
    if "injected-parameters" in body:
        raise BookError(f"{page}: shows the injected parameters")
    links = set(re.findall(r'href="(https://colab\.research\.google\.com/[^"]+)"', text))
    wanted = address.colab_link(page)
    if links != ({wanted} if wanted else set()):
        raise BookError(f"{page}: Colab links {sorted(links)}; expected {wanted or 'none'}")


# ------------------------------------------------------------------ files that follow from others
def slices() -> dict[Path, str]:
    """`params/<profile>/<notebook>.yaml`: of each profile what each notebook knows, so that plain papermill warns of nothing."""
    texts = {}
    for profile in sorted(PARAMS.glob("*.yaml")):
        shared = yaml.safe_load(profile.read_text())
        for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
            own = values_for(notebook, shared)
            head = f"# {profile.name}, what {notebook.stem} knows of it; by tools/build_book.py --sync\n"
            body = yaml.safe_dump(own, sort_keys=False, default_flow_style=None)
            texts[PARAMS / profile.stem / f"{notebook.stem}.yaml"] = head + body
    return texts


def sync():
    """Write address, branch or tag, set-up cell and the notebooks' own parameter files wherever they belong."""
    for path in address.holders():
        write(path, address.renewed(path))
    wanted = slices()
    for path in sorted(set(PARAMS.glob("*/*.yaml")) - set(wanted)):
        path.unlink()
    for path, text in wanted.items():
        write(path, text)


def write(path: Path, text: str):
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: brought up to date")


# ------------------------------------------------------------------ the site
def jupyter_book(folder: Path, builder: str = "html"):
    """Build a staged tree; a warning is an error, as is a link that leads nowhere in the book."""
    shutil.rmtree(folder / "_build", ignore_errors=True)
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(folder), "-n", "-W", "--keep-going"]
    command += ["--quiet", "--builder", builder]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", file=sys.stderr)
        raise BookError("jupyter-book found something to warn of (above)")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sync",
        action="store_true",
        help="only write address, set-up cell and parameter files where they belong",
    )
    parser.add_argument(
        "--links",
        action="store_true",
        help="only ask every link that leads out of the book; needs a network, no executed notebook",
    )
    parser.add_argument(
        "--own", type=Path, help="folder of numbers of a run of yours, for the page on the claims"
    )
    options = parser.parse_args(arguments)
    if options.sync:
        sync()
        return 0
    try:
        if options.links:
            check_links()
        else:
            build_site(options.own)
    except (BookError, NotebookError, OSError, ValueError) as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    return 0


def build_site(own: Path | None = None):
    """The site, from the executed notebooks; an earlier one is put aside first."""
    retire_site()
    stage(STAGE, own)
    jupyter_book(STAGE)
    polish.polish(STAGE / "_build" / "html")
    check_site(STAGE / "_build" / "html")
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.copytree(STAGE / "_build" / "html", SITE)
    print(f"{len(pages())} pages in {SITE / 'index.html'}")


def check_links():
    """Ask every link that leads out of the book, by Sphinx's linkcheck; the notebooks need not have been executed."""
    with tempfile.TemporaryDirectory() as folder:
        stage_prose(Path(folder), {})
        clean = shutil.ignore_patterns("params", "*.toml")
        shutil.copytree(ROOT / "notebooks", Path(folder) / "notebooks", ignore=clean)
        jupyter_book(Path(folder), "linkcheck")
    print("every link that leads out of the book answers")


if __name__ == "__main__":
    sys.exit(main())
