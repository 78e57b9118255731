"""ds003020: what is fetched, what is refused, and how its oddities are read. No real recording: trees and servers are made here."""

import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from lebel_tree import STORIES, Server, make_tree, manifest_of

from brainlib import datasets, evaluation, files, lebel
from brainlib.encoding import noise_ceiling

EVERYBODY = ("UTS01", "UTS02", "UTS03", "UTS04", "UTS09")
ONE = "derivative/preprocessed_data/UTS03/buck.hf5"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("source") / "ds003020", EVERYBODY)


@pytest.fixture(scope="module")
def table(source, tmp_path_factory):
    return lebel.manifest(manifest_of(source, tmp_path_factory.mktemp("manifest") / "m.csv"))


@pytest.fixture
def server(source, monkeypatch):
    monkeypatch.setattr(lebel, "BACKOFF_S", 0.02)
    monkeypatch.setattr(lebel, "SPARE", 0)
    monkeypatch.setattr(lebel, "TIMEOUT_S", 2.0)
    return Server(source)


@pytest.fixture
def fetch(server, table, tmp_path):
    def call(subjects=("UTS03",), stories=("buck",), what=("responses",), **options):
        return lebel.fetch(
            subjects,
            stories,
            what=what,
            **{"root": tmp_path / "out", "mirror": server.url, "table": table, "quiet": True}
            | options,
        )

    return call


def same(root, source, path):
    return (root / path).read_bytes() == (source / path).read_bytes()


# ------------------------------------------------------------------ the manifest
def test_the_shipped_manifest_is_that_of_the_release():
    table = lebel.manifest()
    assert table.path.is_unique and table.md5.str.fullmatch("[0-9a-f]{32}").all()
    assert table.groupby("kind").size().to_dict() == {
        "cortex": 86,
        "responses": 440,
        "stimuli": 85,
        "textgrids": 86,
    }
    n_stories = {s: len(lebel.stories_of(s, table)) for s in sorted(set(table.subject) - {""})}
    assert list(n_stories.values()) == [84, 84, 84, 26, 27, 27, 27, 27, 54]
    assert "life" not in lebel.stories_of(
        "UTS04"
    ) and "fromboyhoodtofatherhood" not in lebel.stories_of("UTS09")
    assert "onapproachtopluto" not in set(
        table.story
    )  # the second validation story of brainwavlm's later code
    # float64 and contiguous: sizes of one subject's stories differ by whole rows
    sizes = (
        table[(table.subject == "UTS03") & (table.story != lebel.TEST)]
        .query("kind == 'responses'")
        .bytes
    )
    assert ((sizes - 2048) % (8 * 95_556) == 0).all()


def test_splits_are_whole_disjoint_and_presented():
    for subjects in (["UTS03"], ["UTS04"], ["UTS09"], ["UTS02", "UTS09"]):
        for name in lebel.SPLITS:
            split = lebel.split_of(subjects, name)
            named = sum(split.values(), [])
            assert (
                len(named) == len(set(named))
                and split["val"]
                and split["test"] == ["wheretheressmoke"]
            )
            assert all(set(named) <= set(lebel.stories_of(s)) for s in subjects)
    sizes = {n: [len(v) for v in lebel.split_of(["UTS03"], n).values()] for n in lebel.SPLITS}
    assert sizes == {"braintuning": [24, 2, 1], "brainwavlm": [82, 1, 1]}
    assert lebel.split_of(["UTS04"])["val"] == ["stagefright"]
    assert (
        len(lebel.split_of(["UTS09"], "brainwavlm")["val"]) == 2
    )  # was presented no validation story of it
    with pytest.raises(KeyError, match="no split 'paper'"):
        lebel.split_of(["UTS03"], "paper")


