"""The project holds together: notebooks, runner, builder, address, requirements."""

import ast
import html
import importlib
import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from pathlib import Path

import address
import build_book
import lock
import nbformat
import numpy as np
import polish
import pytest
import run_notebooks
import views
import yaml
from conftest import ROOT
from packaging.utils import canonicalize_name
from run_notebooks import NotebookError
from sklearn.linear_model import Ridge

import brainlib

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
HEADINGS = (
    "**After it you will be able to**",
    "**What you need**",
    "## Check against the ground truth",
    "## Exercises",
    "## What to take away",
    "**Next**",
)
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


PACKAGES = ("brainlib", "fireside", "tools", "benchmarks")
SOURCES = [p for folder in PACKAGES for p in sorted((ROOT / folder).glob("*.py"))]
PROSE = [*sorted((ROOT / "book").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]


def code_cells(path):
    return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]


def sizes(cells):
    """Lines that are not blank of each cell, in increasing order."""
    return sorted(len([x for x in c.source.splitlines() if x.strip()]) for c in cells)


@each
def test_a_notebook_in_git_is_clean_and_small(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert not any(c.outputs or c.execution_count for c in code_cells(path))
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert path.stat().st_size < 120_000


@each
def test_a_notebook_follows_the_skeleton(path):
    text = "\n".join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown")
    positions = [text.find(h) for h in HEADINGS]
    assert -1 not in positions and positions == sorted(positions)
    assert len(re.findall(r"^# ", text, re.M)) == 1
    assert not re.search(r"\{[a-z-]+\}`|^:::|^```\{", text, re.M)  # MyST, which Colab shows raw
    solutions = [c for c in code_cells(path) if c.source.startswith("# @title Solution")]
    assert len(solutions) >= 3 and all("hide-cell" in c.metadata.tags for c in solutions)
    assert text.count("<summary>Answer</summary>") >= 3


@each
def test_cells_are_short_and_nothing_is_cut_on_the_page(path):
    made = [c for c in code_cells(path) if c.source != address.setup_cell()]
    folded = {"hide-cell", "hide-input", "remove-cell", "remove-input"}
    visible = [c for c in made if not folded & set(c.metadata.get("tags", []))]
    lines = sizes(visible)
    assert lines[len(lines) // 2] <= 6, f"median of {lines}"
    assert lines[int(0.9 * len(lines))] <= 12, f"nine in ten of {lines}"
    assert sizes(made)[-1] <= 25
    wide = [x for c in visible for x in c.source.splitlines() if len(x) > 76]
    assert not wide


@each
def test_cells_are_explained_and_their_figures_described(path):
    cells = nbformat.read(path, 4).cells
    for before, cell in zip(cells, cells[1:]):
        if cell.cell_type != "code":
            continue
        hidden = {"parameters", "hide-cell", "hide-input"} & set(cell.metadata.get("tags", []))
        assert before.cell_type == "markdown" or hidden, cell.source[:80]
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 15, node.name
        if "plt.subplots" in cell.source or "plot_cortex" in cell.source:
            assert 5 <= len(cell.metadata.mystnb.image.alt.split()) <= 40, cell.source[:80]


@each
def test_the_parameters_are_literals_with_a_comment_and_known_to_the_files(path):
    assert run_notebooks.parameters(path)
    cell = next(c for c in code_cells(path) if "parameters" in c.metadata.get("tags", []))
    assert all(":" in x and "#" in x for x in cell.source.splitlines())


@each
def test_where_a_notebook_reads_and_writes_is_left_to_the_reader(path):
    """A cell that uses `out` for something else would write the numbers nowhere."""
    kept = {"dataset", "speech_model", "precomputed", "keep", "drive", "out", "seed"}
    for cell in code_cells(path):
        if "parameters" in cell.metadata.get("tags", []):
            continue
        names = [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, ast.Name)]
        set_anew = {n.id for n in names if isinstance(n.ctx, ast.Store)} & kept
        assert not set_anew, f"{set_anew} in {cell.source[:80]!r}"


PROFILES = sorted((ROOT / "notebooks/params").glob("*.yaml"))


def test_profiles_hold_the_same_parameters_each_known_to_a_notebook():
    own = {p.stem for p in NOTEBOOKS}
    profiles = {p.stem: yaml.safe_load(p.read_text()) for p in PROFILES}
    keys = {k: [x for x in profile if x not in own] for k, profile in profiles.items()}
    assert set(keys) == {"quick", "colab", "lebel", "colab_lebel"}
    assert len({tuple(k) for k in keys.values()}) == 1
    for profile in profiles.values():
        run_notebooks.known_anywhere(profile)
        for path in NOTEBOOKS:
            assert set(profile.get(path.stem, {})) <= set(run_notebooks.parameters(path))


def test_the_notebooks_own_parameter_files_are_in_step():
    """`tools/build_book.py --sync` writes them: papermill warns of nothing, and nothing is left out."""
    wanted = build_book.slices()
    assert len(wanted) == len(PROFILES) * len(NOTEBOOKS)
    written = {p: p.read_text() for p in (ROOT / "notebooks/params").glob("*/*.yaml")}
    assert written == wanted
    for path, text in written.items():
        own = run_notebooks.parameters(ROOT / f"notebooks/{path.stem}.ipynb")
        assert set(yaml.safe_load(text)) == set(own), path


@each
def test_the_set_up_cell_is_the_generated_one_and_follows_the_parameters(path):
    cell = code_cells(path)[1]
    assert cell.source == address.setup_cell() and "find_spec" in cell.source
    assert cell.metadata.cellView == "form" and cell.source.startswith("# @title Set-up")
    assert "hide-cell" in cell.metadata.tags


def test_every_name_used_from_brainlib_is_in_the_api_page():
    listed = set(re.findall(r"\w+", (ROOT / "book/api.md").read_text()))
    modules = {
        "datasets",
        "encoding",
        "fireside",
        "lowlevel",
        "results",
        "runtime",
        "surface",
        "timing",
    }
    for path in NOTEBOOKS:
        for node in ast.walk(ast.parse("\n".join(c.source for c in code_cells(path)))):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in modules
                and node.attr.islower()
            ):
                assert node.attr in listed, f"{path.stem}: {node.value.id}.{node.attr}"


