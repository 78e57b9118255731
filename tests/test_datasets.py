import json
import os
import warnings

import numpy as np
import pytest
import soundfile
from conftest import GRID, write_responses
from lebel_tree import zscored

from brainlib import datasets, encoding, files


def read_all(ds, subject, story):
    """Every file of a story: sound, TextGrid and responses."""
    return ds.story(story).audio, ds.story(story).words, ds.responses(subject, story)


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
        read_all(ds, "UTS01", "a")


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
        read_all(ds, "UTS01", "a")
    (tree / which).unlink()
    os.symlink("../.git/annex/objects/nothing", tree / which)
    with pytest.raises(FileNotFoundError, match="git-annex"):
        ds._story.cache_clear()
        read_all(ds, "UTS01", "a")


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
    with pytest.raises(ValueError, match="presented once"):
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
    with pytest.raises(ValueError, match="expected a TextGrid"):
        files.read_textgrid(path)


def test_real_recordings_have_no_truth_and_no_surface(tree):
    ds = datasets.load(str(tree))
    with pytest.raises(ValueError, match="truth is not known"):
        ds.truth("UTS01")
    with pytest.raises(FileNotFoundError, match="no surface"):
        ds.vertices("UTS01")


# ------------------------------------------------------------------ every data set on its own clock
def make_tree(root, *, tr=1.5, first=0.75, rows=80, seconds=120, description=None, names="abcde"):
    """A tree of sounds and responses alone: no TextGrids, no respdict.json, no repeats, no anatomy."""
    rng = np.random.default_rng(0)
    (root / "stimuli").mkdir(parents=True)
    for name in names:
        soundfile.write(root / f"stimuli/{name}.wav", np.zeros(seconds * 1000), 1000)
        path = root / f"derivative/preprocessed_data/S1/{name}.hf5"
        write_responses(path, zscored(rng.standard_normal((rows, 7))))
    if description is None:
        description = {"RepetitionTime": tr, "FirstRowTime": first}
    (root / "dataset_description.json").write_text(json.dumps(description))
    return root


def test_tr_and_first_row_come_from_the_description(tmp_path):
    ds = datasets.load(str(make_tree(tmp_path / "mine")))
    times = ds.story("a").tr_times
    assert (ds.tr, len(times), times[0], times[-1]) == (1.5, 80, 0.75, 119.25)
    assert ds.responses("S1", "a").shape == (80, 7)


def test_rows_beyond_the_sound_are_refused_by_name(tmp_path):
    """120 s of sound at a TR of 1.5 s, and nobody says so: at 2 s, rows would reach 169 s."""
    ds = datasets.load(str(make_tree(tmp_path / "mine", description={})))
    message = "story 'a': 80 response rows are centred at 11 to 169 s.*0 to 120.0 s.*RepetitionTime"
    for read in (lambda: ds.responses("S1", "a"), lambda: ds.story("a").tr_times):
        with pytest.raises(ValueError, match=message):
            read()


@pytest.mark.parametrize(
    "first, rows, fits", [(0.75, 81, True), (0.8, 81, False), (-1.5, 80, True), (-1.6, 80, False)]
)
def test_half_a_tr_after_the_sound_and_one_before_it_are_the_limits(tmp_path, first, rows, fits):
    ds = datasets.load(str(make_tree(tmp_path / "mine", first=first, rows=rows)))
    if fits:
        assert len(ds.story("a").tr_times) == len(ds.responses("S1", "a")) == rows
    else:
        with pytest.raises(ValueError, match="expected rows within it"):
            ds.responses("S1", "a")


def test_volumes_less_the_trimming_are_the_rows(tmp_path):
    description = {"RepetitionTime": 1.5, "FirstRowTime": 0.75, "VolumesTrimmed": [4, 2]}
    root = make_tree(tmp_path / "mine", description=description)
    (root / "derivative/respdict.json").write_text(json.dumps(dict.fromkeys("abcde", 86)))
    assert datasets.load(str(root)).responses("S1", "a").shape == (80, 7)
    (root / "derivative/respdict.json").write_text(json.dumps(dict.fromkeys("abcde", 100)))
    with pytest.raises(ValueError, match="80 response rows but 94 TRs .respdict.json, less"):
        datasets.load(str(root)).responses("S1", "a")


@pytest.mark.parametrize(
    "wrong",
    [
        {"RepetitionTime": 0},
        {"RepetitionTime": "2 s"},
        {"VolumesTrimmed": 10},
        {"FirstRowTime": None},
    ],
)
def test_a_clock_that_is_none_is_refused(tmp_path, wrong):
    root = make_tree(tmp_path / "mine", description=wrong)
    with pytest.raises(ValueError, match="dataset_description.json: .*expected seconds above 0"):
        datasets.load(str(root))


def test_a_tr_without_the_first_row_is_warned_of(tmp_path):
    root = make_tree(tmp_path / "mine", description={"RepetitionTime": 1.0})
    with pytest.warns(UserWarning, match="without FirstRowTime; row 0 is taken to be centred 11 s"):
        datasets.load(str(root))