# ------------------------------------------------------------------ fetching
def test_only_what_is_asked_for_comes_and_it_comes_once(fetch, server, source, capsys):
    root = fetch(stories=("buck", "souls"), what=("responses", "stimuli"), quiet=False)
    files_here = sorted(
        str(p.relative_to(root))
        for p in root.rglob("*.*")
        if p.is_file() and not p.name.startswith(".")
    )
    assert files_here == sorted(
        [ONE, ONE.replace("buck", "souls"), "stimuli/buck.wav", "stimuli/souls.wav"]
    )
    assert all(same(root, source, p) for p in files_here)
    printed = capsys.readouterr().out
    assert "fetching 4 of 4 files, " in printed and " MB, into " in printed and "free" in printed
    server.log.clear()
    fetch(
        stories=("buck", "souls"),
        what=("responses", "stimuli"),
        mirror="http://127.0.0.1:9/nowhere",
    )  # offline
    assert not server.log and not any((root / ".partial").rglob("*.hf5"))


@pytest.mark.parametrize(
    "fault", ["503", "html", "pointer", "redirect", "corrupt", "truncate", "close", "stall"]
)
def test_a_fault_is_got_over(fetch, server, source, fault):
    server.faults = {ONE: [fault]}
    assert same(fetch(), source, ONE)
    assert (fault in ("redirect",)) or sum(x[0] == "GET" and x[1] == ONE for x in server.log) >= 2
    resumed = [x for x in server.log if x[2]]
    assert bool(resumed) == (fault in ("truncate", "close", "stall"))


def test_a_server_without_ranges_is_no_hindrance(fetch, server, source):
    server.faults = {ONE: ["truncate", "norange"]}
    assert same(fetch(), source, ONE)


@pytest.mark.parametrize(
    "fault, why",
    [
        ("html", "a web page instead"),
        ("pointer", "a git-annex pointer instead"),
        ("corrupt", "MD5"),
        ("503", "HTTP 503"),
    ],
)
def test_what_stays_wrong_is_refused_and_named_and_the_rest_comes(
    fetch, server, source, tmp_path, fault, why
):
    server.faults = {ONE: [fault] * 99}
    with pytest.raises(
        OSError, match=rf"1 of 2 files did not come whole .*buck.hf5: .*{why}.*call again"
    ) as error:
        fetch(stories=("buck", "souls"))
    assert "\n" not in str(error.value)
    out = tmp_path / "out"
    assert (out / ".partial" / ONE).exists() == (
        fault == "corrupt"
    )  # nothing is kept that could not be gone on from
    assert not (out / ONE).exists() and same(out, source, ONE.replace("buck", "souls"))
    server.faults, server.log[:] = {}, []
    assert same(fetch(stories=("buck", "souls")), source, ONE)
    assert {x[1] for x in server.log} == {ONE}


def test_no_network_is_one_line(fetch):
    with pytest.raises(OSError, match="Could not connect"):
        fetch(mirror="http://127.0.0.1:9")


def test_a_file_the_mirror_lacks_is_named(fetch, table):
    extra = pd.concat(
        [table, table[table.path == ONE].assign(path=ONE.replace("buck", "gone"), story="gone")]
    )
    extra = pd.concat(
        [extra, extra[extra.path == "derivative/TextGrids/buck.TextGrid"].assign(story="gone")]
    )
    with pytest.raises(OSError, match="gone.hf5: .*404"):
        fetch(stories=("gone",), table=extra)


def test_a_reader_s_own_file_is_not_replaced_unasked(fetch, server, source, tmp_path):
    path = tmp_path / "out" / ONE
    path.parent.mkdir(parents=True)
    path.write_text("corrected by hand")
    with pytest.raises(
        ValueError,
        match=r"1 files are not those of ds003020 3.1.0: .*buck.hf5 .17 bytes, expected \d+.. Move them away",
    ):
        fetch()
    assert path.read_text() == "corrected by hand" and not server.log
    assert same(fetch(replace=True), source, ONE)


def test_a_pointer_under_the_name_is_replaced_only_by_a_right_file(fetch, server, source, tmp_path):
    path = tmp_path / "out" / ONE
    path.parent.mkdir(parents=True)
    path.write_text("/annex/objects/MD5E-s1--0.hf5")
    server.faults = {ONE: ["html"] * 99}
    with pytest.raises(OSError):
        fetch()
    assert path.read_text().startswith("/annex")
    server.faults = {}
    assert same(fetch(), source, ONE)