# ------------------------------------------------------------------ the runner
def make(folder, *sources, parameters="x: int = 1  # a number", name="n.ipynb"):
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    if parameters is not None:
        cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(notebook, folder / name)
    return folder / name


def test_a_good_notebook_runs_and_is_measured(tmp_path):
    path = make(tmp_path, "print(x + 1)")
    run = run_notebooks.run_one(path, {"x": 41}, tmp_path / "out")
    done = nbformat.read(tmp_path / "out/n.ipynb", 4)
    assert done.cells[-1].outputs[0].text == "42\n" and run["seconds"] > 0 and run["peak_mb"] > 20


@pytest.mark.parametrize(
    "sources, options, message",
    [
        (["1"], {"parameters": None}, "0 cells tagged 'parameters'"),
        (["1"], {"parameters": "x = 1 + 1"}, "parameter 'x' is not a literal"),
        (["1"], {"parameters": "x = 1\nprint(x)"}, "plain assignments only"),
        (["1"], {"parameters": "x = 'a=b'"}, "holds '='"),
        (["import sys\nsys.exit(0)"], {}, "calls sys.exit"),
        (["1 / 0"], {}, "ended in ZeroDivisionError"),
        (["def ("], {}, "not Python"),
    ],
)
def test_what_papermill_forgives_fails_here(tmp_path, sources, options, message):
    path = make(tmp_path, *sources, **options)
    with pytest.raises(NotebookError, match=message) as error:
        run_notebooks.run_one(path, {}, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_notebooks.run_one(make(tmp_path, "1"), {}, Path("out/deep"))
    assert (tmp_path / "out/deep/n.ipynb").exists()


def test_a_misspelt_parameter_fails(tmp_path):
    with pytest.raises(NotebookError, match=r"unknown parameter \['y'\]; it knows \['x'\]"):
        run_notebooks.run_one(make(tmp_path, "1"), {"y": 2}, tmp_path / "out")
    command = [
        sys.executable,
        "tools/run_notebooks.py",
        "-p",
        "subjekt",
        "SIM01",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stderr.startswith("FAILED unknown parameter ['subjekt']")
        and done.stderr.count("\n") == 1
    )


def test_a_parameter_reaches_the_notebooks_that_know_it(tmp_path, monkeypatch):
    both, calls = (
        [
            make(tmp_path, "1", name="01_a.ipynb"),
            make(tmp_path, "1", parameters="y: int = 2  # other", name="02_b.ipynb"),
        ],
        [],
    )
    (tmp_path / "p.yaml").write_text("x: 3")
    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run_notebooks.known_anywhere, "__defaults__", (tmp_path,))
    monkeypatch.setattr(
        run_notebooks,
        "run_one",
        lambda path, given, *_: calls.append((path.stem, given)) or {"seconds": 0, "peak_mb": 0},
    )
    options = ["--params", str(tmp_path / "p.yaml"), "-p", "y", "-5", "--out", str(tmp_path)]
    assert run_notebooks.main(options) == 0 and calls == [("01_a", {"x": 3}), ("02_b", {"y": -5})]
    calls.clear()
    run_notebooks.main(["01_a", *options])
    assert (
        calls == [("01_a", {"x": 3, "y": -5})] and len(both) == 2
    )  # asked for by name: it must know the parameter


