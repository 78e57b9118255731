"""The book's public address, and what follows from it: badges, set-up cells, what is said of Colab.

It stands in one place, `repository.url` of `_config.yml`, and may be empty: then nothing links to it, and the text says
how to set it. `tools/build_book.py --sync` writes what follows from it into the notebooks and the README.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
HOLDERS = ("README.md", "notebooks/*.ipynb")  # files that hold the address
COLAB = "https://colab.research.google.com"
BADGE = f"[![Open In Colab]({COLAB}/assets/colab-badge.svg)]"
SETUP_TITLE = "# @title Set-up"  # by which the set-up cell is known
BLOCK = re.compile(r"(<!-- address[^>]*-->\n).*?(<!-- /address -->)", re.S)  # of the README
HOW_TO_SET = (
    "This copy of the book has no public address yet, so there is nothing that Colab could open."
    " To set it, write the address of your repository on GitHub into `_config.yml` (`repository.url`),"
    " call `python tools/build_book.py --sync`, and commit. Every notebook then has a badge that opens"
    " it on Colab, its set-up cell knows where `brainlib` is to be installed from, and the pages have"
    " a button for it."
)
OPEN_ON_COLAB = (
    "Open a notebook's page and press the rocket at its top, or open the notebook on GitHub and press"
    " its badge. Its set-up cell installs `brainlib` beside the PyTorch that is there, which it never"
    " replaces."
)


def config() -> dict:
    """The book's settings."""
    return yaml.safe_load((ROOT / "_config.yml").read_text())


def repository() -> tuple[str, str]:
    """Address of the repository, "" while there is none, and the branch or tag that links name."""
    settings = config()["repository"]
    return settings["url"] or "", settings["branch"]


def address() -> str:
    """`owner/name` of the repository, "" while there is none."""
    url = repository()[0]
    named = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)/?", url)
    if url and (named is None or url.endswith(".git")):
        raise ValueError(
            f"_config.yml: repository.url {url!r}; expected https://github.com/owner/name, which Colab opens"
        )
    return named[1] if named else ""


def colab_link(page: str) -> str:
    """Where Colab opens a notebook (`notebooks/01_...`, without its ending); "" while there is no address."""
    branch = repository()[1]
    return f"{COLAB}/github/{address()}/blob/{branch}/{page}.ipynb" if address() else ""


def setup_cell() -> str:
    """The set-up cell of every notebook, which installs from the address and the branch or tag."""
    url, branch = repository()
    text = (ROOT / "tools" / "setup_cell.py").read_text().strip()
    return text.replace("@@SOURCE@@", f"git+{url}@{branch}" if url else "")


def on_colab() -> str:
    """What readers are told of Colab."""
    return OPEN_ON_COLAB if address() else HOW_TO_SET


def said() -> dict[str, str]:
    """What pages name as @@NAME@@."""
    return {
        "ON_COLAB": on_colab(),
        "REPOSITORY": repository()[0] or "<address of the book's repository>",
    }


def settings_of_the_site() -> dict:
    """The settings with which the site is built: without an address, without buttons that lead there."""
    settings = config()
    if not address():
        settings.pop("repository")
        settings.pop("launch_buttons")
        settings["html"] |= {"use_repository_button": False, "use_issues_button": False}
    return settings


def holders() -> list[Path]:
    """The files that `--sync` writes the address into."""
    return sorted(path for pattern in HOLDERS for path in ROOT.glob(pattern))


def renewed(path: Path) -> str:
    """A file's text with the address, branch or tag and set-up cell of today."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return BLOCK.sub(lambda m: f"{m[1]}{readme()}\n{m[2]}", text)
    notebook = nbformat.reads(text, 4)
    first = notebook.cells[0]
    first.source = with_badge(first.source, colab_link(f"notebooks/{path.stem}"))
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith(SETUP_TITLE):
            cell.source = setup_cell()
            cell.metadata["cellView"] = "form"  # Colab shows its title and a button
    notebook.metadata["colab"]["name"] = path.name
    return nbformat.writes(notebook) + "\n"


def with_badge(source: str, link: str) -> str:
    """The first cell of a notebook with its badge under the title, or without one if there is no link."""
    lines = [line for line in source.splitlines() if not line.startswith("[![Open In Colab]")]
    title, *rest = "\n".join(lines).split("\n\n")
    badge = [f"{BADGE}({link})"] if link else []
    return "\n\n".join([title, *badge, *(part.strip("\n") for part in rest if part.strip())])


def readme() -> str:
    """What the README says of the address."""
    url = repository()[0]
    return f"{on_colab()}\n\n```bash\ngit clone {url}\n```" if url else on_colab()