def test_check_finds_what_size_cannot(fetch, source):
    root = fetch()
    content = bytearray((root / ONE).read_bytes())
    content[5000] ^= 1
    (root / ONE).write_bytes(content)
    fetch()
    assert not same(root, source, ONE)
    with pytest.raises(ValueError, match="MD5"):
        fetch(check=True)
    assert same(fetch(check=True, replace=True), source, ONE)


def test_too_little_disk_fetches_nothing(fetch, server, monkeypatch, tmp_path):
    monkeypatch.setattr(lebel, "SPARE", 10**18)
    with pytest.raises(OSError, match="free, .* GB needed; free some, ask for less"):
        fetch()
    assert not server.log and not (tmp_path / "out" / ONE).exists()


def test_what_is_begun_needs_no_disk_again(fetch, server, source, monkeypatch, tmp_path):
    part, size = tmp_path / "out/.partial" / ONE, (source / ONE).stat().st_size
    part.parent.mkdir(parents=True)
    part.write_bytes((source / ONE).read_bytes()[:-100])
    monkeypatch.setattr(lebel.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 100})())
    assert same(fetch(), source, ONE) and [x[2] for x in server.log if x[0] == "GET"] == [
        f"bytes={size - 100}-"
    ]


def test_what_came_whole_before_a_crash_is_placed_without_a_network(
    fetch, server, source, tmp_path
):
    part = tmp_path / "out/.partial" / ONE
    part.parent.mkdir(parents=True)
    part.write_bytes((source / ONE).read_bytes())
    assert same(fetch(mirror="http://127.0.0.1:9"), source, ONE) and not server.log


def test_a_local_copy_serves_and_is_checked_too(fetch, source, tmp_path, monkeypatch):
    assert same(fetch(mirror=source), source, ONE)
    assert same(fetch(mirror=f"file://{source}", root=tmp_path / "by-address"), source, ONE)
    monkeypatch.setenv("BRAINLIB_MIRROR", str(source))
    assert same(fetch(mirror=None, root=tmp_path / "by-variable"), source, ONE)
    wrong = tmp_path / "copy"
    (wrong / ONE).parent.mkdir(parents=True)
    (wrong / ONE).write_bytes(b"0" * (source / ONE).stat().st_size)
    with pytest.raises(OSError, match="1 of 1 files .* MD5 is not"):
        fetch(mirror=wrong, root=tmp_path / "other")
    with pytest.raises(OSError, match="No such file"):
        fetch(mirror=tmp_path / "nothing", root=tmp_path / "other2")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"subjects": ["UTS10"]}, KeyError, "no subject 'UTS10'; it has .'UTS01'"),
        ({"stories": ["bucks"]}, KeyError, "no story .'bucks'"),
        (
            {"subjects": ["UTS04"], "stories": ["life"]},
            ValueError,
            "UTS04 was not presented .'life'",
        ),
        ({"what": ["fmri"]}, ValueError, "expected a list of some of"),
        ({"what": "responses"}, ValueError, "expected a list of some of"),
    ],
)
def test_a_wrong_request_is_refused_before_any_transfer(fetch, server, options, error, message):
    with pytest.raises(error, match=message):
        fetch(**options)
    assert not server.log


def fetch_in_a_process(tmp_path, server, stories):
    """The command of a process that fetches the sound of these stories into ``out``, by the manifest ``m.csv``."""
    code = (
        "import sys; from brainlib import lebel; lebel.SPARE = 0\n"
        f"lebel.fetch((), {stories}, what=['stimuli'], root=sys.argv[1], mirror=sys.argv[2], table=sys.argv[3], quiet=True)"
    )
    paths = [str(tmp_path / "out"), server.url, str(tmp_path / "m.csv")]
    return [sys.executable, "-c", code, *paths]


