"""The table of claims: what a run wrote stands in it, and nothing else does."""

import json

import claims
import pytest
from conftest import ROOT

from brainlib import results


def write(folder, *, simulated=True, **said):
    """Numbers as notebook 3 writes them, on claim 1 alone."""
    path = folder / "03_lora_brain_tuning.json"
    entry = results.record(path, {"claims": {"1": said}})
    entry["dataset"] = {"name": "mine", "simulated": simulated}
    path.write_text(json.dumps(entry))
    return folder


def cells(text):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[2:]]
    assert len(rows) == len(claims.CLAIMS) and {len(row) for row in rows} == {6}
    return rows


def test_a_claim_that_no_run_asked_is_said_to_be_open(tmp_path):
    for row in cells(claims.table(tmp_path)):
        assert row[2] == "runs are missing" and row[3:] == ["not asked", "not asked", ""]


def test_a_run_s_words_stand_in_its_row_and_yours_beside_them(tmp_path):
    book = write(tmp_path / "book", found="+0.1 (0.0 to 0.2)", truth="+0.0\n")
    own = write(tmp_path / "own", found="+0.3", simulated=False)
    first, second, *_ = cells(claims.table(book, own))
    assert first[2:] == ["+0.1 (0.0 to 0.2) (simulated)", "not asked", "+0.0", "+0.3 (mine)"]
    assert second[2] == "runs are missing" and second[5] == ""


def test_the_welcome_page_has_each_claim_in_a_few_words(tmp_path):
    book = write(tmp_path, found="+0.1 (0.0 to 0.2)", short="Late language rose")
    assert (
        cells(claims.table(book))[0][2] == "**Late language rose.** +0.1 (0.0 to 0.2) (simulated)"
    )
    first, second, *_ = claims.short_table(book).splitlines()[2:]
    assert "| Late language rose (simulated) | [3](../notebooks/03_lora" in first
    assert "| open: runs are missing |" in second


def test_what_is_no_numbers_of_a_notebook_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder of numbers"):
        claims.table(tmp_path, tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no numbers of a notebook"):
        claims.table(tmp_path, tmp_path)
    write(tmp_path, control="+0.1")
    with pytest.raises(ValueError, match="without words of what was found"):
        claims.table(tmp_path)
    path = tmp_path / "03_lora_brain_tuning.json"
    results.record(path, {"score": 1})
    with pytest.raises(ValueError, match="without `claims`"):
        claims.table(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="03_lora_brain_tuning.json"):
        claims.table(tmp_path)


@pytest.mark.parametrize("number", claims.CLAIMS)
def test_the_notebook_of_a_claim_writes_it(number):
    path = ROOT / "notebooks" / f"{claims.CLAIMS[number].notebook}.ipynb"
    if not path.exists():
        pytest.skip("not written yet")
    assert f'claims[\\"{number}\\"]' in path.read_text()