def test_two_notebooks_run_at_once_share_the_threads_and_are_both_noted(tmp_path, monkeypatch):
    both, threads = threading.Barrier(2, timeout=60), []
    for name in ("01_a", "02_b"):
        make(tmp_path, "1", name=f"{name}.ipynb")

    def run_one(path, values, out, limit, n_threads):
        both.wait()  # breaks if the other one does not run
        threads.append(n_threads)
        if path.stem == "02_b":
            raise NotebookError("02_b: no")
        return {"seconds": 1, "peak_mb": 1}

    monkeypatch.setattr(run_notebooks, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(run_notebooks, "run_one", run_one)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    options = ["01_a", "02_b", "--params", os.devnull, "--out", str(tmp_path), "--jobs", "9"]
    assert run_notebooks.main(options) == 1 and threads == [1, 1]
    runs = json.loads((tmp_path / "runs.json").read_text())
    assert list(runs) == ["01_a"] and runs["01_a"]["at_a_time"] == 2
    assert "up to 2 at a time" in build_book.status_table(runs)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert run_notebooks.shares(9, 2) == (1, None)


def test_a_notebook_s_own_value_goes_before_the_shared_one_and_a_given_one_before_both(tmp_path):
    path = make(tmp_path, "1", name="01_a.ipynb")
    profile = {"x": 3, "z": 4, "01_a": {"x": 5}, "02_b": {"x": 6}}
    assert run_notebooks.values_for(path, profile) == {"x": 5}
    run_notebooks.known_anywhere({"x", "01_a"}, tmp_path)
    with pytest.raises(NotebookError, match="unknown parameter .'02_b'"):
        run_notebooks.known_anywhere({"02_b"}, tmp_path)


def test_a_cell_that_was_not_executed_fails(tmp_path):
    with pytest.raises(NotebookError, match="cell 0 was never executed"):
        run_notebooks.check_outputs(make(tmp_path, "1"))


# ------------------------------------------------------------------ the builder
PAGE = '<main><h1>Title</h1><div class="cell_output">1</div>{body}</main><a href="{colab}">'
PUBLIC = "https://github.com/someone/a-book"


@pytest.fixture
def public(monkeypatch):
    """The settings with an address."""
    settings = address.config()
    settings["repository"] |= {"url": PUBLIC, "branch": "v1"}
    monkeypatch.setattr(address, "config", lambda: settings)


@pytest.fixture
def site(tmp_path, public):
    picture = '<img src="a.png" alt="a picture of a cortex">'
    for page in build_book.pages():
        path = tmp_path / f"{page}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE.format(body=picture, colab=address.colab_link(page)))
    return tmp_path


def test_a_whole_site_passes(site):
    build_book.check_site(site)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda p: p.unlink(), "no page"),
        (lambda p: p.write_text(p.read_text().replace("<h1>Title", "<h1>")), "no title"),
        (lambda p: p.write_text(p.read_text().replace("cell_output", "x")), "no outputs"),
        (
            lambda p: p.write_text(p.read_text().replace("a picture of a cortex", "a1b2c3.png")),
            "without alt text",
        ),
        (
            lambda p: p.write_text(p.read_text().replace("colab.research", "colob.research")),
            "Colab links",
        ),
        (
            lambda p: p.write_text(p.read_text().replace("/blob/v1", "/blob/v2")),
            "Colab links",
        ),
        (
            lambda p: p.write_text(
                p.read_text().replace("<h1>", "Traceback (most recent call last)<h1>")
            ),
            "holds an error",
        ),
    ],
)
def test_a_site_that_only_looks_built_fails(site, edit, message):
    edit(site / "notebooks/02_ridge_encoding.html")
    with pytest.raises(build_book.BookError, match=message):
        build_book.check_site(site)


