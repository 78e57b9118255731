import os

import numpy as np
import pytest
import soundfile
from conftest import GRID, write_responses
from lebel_tree import zscored

from brainlib import datasets, files


def test_a_tree_without_a_split_gets_one_from_its_repeats(tree):
    ds = datasets.load(str(tree))
    assert ds.split == {"train": ["a"], "val": ["b", "c"], "test": ["d"]}
    assert (ds.simulated, ds.subjects, ds.rois("UTS01")) == (False, ["UTS01"], {})


def test_other_repeated_stories_are_the_validation_set(tree):
    write_responses(
        tree / "derivative/preprocessed_data/UTS01/b.hf5",
        np.ones((10, 6)),
        np.random.default_rng(0).standard_normal((2, 10, 6)),
    )
    assert datasets.load(str(tree)).split == {"train": ["a", "c"], "val": ["b"], "test": ["d"]}


def test_story_and_responses_have_the_promised_shapes(tree):
    ds = datasets.load(str(tree))
    story = ds.story("a")
    assert (story.rate, story.audio.dtype, len(story.audio), story.duration) == (
        16_000,
        np.float32,
        640_000,
        40.0,
    )
    assert story.words.values.tolist() == [[0.0, 2.0, "hi"]]
    assert story.phonemes.text.tolist() == ["HH", "AY1"]  # the silence is gone
    Y = ds.responses("UTS01", "a")
    assert (Y.shape, Y.dtype) == ((10, 6), np.float32)
    np.testing.assert_allclose(Y.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(Y.std(0), 1, atol=1e-5)
    np.testing.assert_array_equal(story.tr_times, 11 + 2 * np.arange(10))
    assert ds.repeats("UTS01", "d").shape == (3, 10, 6)
    assert ds.noise_ceiling("UTS01").shape == (6,)


def test_unknown_names_are_key_errors_that_help(tree):
    ds = datasets.load(str(tree))
    with pytest.raises(KeyError, match="no subject 'UTS1'; did you mean"):
        ds.responses("UTS1", "a")
    with pytest.raises(KeyError, match="no story 'z'; it has"):
        ds.story("z")
    with pytest.raises(FileNotFoundError, match="no data set and no folder"):
        datasets.load("nowhere")


@pytest.mark.parametrize(
    "which",
    [
        "stimuli/a.wav",
        "derivative/TextGrids/a.TextGrid",
        "derivative/preprocessed_data/UTS01/a.hf5",
    ],
)
def test_a_missing_file_is_named(tree, which):
    ds = datasets.load(str(tree))
    (tree / which).unlink()
    with pytest.raises(FileNotFoundError, match=which.split("/")[-1]):
        ds.story("a").audio, ds.story("a").words, ds.responses("UTS01", "a")


@pytest.mark.parametrize(
    "which",
    [
        "stimuli/a.wav",
        "derivative/TextGrids/a.TextGrid",
        "derivative/preprocessed_data/UTS01/a.hf5",
    ],
)
def test_a_git_annex_pointer_is_not_taken_for_content(tree, which):
    ds = datasets.load(str(tree))
    (tree / which).write_text(
        "/annex/objects/MD5E-s126--0123456789abcdef0123456789abcdef.wav\n" + " " * 200
    )
    with pytest.raises(ValueError, match="git-annex pointer.*git annex get"):
        ds.story("a").audio, ds.story("a").words, ds.responses("UTS01", "a")
    (tree / which).unlink()
    os.symlink("../.git/annex/objects/nothing", tree / which)
    with pytest.raises(FileNotFoundError, match="git-annex"):
        ds._story.cache_clear()
        ds.story("a").audio, ds.story("a").words, ds.responses("UTS01", "a")


def test_rows_that_do_not_fit_the_trs_are_refused(tree):
    write_responses(tree / "derivative/preprocessed_data/UTS01/a.hf5", np.zeros((9, 6)))
    with pytest.raises(ValueError, match="story 'a'.*9 response rows but 10 TRs"):
        datasets.load(str(tree)).responses("UTS01", "a")


def test_nans_are_reported_filled_and_counted(tree):
    data = zscored(np.random.default_rng(0).standard_normal((10, 6)))
    data[:, 2], data[3, 4] = np.nan, np.nan
    write_responses(tree / "derivative/preprocessed_data/UTS01/a.hf5", data)
    ds = datasets.load(str(tree))
    with pytest.warns(UserWarning, match="11 NaN values replaced by 0 .1 voxels have no number"):
        Y = ds.responses("UTS01", "a")
    assert np.isfinite(Y).all() and (Y[:, 2] == 0).all() and Y[3, 4] == 0
    assert ds.filled == {("UTS01", "a"): 11}
    others = np.delete(data[:, 4], 3)
    np.testing.assert_allclose(
        np.delete(Y[:, 4], 3), (others - others.mean()) / others.std(), atol=1e-5
    )


def test_other_rates_and_stereo_are_converted(tree):
    t = np.arange(40 * 44_100) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 440 * t)
    soundfile.write(tree / "stimuli/a.wav", np.stack([tone, 0 * tone], 1), 44_100)
    audio = datasets.load(str(tree)).story("a").audio
    assert audio.shape == (640_000,)
    expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(640_000) / 16_000)
    np.testing.assert_allclose(audio[1000:-1000], expected[1000:-1000], atol=0.002)


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_an_empty_or_truncated_hf5_is_refused(tree, content):
    (tree / "derivative/preprocessed_data/UTS01/a.hf5").write_bytes(content)
    with pytest.raises(ValueError, match="a.hf5.*(bytes|truncated)"):
        datasets.load(str(tree)).responses("UTS01", "a")


def test_a_cut_hf5_is_refused(tree):
    path = tree / "derivative/preprocessed_data/UTS01/a.hf5"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="truncated"):
        datasets.load(str(tree)).responses("UTS01", "a")


def test_repeats_of_a_story_heard_once_are_refused(tree):
    with pytest.raises(ValueError, match="heard once"):
        datasets.load(str(tree)).repeats("UTS01", "a")


def test_textgrids_in_utf16_and_in_short_form_are_read(tree):
    path = tree / "derivative/TextGrids/a.TextGrid"
    wanted = files.read_textgrid(path)
    path.write_text(GRID.format(end=40), encoding="utf-16")
    assert files.read_textgrid(path)["words"].equals(wanted["words"])
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "0",
        "40",
        "<exists>",
        "2",
    ]
    lines += [
        '"IntervalTier"',
        '"phone"',
        "0",
        "40",
        "3",
        "0",
        "1",
        '"HH"',
        "1",
        "2",
        '"AY1"',
        "2",
        "40",
        '"sp"',
    ]
    lines += ['"IntervalTier"', '"word"', "0", "40", "2", "0", "2", '"hi"', "2", "40", '"sp"']
    path.write_text("\n".join(lines) + "\n")
    short = files.read_textgrid(path)
    assert short["words"].equals(wanted["words"]) and short["phonemes"].equals(wanted["phonemes"])


def test_what_is_no_textgrid_is_refused(tree):
    path = tree / "derivative/TextGrids/a.TextGrid"
    path.write_text("this is not a TextGrid at all, not even nearly")
    with pytest.raises(ValueError, match="not a TextGrid"):
        files.read_textgrid(path)


def test_real_recordings_have_no_truth_and_no_surface(tree):
    ds = datasets.load(str(tree))
    with pytest.raises(ValueError, match="truth is not known"):
        ds.truth("UTS01")
    with pytest.raises(FileNotFoundError, match="no surface"):
        ds.vertices("UTS01")