def test_subjects_of_different_rows_are_refused(tmp_path):
    root = make_tree(tmp_path / "mine")
    write_responses(root / "derivative/preprocessed_data/S2/a.hf5", np.zeros((79, 7)))
    ds = datasets.load(str(root))
    with pytest.raises(ValueError, match="79 response rows but 80 TRs .other subjects"):
        ds.responses("S2", "a")


# ------------------------------------------------------------------ what a tree may lack
def test_without_repeats_words_and_anatomy_a_tree_gives_what_it_has(tmp_path):
    ds = datasets.load(str(make_tree(tmp_path / "mine")))
    assert ds.stories == list("abcde") and ds.n_voxels("S1") == 7
    assert ds.split == {"train": ["a", "b"], "val": ["c", "d"], "test": ["e"]}
    assert not ds.has_repeats("S1") and not ds.has_words("a") and not ds.has_surface("S1")
    assert ds.rois("S1") == {}
    assert "no TextGrid" in repr(ds.story("a"))
    with pytest.raises(ValueError, match=r"test stories \['e'\] were presented to S1 once"):
        ds.noise_ceiling("S1")
    with pytest.raises(FileNotFoundError, match="a.TextGrid: missing; expected a TextGrid"):
        _ = ds.story("a").words
    with pytest.raises(FileNotFoundError, match="no surface for S1"):
        ds.fsaverage5("S1")


def test_a_tree_says_what_it_has(tree):
    ds = datasets.load(str(tree), voxel_step=4)
    assert ds.has_repeats("UTS01") and not ds.has_repeats("UTS01", split="val")
    assert ds.has_words("a") and ds.n_voxels("UTS01") == 2


@pytest.mark.parametrize(
    "n_repeats, split",
    [
        ([1, 1], ("a", "", "b")),
        ([1, 1, 1], ("a", "b", "c")),
        ([2, 2, 2, 2], ("a", "bc", "d")),
        ([1, 3, 2, 1], ("ad", "c", "b")),
        ([3, 2, 2, 2], ("b", "cd", "a")),
    ],
)
def test_a_split_by_repeats_leaves_training_stories(n_repeats, split):
    parts = datasets.split_by_repeats(dict(zip("abcd", n_repeats)))
    assert tuple("".join(parts[k]) for k in ("train", "val", "test")) == split


def test_a_truncated_file_is_an_error_and_not_a_story_presented_once(tree):
    path = tree / "derivative/preprocessed_data/UTS01/d.hf5"
    path.write_bytes(path.read_bytes()[:-200])
    ds = datasets.load(str(tree))
    for ask in (lambda: ds.n_repeats("UTS01", "d"), lambda: ds.split):
        with pytest.raises(ValueError, match="d.hf5: cannot be read .*truncated"):
            ask()


def test_a_response_file_without_data_is_refused_whatever_is_asked(tree):
    import h5py

    path = tree / "derivative/preprocessed_data/UTS01/a.hf5"
    with h5py.File(path, "w") as file:
        file["responses"] = np.zeros((10, 6))
    ds = datasets.load(str(tree))
    for ask in (lambda: ds.n_repeats("UTS01", "a"), lambda: ds.responses("UTS01", "a", voxels=[0])):
        with pytest.raises(ValueError, match=r"keys \['responses'\]; expected 'data'"):
            ask()