def test_nothing_is_lost_or_taken_for_whole_after_kill_9(server, source, table, tmp_path):
    server.slow = 0.05  # 64 kB every 50 ms: the sound of 11 MB takes eight seconds
    table.to_csv(tmp_path / "m.csv", index=False)
    command = fetch_in_a_process(tmp_path, server, ["buck", "souls"])
    process, parts = (
        subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL),
        tmp_path / "out/.partial/stimuli",
    )
    until = time.time() + 60
    while time.time() < until and not (
        parts.is_dir()
        and all(
            (parts / f"{s}.wav").exists() and (parts / f"{s}.wav").stat().st_size > 500_000
            for s in ("buck", "souls")
        )
    ):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    begun = {p.stem: p.stat().st_size for p in parts.iterdir()}
    assert set(begun) == {"buck", "souls"} and not (tmp_path / "out/stimuli").exists()
    server.slow, server.log[:] = 0.0, []
    root = lebel.fetch(
        (),
        ["buck", "souls"],
        what=["stimuli"],
        root=tmp_path / "out",
        mirror=server.url,
        table=table,
        quiet=True,
    )
    assert same(root, source, "stimuli/buck.wav") and same(root, source, "stimuli/souls.wav")
    assert sorted(x[2] for x in server.log if x[0] == "GET") == sorted(
        f"bytes={n}-" for n in begun.values()
    )


def test_two_processes_fetch_the_same_files_once(server, source, table, tmp_path):
    server.slow = 0.002
    table.to_csv(tmp_path / "m.csv", index=False)
    command = fetch_in_a_process(tmp_path, server, ["buck"])
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    assert (
        same(tmp_path / "out", source, "stimuli/buck.wav")
        and sum(x[0] == "GET" for x in server.log) == 1
    )


# ------------------------------------------------------------------ reading
@pytest.fixture
def ds(source, table):
    def load(*subjects, **options):
        return datasets.load(
            "lebel2023",
            root=source,
            table=table,
            mirror="http://127.0.0.1:9",
            subjects=subjects,
            **options,
        )

    return load


def test_a_whole_copy_is_opened_without_a_network(ds):
    d = ds("UTS03")
    assert (d.name, d.simulated, d.subjects, d.tr) == ("lebel2023", False, ["UTS03"], 2.0)
    assert d.split == {
        "train": ["souls", "naked", "fromboyhoodtofatherhood", "sloth", "buck", "eyespy"],
        "val": ["stagefright", "life"],
        "test": ["wheretheressmoke"],
    }
    for name, seconds in STORIES.items():
        story = d.story(name)
        assert (
            story.audio.shape == (int(np.ceil(seconds * 16_000)),)
            and story.audio.dtype == np.float32
        )  # stereo and mono, 44.1 kHz
        assert len(story.tr_times) == (seconds + 20) // 2 - 20 + (name == "wheretheressmoke")
    dropped = {"sp", "ns", "lg", "{BR}", "sentence_start"}
    assert not dropped & set(story.words.text) and not dropped & set(story.phonemes.text)
    assert set(story.phonemes.text) == {"AH0", "S", "T", "IY1"} and set(story.words.text) <= {
        "river",
        "the",
        "house",
        "walked",
    }


def test_files_come_when_they_are_first_read(server, table, tmp_path, capfd):
    d = datasets.load(
        "lebel2023", root=tmp_path / "out", table=table, mirror=server.url, subjects=["UTS03"]
    )
    asked = [x[1] for x in server.log if x[0] == "GET"]
    assert len(asked) == 11 and all(
        "stimuli" not in x and "hf5" not in x for x in asked
    )  # nine TextGrids and two tables
    server.log.clear()
    d.responses("UTS03", "buck")
    assert len(d.story("buck").audio)
    d.responses("UTS03", "buck")
    assert [x[1] for x in server.log if x[0] == "GET"] == [ONE, "stimuli/buck.wav"]
    server.log.clear()
    d.fetch(["UTS03"], ["buck", "eyespy"])  # in one go
    assert sorted(x[1] for x in server.log if x[0] == "GET") == [
        ONE.replace("buck", "eyespy"),
        "stimuli/eyespy.wav",
    ]


