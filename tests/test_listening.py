"""The long listening: its texts, and that it is a simulation of its own. (Its sound needs a synthesiser.)"""

import os
import shutil
import subprocess
import sys

import long_listening
import pytest
from conftest import ROOT

import fireside
from fireside import levels

PROSE = (
    "CHAPTER I. The old man, who had seen it, walked home. Mr. Smith did not. "
    'He said "no" to it. They went down to the sea; nobody spoke of it again. It is 1887 now. '
)


def test_plain_sentences_alone_are_taken():
    found = list(long_listening.sentences(PROSE))
    assert found == [
        "The old man, who had seen it, walked home.",
        "They went down to the sea, nobody spoke of it again.",
    ]


def test_no_story_has_a_word_of_the_probe_set():
    words = long_listening.probe_words()
    _, table = fireside.probe_set()
    assert words == set(table.word.str.lower()) and len(words) > 100
    heard = {w.lower() for s in levels.story_names() for w in levels.embedded_story(s).words.text}
    assert not words & heard


def test_texts_are_written_beside_those_of_fireside(tmp_path, monkeypatch):
    monkeypatch.setattr(long_listening, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(long_listening, "WORDS_PER_STORY", 40)
    monkeypatch.setattr(long_listening.fireside_tools, "glove_rows", lambda: {"it": 0})
    monkeypatch.setattr(
        long_listening.fireside_tools, "in_glove", lambda word, rows: word != "nobody"
    )
    (tmp_path / "prose").mkdir()
    parrot = "The parrot sat there and looked at all of them. "  # a word of the probe set
    (tmp_path / "prose/a.txt").write_text((PROSE + parrot) * 40)
    long_listening.write(tmp_path / "prose", hours=2 * 40 / 190 / 60)
    new = sorted((tmp_path / "assets/stories").glob("zprose*.txt"))
    assert len(new) == 2 and len(list((tmp_path / "assets/stories").iterdir())) == 28 + 2
    text = new[0].read_text()
    assert text.count("walked home.") == 5 and "parrot" not in text and "nobody" not in text
    with pytest.raises(SystemExit, match="expected some, and a folder without prose"):
        long_listening.write(
            tmp_path / "prose", hours=1.0
        )  # old sounds would stay beside new texts
    shutil.rmtree(tmp_path / "assets")
    with pytest.raises(SystemExit, match="more text, or fewer hours"):
        long_listening.write(tmp_path / "prose", hours=1.0)


def test_other_assets_are_another_simulation(tmp_path):
    code = "import fireside.levels as l, fireside.simulation as s; print(l.ASSETS, len(l.story_names()))"
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories/one.txt").write_text("")
    environment = os.environ | {"FIRESIDE_ASSETS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(tmp_path), "1"], done.stderr[-500:]