def test_without_an_address_a_page_with_a_colab_link_fails(site, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(address, "config", lambda: {"repository": {"url": "", "branch": "main"}})
    with pytest.raises(build_book.BookError, match="Colab links .*; expected none"):
        build_book.check_site(site)


def test_a_figure_becomes_a_link_to_itself_once():
    image = '<img alt="a cortex from two sides" src="../_images/abc.png" />'
    logo = '<img alt="logo" src="../_static/logo.svg" />'
    text = polish.enlarge(polish.enlarge(image + logo))
    assert text.count('<a class="enlarge" href="../_images/abc.png"') == 1
    assert image in text and text.endswith(logo)


def test_an_interactive_view_becomes_a_page_that_its_link_loads(tmp_path):
    path = tmp_path / "02_a.html"
    inner = "&lt;head&gt;&lt;title&gt;Nilearn - r (simulated)&lt;/title&gt;&lt;/head&gt;"
    text = polish.views_on_demand(f'<p><iframe srcdoc="{inner}" width="640"></iframe></p>', path)
    assert "<iframe" not in text and text.count('href="views/02_a-1.html"') == 1
    assert "Turn it around: r (simulated)" in text
    view = (tmp_path / "views/02_a-1.html").read_text()
    assert view.startswith("<head><title>") and "margin:0" in view
    assert polish.views_on_demand(text, path) == text


def test_a_formula_is_drawn_by_the_page_itself():
    text = polish.prerender_formulas(
        '<div class="math notranslate nohighlight">\n\\[a &lt; b\\]</div>'
    )
    assert "<math" in text and "&#x0003C;" in text and 'tabindex="0"' in text
    assert "\\[" not in text


def test_delays_must_reach_as_far_as_the_response_and_more_do_little_harm():
    r = {p: {n: views.fit_delays(p, n)["r"] for n in views.COUNTS} for p in (3, 5, 9)}
    assert r[5][1] < 0.2 < r[5][2] < 0.6 < r[5][4] and r[9][4] < 0.6 < r[9][8]
    assert abs(r[5][8] - r[5][4]) < 0.03 and abs(r[3][8] - r[3][2]) < 0.03
    true = views.hrf(2.0 * np.arange(1, 9), 5)
    np.testing.assert_allclose(views.fit_delays(5, 8)["weights"], true, atol=0.05)


def test_few_rows_need_a_penalty_and_few_examples_a_low_rank():
    curves = {rows: views.fit_penalty(rows, 1)["curves"] for rows in views.ROWS}
    for rows, curve in curves.items():
        fitted, others = curve.values()
        assert fitted == sorted(fitted, reverse=True), (
            rows
        )  # a penalty never helps where it was fitted
    others = [curve["rows left out"] for curve in curves.values()]
    gains = [max(curve) - curve[0] for curve in others]  # of the best penalty over nearly none
    assert gains[1] > 0.2 > gains[2] > gains[3] > gains[4] > 0
    assert all(0 < np.argmax(curve) < len(curve) - 1 for curve in others)
    features, _, response = views.simulate_features()
    ours = views.ridge(features[:100], response[:100], 10.0)
    theirs = Ridge(alpha=10.0, fit_intercept=False).fit(features[:100], response[:100]).coef_
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    few, some, many = (views.fit_rank(n, 1)["curve"] for n in views.EXAMPLES)
    assert np.argmax(few) < np.argmax(many) and few[-1] < some[-1] < many[-1]
    for rank in views.RANKS:
        assert (views.fit_rank(100, rank)["found"] > 1e-9).sum() == rank


@pytest.mark.parametrize("view", views.VIEWS, ids=lambda view: view.name)
def test_every_state_of_the_sliders_is_drawn_and_described(view, tmp_path):
    two = tuple(replace(s, values=(s.values[0], s.shown)) for s in view.sliders)
    values = replace(view, sliders=two).values(tmp_path)
    name = view.name.upper()
    states = json.loads(html.unescape(re.search('data-states="(.*?)"', values[f"{name}_VIEW"])[1]))
    assert set(states) == {f"{a}-{b}" for a in two[0].values for b in two[1].values}
    for key, state in states.items():
        assert (tmp_path / state["src"].removeprefix("../_static/")).read_text().count("<svg") == 1
        assert f"{state['r']:.2f}" in state["alt"] and 5 <= len(state["alt"].split()) <= 40
        assert values[f"{name}_{key.replace('-', '_')}"] == f"{state['r']:.2f}"


def test_a_number_that_nothing_measures_is_named():
    assert build_book.filled("r = @@R@@", {"R": "0.5"}, "data.md") == "r = 0.5"
    with pytest.raises(build_book.BookError, match="data.md names .'NOBODY'"):
        build_book.filled("@@R@@ @@NOBODY@@", {"R": "0.5"}, "data.md")


def test_injected_parameters_are_hidden_and_the_run_is_told():
    cells = [
        nbformat.v4.new_markdown_cell("# T\n\n[![Open In Colab](b)](c)\n\ntext"),
        nbformat.v4.new_code_cell("x = 2", metadata={"tags": ["injected-parameters"]}),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    for _ in range(2):  # twice does no harm
        build_book.prepare(notebook, {"seconds": 12.3, "peak_mb": 1500, "parameters": {"x": 2}})
    assert notebook.cells[1].metadata.tags == ["injected-parameters", "remove-cell"]
    assert (
        notebook.cells[0].source.count(
            "Made by `make book` in 12 s with 1.5 GB of memory; parameters: `x` 2"
        )
        == 1
    )
    assert "Colab" not in notebook.cells[0].source


def test_a_page_of_other_data_does_not_call_them_simulated():
    cell = nbformat.v4.new_code_cell(
        "1", metadata={"mystnb": {"image": {"alt": "a cortex; simulated"}}}
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# T"), cell])
    for dataset, alt in (("fireside", "a cortex; simulated"), ("lebel2023", "a cortex")):
        build_book.prepare(
            notebook, {"seconds": 1, "peak_mb": 1, "parameters": {"dataset": dataset}}
        )
        assert notebook.cells[1].metadata.mystnb.image.alt == alt
        assert ("Not made from fireside" in notebook.cells[0].source) == (dataset != "fireside")


# ------------------------------------------------------------------ one address, one set of requirements
def git(*command, cwd):
    """What a git command prints."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", *who, *command], cwd=cwd, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout


def publishing(folder, remote):
    """The commands of `make publish` that push, run in a folder."""
    command = ["make", "-n", "publish", f"REMOTE={remote}", f"VENV={sys.prefix}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    pushes = [line for line in told.stdout.splitlines() if "gh-pages" in line]
    assert len(pushes) == 1, told.stderr
    done = subprocess.run(pushes[0], shell=True, cwd=folder, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_make_publish_puts_the_site_on_a_branch_of_the_remote_and_replaces_it(tmp_path):
    remote, copy = tmp_path / "remote.git", tmp_path / "copy"
    git("init", "--bare", str(remote), cwd=tmp_path)
    git("init", str(copy), cwd=tmp_path)
    for name in ("user.name", "user.email"):
        git("config", name, "a@b.c", cwd=copy)
    (copy / "_build/html/book").mkdir(parents=True)
    for name in ("index.html", "book/first.html"):
        (copy / "_build/html" / name).write_text("text")
    publishing(copy, remote)
    files = {".nojekyll", "index.html", "book/first.html"}
    assert set(git("ls-tree", "-r", "--name-only", "gh-pages", cwd=remote).split()) == files
    (copy / "_build/html/book/first.html").rename(copy / "_build/html/book/second.html")
    publishing(copy, remote)
    assert "book/second.html" in git("ls-tree", "-r", "--name-only", "gh-pages", cwd=remote)
    assert "book/first.html" not in git("ls-tree", "-r", "--name-only", "gh-pages", cwd=remote)
    assert git("branch", "--show-current", cwd=copy).strip() != "gh-pages"


def test_make_publish_without_a_remote_says_what_is_missing():
    done = subprocess.run(["make", "-n", "publish"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode and "REMOTE is not set" in done.stderr


def test_what_follows_from_the_public_address_is_in_step():
    """`tools/build_book.py --sync` writes it; no other file names the address."""
    for path in address.holders():
        assert path.read_text() == address.renewed(path), f"{path.name}: build_book.py --sync"
    if address.address():
        command = ["git", "grep", "-l", address.address()]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split()
        allowed = {str(p.relative_to(ROOT)) for p in address.holders()} | {"_config.yml"}
        assert set(listed) <= allowed


def test_an_address_reaches_notebooks_and_readme_and_leaves_them_again(tmp_path, public):
    link = "https://colab.research.google.com/github/someone/a-book/blob/v1/notebooks/{}"
    for path in address.holders():
        copy = tmp_path / path.name
        copy.write_text(address.renewed(path))
        assert address.renewed(copy) == copy.read_text()  # twice does no harm
        if path.suffix == ".ipynb":
            cells = nbformat.read(copy, 4).cells
            assert cells[0].source.split("\n\n")[1].endswith(f"({link.format(path.name)})")
            assert any(f'SOURCE = "git+{PUBLIC}@v1"' in cell.source for cell in cells)
        else:
            assert f"git clone {PUBLIC}\n" in copy.read_text()
    assert address.settings_of_the_site()["launch_buttons"]


def test_without_an_address_nothing_links_to_it_and_the_text_says_how_to_set_it(
    tmp_path, monkeypatch
):
    settings = address.config()
    settings["repository"]["url"] = ""
    monkeypatch.setattr(address, "config", lambda: settings)
    for path in address.holders():
        copy = tmp_path / path.name
        copy.write_text(path.read_text())
        text = address.renewed(copy)
        assert "colab.research" not in text and "git+http" not in text
        assert path.suffix == ".ipynb" or "`repository.url`" in text
    site = address.settings_of_the_site()
    assert "repository" not in site and not site["html"]["use_repository_button"]


def test_jupyter_book_is_held_below_2_wherever_it_is_named():
    for path in (ROOT / "pyproject.toml", ROOT / "environment.yml"):
        for line in path.read_text().splitlines():
            for named in re.findall(r"jupyter-book[^\"',\s]*(?:,<2)?", line):
                assert named == "jupyter-book>=1.0.4.post1,<2", f"{path.name}: {line}"


def test_conda_and_pip_ask_for_the_same_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = {
        re.split("[>=<]", r)[0].lower()
        for r in [*project["dependencies"], *extras["book"], *extras["test"], *extras["dev"]]
    }
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    lines = [x for x in conda if isinstance(x, str)] + next(
        x["pip"] for x in conda if isinstance(x, dict)
    )
    other = {
        "pytorch": "torch",
        "pysoundfile": "soundfile",
        "matplotlib-base": "matplotlib",
        "seaborn-base": "seaborn",
    }
    given = {other.get(n, n) for n in (re.split("[>=<]", x)[0] for x in lines)} - {
        "python",
        "pip",
        "-e .",
    }
    assert given == asked


def test_the_lock_file_is_in_step_with_what_is_asked_for():
    """`tools/lock.py` writes it, in the environment that make made."""
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x[:1] != "#"]
    locked = dict(line.split("==") for line in lines)
    for requirement in lock.asked():
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is not in requirements.lock: run tools/lock.py"
        assert requirement.specifier.contains(locked[name]), f"{requirement}: {locked[name]}"
    assert not [name for name in locked if lock.GPU.match(name)]
    assert f"TORCH := torch=={locked['torch']}\n" in (ROOT / "Makefile").read_text()


# ------------------------------------------------------------------ the house
def functions(tree):
    """Every function or method of a file, also those inside others, with the class it is of."""
    inside = [(tree, None)]
    while inside:
        node, owner = inside.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield child, owner
            inside.append((child, child if isinstance(child, ast.ClassDef) else None))


def body(node):
    """Statements of a function or class, less its docstring."""
    return node.body[ast.get_docstring(node) is not None :]


def test_functions_fit_on_a_screen():
    long = {}
    for path in SOURCES:
        for node, _ in functions(ast.parse(path.read_text())):
            statements = body(node)
            lines = statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0
            if lines > 40:
                long[f"{path.parent.name}/{path.name}:{node.lineno} {node.name}"] = lines
    assert not long, f"functions of more than 40 lines: {long}"


def test_brainlib_stays_thin():
    trees = [ast.parse(p.read_text()) for p in (ROOT / "brainlib").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = sum(isinstance(n, documented) and bool(ast.get_docstring(n)) for n in nodes)
    count = sum(isinstance(n, ast.stmt) for n in nodes) - docstrings
    assert count <= 3_600, f"brainlib has {count} statements; do less, let libraries do it, delete"


def imported(path):
    """Files of brainlib that a file imports, at its top or inside a function, relative or absolute."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            inside = path.parent.name == "brainlib" and node.level == 1
            base = ".".join(["brainlib"] * inside + [node.module] * bool(node.module))
            names = [f"{base}.{a.name}" for a in node.names] + [base]
        else:
            continue
        yield from (n.split(".")[1] for n in names if n.startswith("brainlib."))
        yield from ("fireside" for n in names if n.split(".")[0] == "fireside")


def test_a_file_imports_only_from_files_before_it():
    """The order in which data flows is that of `brainlib.__all__`."""
    order = brainlib.__all__
    files = {p.stem: p for p in (ROOT / "brainlib").glob("*.py") if p.stem != "__init__"}
    assert sorted(order) == sorted(files)
    for name, path in files.items():
        used = set(imported(path))
        assert "fireside" not in used, f"{name} imports fireside, which registers by entry point"
        later = used & set(order[order.index(name) :])
        assert not later, f"{name} imports {later}, which come after it in {order}"
    assert set(imported(files["lebel"])) and set(imported(ROOT / "fireside/simulation.py"))


def test_no_statement_is_packed_into_another():
    cells = {f"{p.stem}[{i}]": c.source for p in NOTEBOOKS for i, c in enumerate(code_cells(p))}
    tests = sorted((ROOT / "tests").glob("*.py"))
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in [*SOURCES, *tests]} | cells
    packed = (ast.Tuple, ast.IfExp, ast.BoolOp, ast.ListComp)
    for name, text in texts.items():
        marker = "fmt: " + "skip"
        assert marker not in text, name
        tree = ast.parse(text)
        shown = tree.body[-1:] if name in cells else []  # a notebook shows its cell's last value
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and node not in shown:
                assert not isinstance(node.value, packed), f"{name}: {ast.unparse(node)}"


PRIVATE = re.compile(
    r"\bhearings?\b|\blisteners?\b|\bjudg\w*|_judge\b|\bkept (run|result)s?\b|by heart"
    r"|\b[Tt]aps?\b(?! (shows|on))|\blooks\b(?! (ahead|like|at|up|for|back))|\bLOOKS\b|\bpinned\b"
    r"|(?<!['\"])\bplanted\b|\bthin(ned)?\b(?! (helper|package|line))|\b[Ff]ronts\b|share of the ceiling|-100\b"
)


def test_words_are_the_fields_words():
    """Repeat, subject, evaluate, layer, precomputed, window settings, simulated, voxel_step: see the glossary."""
    texts = {str(p.relative_to(ROOT)): p.read_text() for p in [*SOURCES, *PROSE]}
    for path in NOTEBOOKS:
        texts[path.stem] = "\n".join(c.source for c in nbformat.read(path, 4).cells)
    wrong = [
        f"{name}: {text[max(match.start() - 30, 0) : match.end() + 30]!r}"
        for name, text in texts.items()
        for match in PRIVATE.finditer(text.replace('_seed("listener"', ""))  # a seed that stays
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_is_misspelt():
    """codespell, which knows common misspellings; words that it may find are listed in pyproject.toml."""
    command = [sys.executable, "-m", "codespell_lib", "book", "notebooks", "brainlib", "fireside"]
    command += ["tools", "tests", "workflow", *map(str, ROOT.glob("*.md"))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stdout + done.stderr


POSITIONAL = {  # beyond two: the field's order of arguments, or another library's signature
    "downsample": 3,  # x, times, tr_times
    "features_at_trs": 3,  # encoder, story, layers
    "residualize": 3,  # features, nuisance, fit on
    "partition": 3,  # features, nuisance, responses
    "held_out": 3,  # X, Y, splits
    "residual_targets": 3,
    "evaluate_task": 3,  # task, states, table
    "to_fsaverage5": 3,  # ds, subject, values
    "plot_cortex": 3,
    "view_cortex": 3,
    "run_block": 3,  # block, x, carry
}


def test_public_functions_take_keywords_after_the_second_argument():
    wrong = []
    for path in [p for p in SOURCES if p.parent.name in ("brainlib", "fireside")]:
        for node, owner in functions(ast.parse(path.read_text())):
            inner = owner is None and node.col_offset > 0
            if inner or node.name.startswith("_") or (owner and owner.name.startswith("_")):
                continue
            static = any(ast.unparse(d) == "staticmethod" for d in node.decorator_list)
            count = len(node.args.args) - (owner is not None and not static)
            if count > POSITIONAL.get(node.name, 2) and not overrides(node, owner):
                wrong.append(f"{path.parent.name}/{path.name}: {node.name}, {count} positional")
    assert not wrong, wrong


def overrides(node, owner):
    """Whether a method has a name that a base class from another library gives it."""
    return bool(owner and owner.bases) and node.name in (
        "forward",
        "compute_loss",
        "training_step",
        "prediction_step",
        "evaluate",
        "on_epoch_begin",
        "on_epoch_end",
        "on_evaluate",
    )


def test_the_package_is_there_in_half_a_second_without_torch():
    code = "import sys, brainlib; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("page", ["primer_fmri", "primer_models"])
def test_the_toy_of_a_primer_runs(page, capsys):
    text = (ROOT / "book" / f"{page}.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", text, re.S)
    exec(compile(snippet, page, "exec"), {})
    assert capsys.readouterr().out.strip()


def test_the_snippet_of_the_readme_runs(tmp_path):
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(snippets) == 1
    code = snippets[0] + "\nprint(x.shape == (len(story.tr_times), encoder.width))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr[-500:]


def test_make_targets_and_paths_named_in_the_readme_exist():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"(?:^|`)make (\w+)", readme, re.M))
    assert {"book", "test", "lab", "runs"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile
    links = re.findall(r"\]\((?!http)([^)]+)\)", readme)
    paths = re.findall(r"`((?:notebooks|tools|brainlib|book)/[\w./-]*)`", readme)
    assert len(links) >= 1 and len(paths) >= 8
    for path in links + paths:
        assert (ROOT / path).exists(), path


def test_the_readme_and_the_api_page_list_every_file_of_brainlib():
    table = (ROOT / "README.md").read_text().split("| file of `brainlib` |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)\.py`", table)) == set(brainlib.__all__)
    page = (ROOT / "book/api.md").read_text()
    assert re.findall(r"automodule:: brainlib\.(\w+)", page) == brainlib.__all__
    for module, members in re.findall(r"automodule:: ([\w.]+)\n   :members: (.+)", page):
        present = dir(importlib.import_module(module))
        assert set(members.split(", ")) <= set(present), module


def test_runs_are_whole_json_even_after_a_failure(tmp_path):
    report = tmp_path / "runs.json"
    run_notebooks.main(["--out", str(tmp_path), "no_such_notebook"])
    assert json.loads(report.read_text()) == {}