def test_subjects_who_lack_a_story(ds):
    assert ds("UTS04").split["val"] == ["stagefright"]
    assert "fromboyhoodtofatherhood" not in ds("UTS09").split["train"]
    assert (
        "life" not in ds("UTS04").stories
        and "life" in ds("UTS03").stories
        and "life" not in ds("UTS03", "UTS04").stories
    )
    with pytest.raises(KeyError, match="no story 'life'"):
        ds("UTS04").responses("UTS04", "life")
    assert ds("UTS03").repeats("UTS03", "wheretheressmoke").shape == (10, 24, 40)
    assert ds("UTS04").repeats("UTS04", "wheretheressmoke").shape == (5, 24, 40)
    assert ds("UTS09").rois("UTS09") == {}
    with pytest.raises(FileNotFoundError, match="no surface for UTS09"):
        ds("UTS09").vertices("UTS09")


def test_oddities_are_reported_and_mended(ds):
    d = ds("UTS03", "UTS01")
    with pytest.warns(
        UserWarning, match="UTS03 souls: 21 NaN values replaced by 0 .1 voxels have no number"
    ):
        d.responses("UTS03", "souls")
    assert d.filled == {("UTS03", "souls"): 21}
    with pytest.warns(UserWarning, match="UTS03 naked: responses were not z-scored"):
        y = d.responses("UTS03", "naked")
    np.testing.assert_allclose([y.mean(0), y.std(0)], [np.zeros(40), np.ones(40)], atol=1e-5)
    with pytest.warns(UserWarning, match="UTS01 wheretheressmoke: `data` is not the mean"):
        d.repeats("UTS01", "wheretheressmoke")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds("UTS02").repeats("UTS02", "wheretheressmoke")  # whose `data` is the mean, z-scored again
        d.repeats("UTS03", "wheretheressmoke")
        d.responses("UTS03", "wheretheressmoke")
        d.responses("UTS03", "buck")
    assert np.median(d.noise_ceiling("UTS03")) > 0.7


def test_only_the_columns_asked_for_are_read(ds, source, monkeypatch):
    whole = ds("UTS03").responses("UTS03", "buck")
    chosen = np.array([3, 30, 11])
    mask = np.zeros(40, bool)
    mask[[3, 11, 30]] = True
    np.testing.assert_array_equal(
        ds("UTS03").responses("UTS03", "buck", voxels=chosen), whole[:, chosen]
    )
    np.testing.assert_array_equal(
        ds("UTS03").responses("UTS03", "buck", voxels=mask), whole[:, mask]
    )
    thin = ds("UTS03", voxel_step=7)
    np.testing.assert_array_equal(thin.responses("UTS03", "buck"), whole[:, ::7])
    np.testing.assert_array_equal(
        thin.responses("UTS03", "buck", voxels=[2, 4]), whole[:, [14, 28]]
    )
    monkeypatch.setattr(files, "BLOCK_BYTES", 8 * 40 * 3)  # three rows at a time
    np.testing.assert_array_equal(
        ds("UTS03").repeats("UTS03", "wheretheressmoke", voxels=chosen),
        ds("UTS03").repeats("UTS03", "wheretheressmoke")[..., chosen],
    )
    with pytest.raises(ValueError, match="voxel_step=0"):
        ds("UTS03", voxel_step=0)


def test_voxels_that_are_not_there_are_named(ds):
    d = ds("UTS03", voxel_step=7)
    for wrong in (np.ones(40, bool), [6], 3, ["a"]):
        with pytest.raises(
            ValueError,
            match="buck.hf5: 6 voxels; expected a mask of as many, indices of them, or a slice",
        ):
            d.responses("UTS03", "buck", voxels=wrong)
    whole = d.responses("UTS03", "buck")
    np.testing.assert_array_equal(d.responses("UTS03", "buck", voxels=[-1, 0]), whole[:, [-1, 0]])
    np.testing.assert_array_equal(d.responses("UTS03", "buck", voxels=slice(1, 3)), whole[:, 1:3])
    assert d.responses("UTS03", "buck", voxels=[]).shape == (21, 0)


def test_a_constant_voxel_becomes_zero_whatever_its_value():
    data = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
    data[:, 1], data[:, 2] = 7.3, 1234.567
    files.zscore(data)
    assert (data[:, 1:3] == 0).all() and (data[:, [0, 3]].std(0) > 0.99).all()