def test_a_third_data_set_registers_itself(tmp_path, monkeypatch):
    """A package with an entry point in the group brainlib.datasets needs no change in brainlib."""
    make_tree(tmp_path / "mine")
    info = tmp_path / "site/campfire-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: campfire\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[brainlib.datasets]\ncampfire = campfire:open_dataset\n"
    )
    (tmp_path / "site/campfire.py").write_text(
        "from brainlib.datasets import Dataset\n"
        "def open_dataset(root=None, **options):\n"
        "    return Dataset(root, description={'Name': 'campfire'}, **options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    ds = datasets.load("campfire", tmp_path / "mine", voxel_step=2)
    assert (ds.name, ds.n_voxels("S1")) == ("campfire", 4)
    with pytest.raises(FileNotFoundError, match="campfire"):
        datasets.load("campfires")


@pytest.mark.parametrize(
    "label", ["{LS}", "{sentence_start}", "{CG}", "{IG}", "{BR}", "SP", "ns", "{ sl }"]
)
def test_fillers_are_dropped_whole_with_or_without_braces(tmp_path, label):
    path = tmp_path / "a.TextGrid"
    path.write_text(GRID.format(end=40).replace('"sp"', f'"{label}"'))
    tiers = files.read_textgrid(path)
    assert tiers["words"].text.tolist() == ["hi"] and tiers["phonemes"].text.tolist() == [
        "HH",
        "AY1",
    ]
    path.write_text(GRID.format(end=40).replace('"hi"', '"spoon"'))  # begins like a filler
    assert files.read_textgrid(path)["words"].text.tolist() == ["spoon"]


def test_noise_free_responses_are_z_scored_like_all_others_and_never_of_recordings(simulated, tree):
    path = simulated.root / "derivative/preprocessed_data/S1/a.hf5"
    signal = zscored(np.random.default_rng(0).standard_normal((40, 5))) * [1, 1, 1, 1, 0]
    write_responses(path, signal, noise_free=signal)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = simulated.responses("S1", "a", noise_free=True)
        some = simulated.responses("S1", "a", voxels=[4, 1], noise_free=True)
    np.testing.assert_allclose(read, signal, atol=1e-5)
    assert not read[:, 4].any()  # nothing drives it
    np.testing.assert_array_equal(some, read[:, [4, 1]])
    write_responses(path, signal)
    with pytest.raises(ValueError, match="keys .'data'.; expected 'noise_free'"):
        simulated.responses("S1", "a", noise_free=True)
    with pytest.raises(ValueError, match="holds recordings: their noise-free responses are not"):
        datasets.load(str(tree)).responses("UTS01", "a", noise_free=True)


def test_a_level_is_what_drives_a_voxel_and_not_how(simulated):
    truth = simulated.truth("S1")
    assert truth.level.tolist() == ["acoustic", "acoustic", "meaning", "meaning", "none"]
    assert {"snr", "hrf_peak", "shared"} < set(truth.columns)


def test_the_ceiling_of_a_split_pools_its_stories(simulated):
    rng = np.random.default_rng(1)
    repeats = {s: zscored(rng.standard_normal((n, 40, 5))) for s, n in zip("hij", (3, 3, 5))}
    for s, of_story in repeats.items():
        path = simulated.root / f"derivative/preprocessed_data/S1/{s}.hf5"
        write_responses(path, of_story.mean(0), of_story)
    np.testing.assert_allclose(
        simulated.noise_ceiling("S1"), encoding.noise_ceiling(repeats.values()), atol=1e-6
    )
    halves = [of_story[::2] for of_story in repeats.values()]
    np.testing.assert_allclose(
        simulated.noise_ceiling("S1", repeats=slice(None, None, 2)),
        encoding.noise_ceiling(halves),
        atol=1e-6,
    )


def test_responses_are_z_scored_by_hand_and_what_was_wrong_is_counted():
    """Voxels: one like any other, a constant, one without a number, one that lacks one."""
    nan, root = np.nan, np.sqrt(1.5)
    data = np.array([[1, 4, nan, 7], [3, 4, nan, nan], [5, 4, nan, 9.0]])
    n_bad, n_dead, far = files.zscore(data)
    np.testing.assert_allclose(data, [[-root, 0, 0, -1], [0, 0, 0, 0], [root, 0, 0, 1]])
    assert (n_bad, n_dead) == (4, 1)
    assert far == 4  # the median of the means 3, 4 and 8
    twice = np.stack([[[1.0], [3]], [[-40], [40]]])
    assert files.zscore(twice) == (0, 0, 39)  # the larger of both repeats'
    assert twice[:, :, 0].tolist() == [[-1, 1], [-1, 1]]


@pytest.mark.parametrize("spread, varies", [(0.9, False), (1.1, True)])
def test_a_voxel_varies_by_a_millionth_of_its_mean_or_else_is_constant(spread, varies):
    turn = spread * np.array([[-1.0], [1.0]])
    for data in (1 + 1e-6 * turn, -1 + 1e-6 * turn, 1e-12 * turn):
        files.zscore(data)
        np.testing.assert_allclose(data[:, 0], [-varies, varies], atol=1e-6)


@pytest.mark.parametrize("n_rows", [1, 3, 4, 100])
def test_blocks_of_rows_are_put_together_again(tree, monkeypatch, n_rows):
    path = tree / "derivative/preprocessed_data/UTS01/d.hf5"
    whole = files.read_hf5(path, "individual_repeats")
    assert whole.shape == (3, 10, 6) and files.hf5_shape(path) == (3, 10, 6)
    assert files.hf5_shape(path.with_stem("a")) == (1, 10, 6)  # presented once
    monkeypatch.setattr(files, "BLOCK_BYTES", 8 * 6 * n_rows)
    np.testing.assert_array_equal(files.read_hf5(path, "individual_repeats"), whole)
    some = files.read_hf5(path, "individual_repeats", columns=[4, 1])
    np.testing.assert_array_equal(some, whole[:, :, [4, 1]])
    assert len(files.read_hf5(path, "data", columns=slice(1, 3))[0]) == 2


def test_an_empty_file_is_refused_and_a_single_byte_is_a_file(tmp_path):
    (tmp_path / "one").write_bytes(b"1")
    files.check_file(tmp_path / "one", "anything")
    (tmp_path / "none").write_bytes(b"")
    with pytest.raises(ValueError, match="none: 0 bytes; expected anything"):
        files.check_file(tmp_path / "none", "anything")
