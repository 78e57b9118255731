"""Corpora of the papers' tasks, on small folders of the official shape."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from brainlib import corpora
from brainlib.files import read_audio


def sound(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(800), 16_000, format=path.suffix[1:].upper())


def by_part(table):
    return table.part.value_counts().to_dict()


def timit(root, upper=True):
    case = str.upper if upper else str.lower
    for half, n in (("TRAIN", 10), ("TEST", 2)):
        for i in range(n):
            for sentence in ("SA1", "SX7"):
                path = (
                    root
                    / case(half)
                    / case("DR1")
                    / case(f"F{half[:2]}{i:02d}")
                    / case(f"{sentence}.WAV")
                )
                sound(path)
                phones = "0 100 h#\n100 300 ix\n300 400 q\n400 500 zh\n500 800 h#\n"
                path.with_suffix(case(".PHN")).write_text(phones)
    return root


@pytest.mark.parametrize("upper", [True, False])
def test_timit_folds_61_phones_to_39_and_keeps_a_tenth_of_the_speakers_for_validation(
    tmp_path, upper
):
    table = corpora.load_corpus("timit", timit(tmp_path, upper))
    assert table.target[0] == ["sil", "ih", "sh", "sil"]  # ix, zh; the glottal stop goes
    assert by_part(table) == {"train": 18, "val": 2, "test": 4}
    assert len(table.attrs["labels"]) == 39 and set(table["type"]) == {"SA", "SX"}
    assert table.end[0] == 800 / 16_000 and len(read_audio(table.path[0])) == 800
    speakers = table.groupby("part").story.agg(set)
    assert not speakers["train"] & speakers["val"]


def test_all_61_phones_of_timit_fold_to_labels():
    phones = "b d g p t k dx q jh ch s sh z zh f th v dh m n ng em en eng nx l r w y hh hv el iy ih eh ey ae aa aw ay ah ao "
    phones += "oy ow uh uw ux er ax ix axr ax-h pau epi h# bcl dcl gcl pcl tcl kcl"
    phones = phones.split()
    assert len(phones) == 61
    folded = {corpora.FOLDS.get(p, p) for p in phones if p != "q"}
    assert folded == set(corpora.TIMIT_PHONES) and len(folded) == 39


def test_a_phone_that_is_none_is_refused(tmp_path):
    root = timit(tmp_path)
    next(root.rglob("*.PHN")).write_text("0 800 qq\n")
    with pytest.raises(ValueError, match="labels .'qq'."):
        corpora.load_corpus("timit", root)
    next(root.rglob("*.PHN")).write_text("0 800\n")
    with pytest.raises(ValueError, match="expected phones of TIMIT"):
        corpora.load_corpus("timit", root)


def slurp(root, test_intent="play_music"):
    intents = {"train": ["play_music", "alarm_set"], "devel": ["alarm_set"], "test": [test_intent]}
    (root / "dataset/slurp").mkdir(parents=True)
    for split, names in intents.items():
        lines = []
        for i, intent in enumerate(names):
            file = f"audio-{split}{i}.flac"
            sound(root / "audio/slurp_real" / file)
            row = {"slurp_id": i, "sentence": "do it", "intent": intent}
            lines.append(json.dumps(row | {"recordings": [{"file": file, "status": "correct"}]}))
        (root / f"dataset/slurp/{split}.jsonl").write_text("\n".join(lines) + "\n")
    return root


def test_slurp_has_the_intents_of_training_in_every_part(tmp_path):
    table = corpora.load_corpus("slurp", slurp(tmp_path))
    assert by_part(table) == {"train": 2, "val": 1, "test": 1}
    assert table.attrs["labels"] == ["alarm_set", "play_music"] and table.text[0] == "do it"


def test_an_intent_that_training_lacks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="test has labels .'weather_query'."):
        corpora.load_corpus("slurp", slurp(tmp_path, "weather_query"))


def test_a_recording_that_is_not_there_is_named(tmp_path):
    root = slurp(tmp_path)
    (root / "audio/slurp_real/audio-test0.flac").unlink()
    with pytest.raises(FileNotFoundError, match="audio-test0.flac is not below"):
        corpora.load_corpus("slurp", root)
    (root / "dataset/slurp/test.jsonl").write_text('{"intent": "a"\n')
    with pytest.raises(ValueError, match="test.jsonl: cannot be read"):
        corpora.load_corpus("slurp", root)


def test_speech_commands_follows_the_lists_and_leaves_the_noise_out(tmp_path):
    for word in ("yes", "no", "_background_noise_"):
        for speaker in "abc":
            sound(tmp_path / word / f"{speaker}_nohash_0.wav")
    for name, speaker in (("validation", "b"), ("testing", "c")):
        lines = [f"{word}/{speaker}_nohash_0.wav" for word in ("yes", "no")]
        (tmp_path / f"{name}_list.txt").write_text("\n".join(lines))
    table = corpora.load_corpus("speech_commands", tmp_path)
    assert by_part(table) == {"train": 2, "val": 2, "test": 2}
    assert table.attrs["labels"] == ["no", "yes"] and set(table.story) == set("abc")
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match="testing_list.txt"):
        corpora.load_corpus("speech_commands", tmp_path)


def test_crema_d_keeps_actors_apart(tmp_path):
    for actor in range(1001, 1021):
        for emotion in corpora.EMOTIONS:
            sound(tmp_path / f"AudioWAV/{actor}_DFA_{emotion}_XX.wav")
    table = corpora.load_corpus("crema_d", tmp_path)
    assert (
        by_part(table) == {"train": 96, "val": 12, "test": 12} and len(table.attrs["labels"]) == 6
    )
    assert table.groupby("story").part.nunique().max() == 1
    sound(tmp_path / "AudioWAV/1001_DFA_JOY_XX.wav")
    with pytest.raises(ValueError, match="1001_DFA_JOY_XX.wav: expected a name"):
        corpora.load_corpus("crema_d", tmp_path)


class Rows(list):
    features = {"label": SimpleNamespace(names=["yes", "no", "up"])}


def test_superb_is_read_by_the_library_with_its_own_label_names(monkeypatch):
    def load_dataset(path, task):
        assert (path, task) == ("some/folder", "ks")
        rows = {"train": [0, 1, 2], "validation": [2], "test": [1]}
        return {k: Rows({"file": f"{k}{i}", "label": i} for i in v) for k, v in rows.items()}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    table = corpora.load_corpus("superb", "some/folder", task="ks")
    assert table.target.tolist() == ["yes", "no", "up", "up", "no"]
    assert by_part(table) == {"train": 3, "val": 1, "test": 1}


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        corpora.load_corpus("superb", "some/folder", task="ks")


@pytest.mark.parametrize("name", ["timit", "slurp", "speech_commands", "crema_d"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError):
        corpora.load_corpus(name, tmp_path)
    with pytest.raises(FileNotFoundError):
        corpora.load_corpus(name, tmp_path / "nosuch")


def test_an_unknown_corpus_is_named():
    with pytest.raises(KeyError, match="no corpus 'librispeech'; expected one of"):
        corpora.load_corpus("librispeech", ".")