def test_a_reader_s_own_copy_is_used_as_it_is(source, table, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    grid = copy / "derivative/TextGrids/buck.TextGrid"
    grid.write_text(grid.read_text().replace('"walked"', '"strolled"'))
    with pytest.warns(
        UserWarning, match="1 files are not those of ds003020 .*buck.TextGrid.*used as they are"
    ):
        d = datasets.load(
            "lebel2023", root=copy, table=table, mirror="http://127.0.0.1:9", subjects="UTS03"
        )
    with pytest.warns(UserWarning, match="used as they are"):
        assert "strolled" in set(d.story("buck").words.text)


def test_what_voxels_were_chosen_on_is_not_what_they_are_scored_on(ds):
    """Only the test story was repeated: every second repeat chooses, the others are scored."""
    d = ds("UTS03")
    with pytest.warns(UserWarning, match="every second repeat"):
        chosen = evaluation.pick_voxels(d, "UTS03", rule="ceiling > 0.8")
    repeats = d.repeats("UTS03", lebel.TEST)
    np.testing.assert_array_equal(
        chosen, np.flatnonzero(noise_ceiling(repeats[[0, 2, 4, 6, 8]]) > 0.8)
    )
    left = evaluation.scored_repeats(d, "UTS03")
    y = repeats[[1, 3, 5, 7, 9]].mean(0)
    np.testing.assert_allclose(
        d.responses("UTS03", lebel.TEST, repeats=left), (y - y.mean(0)) / y.std(0), atol=1e-5
    )
    np.testing.assert_allclose(
        d.noise_ceiling("UTS03", repeats=left), noise_ceiling(repeats[1::2]), atol=1e-6
    )


def test_a_split_can_be_named_with_the_data_set(source, table):
    d = datasets.load(
        "lebel2023:brainwavlm",
        root=source,
        table=table,
        mirror="http://127.0.0.1:9",
        subjects=["UTS03"],
    )
    assert d.split["val"] == ["fromboyhoodtofatherhood"] and len(d.split["train"]) == 7


def test_regions_are_left_out_with_a_word_where_they_cannot_be_fetched(
    source, tmp_path, monkeypatch
):
    monkeypatch.setattr(lebel, "RETRIES", 0)
    full = lebel.manifest()
    anatomy = full[(full.subject == "UTS03") & (full.kind == "cortex")]
    table = pd.concat([lebel.manifest(manifest_of(source, tmp_path / "m.csv")), anatomy])
    d = datasets.load(
        "lebel2023", root=source, table=table, mirror="http://127.0.0.1:9", subjects=["UTS03"]
    )
    with pytest.warns(UserWarning, match="no regions of UTS03: .* did not come whole"):
        assert d.rois("UTS03") == {}


def test_rows_of_a_manifest_that_nobody_can_ask_for_are_left_out():
    table = pd.DataFrame(
        {
            "path": [
                "sub-UTS01/func/x_bold.nii.gz",
                "stimuli/buck.wav",
                "derivative/respdict.json",
            ],
            "bytes": 1,
            "md5": "0" * 32,
        }
    )
    assert lebel.manifest(table).kind.tolist() == ["stimuli", "textgrids"]


def test_memory_is_that_of_the_columns(tmp_path):
    """A test story of ten repeats of 60,000 voxels (1.1 GB) is read for one voxel in a hundred: never more than a few blocks."""
    import h5py

    path = tmp_path / "big.hf5"
    with h5py.File(path, "w") as file:
        file.create_dataset("individual_repeats", (10, 231, 60_000), "f8")[9, 230] = 1.0
        file.create_dataset("data", (2310, 60_000), "f8")[2309] = 1.0
    code = (
        "import sys, numpy as np, h5py; from pathlib import Path; from brainlib import files, runtime\n"
        "before = runtime.peak_memory_mb(); y = files.read_hf5(Path(sys.argv[1]), 'data', columns=slice(None, None, 100))\n"
        "assert y[2309].sum() == 600; x = files.read_hf5(Path(sys.argv[1]), 'individual_repeats', columns=slice(None, None, 100))\n"
        "print(x.shape, x[9, 230].sum(), runtime.peak_memory_mb() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.startswith("(10, 231, 600) 600.0 ") and float(out.split()[-1]) < 300
