"""Voxels to fsaverage5 of a made-up subject whose anatomy is fsaverage5 itself, in a scan of known place: the answer is known."""

import json
import os
from types import SimpleNamespace

import h5py
import nibabel
import numpy as np
import pytest
from lebel_tree import LABELS, make_anatomy, make_tree, parcel
from nibabel.freesurfer import write_annot
from nilearn.datasets import load_fsaverage
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from brainlib import cortex, datasets, surface
from brainlib.surface import N_VERTICES


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BRAINLIB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def subject_tree(tmp_path):
    return tmp_path / "tree", make_anatomy(tmp_path / "tree", "UTS03")


def by_hand(root, subject="UTS03"):
    """{vertex: voxel numbers of its ten points}, one at a time, from the mask as nibabel holds it."""
    folder = root / f"derivative/pycortex-db/{subject}/transforms/{subject}_auto"
    mask, coord = (
        nibabel.load(folder / "mask_thick.nii.gz").get_fdata(),
        np.array(json.loads((folder / "matrices.xfm").read_text())["coord"]),
    )
    number, n = {}, 0
    for k in range(mask.shape[2]):  # slices first, columns last
        for j in range(mask.shape[1]):
            for i in range(mask.shape[0]):
                if mask[i, j, k]:
                    number[i, j, k], n = n, n + 1
    mesh, voxels = load_fsaverage("fsaverage5"), {}
    for first, side in ((0, "left"), (N_VERTICES, "right")):
        pial, white = (mesh[p].parts[side].coordinates for p in ("pial", "white_matter"))
        for v in range(0, N_VERTICES, 37):
            points = [white[v] + t * (pial[v] - white[v]) for t in np.arange(10) / 9]
            places = [tuple(np.rint((coord @ [*p, 1])[:3]).astype(int)) for p in points]
            voxels[first + v] = [number[p] for p in places if p in number]
    return voxels


def test_the_answer_is_right_to_the_vertex(subject_tree):
    root, n = subject_tree
    anatomy = cortex.read(root, "UTS03")
    assert anatomy.matrix.shape == (2 * N_VERTICES, n)
    values = np.random.default_rng(0).standard_normal(n)
    mapped, expected = anatomy.matrix @ values, by_hand(root)
    assert len(expected) == 554 and all(expected.values())
    np.testing.assert_allclose(
        [mapped[v] for v in expected], [values[x].mean() for x in expected.values()], atol=1e-9
    )
    np.testing.assert_allclose(np.asarray(anatomy.matrix.sum(1)).ravel(), 1)


def test_another_numbering_of_the_subject_s_vertices_changes_nothing(subject_tree, tmp_path):
    root, n = subject_tree
    order = np.random.default_rng(1).permutation(N_VERTICES)
    make_anatomy(tmp_path / "other", "UTS03", order=order)
    a, b = cortex.read(root, "UTS03"), cortex.read(tmp_path / "other", "UTS03")
    assert abs(a.matrix - b.matrix).max() < 1e-9
    assert all((a.regions[k] == b.regions[k]).all() for k in a.regions)


def test_surfaces_packed_as_npz_are_the_same(subject_tree, tmp_path):
    make_anatomy(tmp_path / "npz", "UTS03", packed=True)
    assert (
        abs(
            cortex.read(subject_tree[0], "UTS03").matrix
            - cortex.read(tmp_path / "npz", "UTS03").matrix
        ).max()
        < 1e-9
    )


def test_a_finer_surface_is_averaged(subject_tree, tmp_path):
    """Twice the vertices, each pair at one place of the sphere: values stay those of the pair's mean."""
    root, n = subject_tree
    twice = np.repeat(np.arange(N_VERTICES), 2)
    base = root / "derivative"
    from nibabel.freesurfer import read_annot, read_geometry, write_geometry

    before = cortex.read(root, "UTS03").matrix
    for h in ("lh", "rh"):
        for name in ("pia", "wm"):
            path = base / f"pycortex-db/UTS03/surfaces/{name}_{h}.gii"
            points = nibabel.load(path).agg_data("pointset")
            path.unlink()
            np.savez(path.with_suffix(".npz"), pts=points[twice], polys=np.zeros((1, 3), int))
        sphere, faces = read_geometry(base / f"freesurfer_subjdir/UTS03/surf/{h}.sphere.reg")
        write_geometry(base / f"freesurfer_subjdir/UTS03/surf/{h}.sphere.reg", sphere[twice], faces)
        codes, table, names = read_annot(
            base / f"freesurfer_subjdir/UTS03/label/{h}.aparc.a2009s.annot"
        )
        write_annot(
            base / f"freesurfer_subjdir/UTS03/label/{h}.aparc.a2009s.annot",
            codes[twice],
            table,
            names,
        )
    assert abs(cortex.read(root, "UTS03").matrix - before).max() < 1e-6


def test_regions_are_the_subject_s_own_labels(subject_tree):
    """Each voxel's label by counting, with the mask as nibabel holds it; unlabelled vertices (the medial wall) give none."""
    root, n = subject_tree
    anatomy, mesh = cortex.read(root, "UTS03"), load_fsaverage("fsaverage5")
    folder = root / "derivative/pycortex-db/UTS03/transforms/UTS03_auto"
    mask, coord = (
        nibabel.load(folder / "mask_thick.nii.gz").get_fdata() > 0,
        np.array(json.loads((folder / "matrices.xfm").read_text())["coord"]),
    )
    number = {
        tuple(x): i for i, x in enumerate(sorted(np.argwhere(mask).tolist(), key=lambda x: x[::-1]))
    }
    counts, sides = np.zeros((n, 2, len(LABELS) + 1)), (("left", 1), ("right", -1))
    for h, (side, sign) in enumerate(sides):
        pial, white = (mesh[p].parts[side].coordinates for p in ("pial", "white_matter"))
        codes = parcel(pial, sign)
        for t in np.arange(10) / 9:
            places = np.rint((white + t * (pial - white)) @ coord[:3, :3].T + coord[:3, 3]).astype(
                int
            )
            for place, code in zip(map(tuple, places), codes):
                if place in number:
                    counts[number[place], h, code] += 1
    names = np.array(["", *LABELS.values()])
    top = np.sort(counts[:, :, 1:].reshape(n, -1), axis=1)
    clear = top[:, -1] > top[:, -2]
    expected = names[1:][counts[:, :, 1:].reshape(n, -1).argmax(1) % len(LABELS)]
    assert clear.mean() > 0.3 and (anatomy.labels[clear] == expected[clear]).all()
    unlabelled = counts[:, :, 1:].sum((1, 2)) == 0
    assert unlabelled.mean() > 0.2 and (anatomy.labels[unlabelled] == "").all()
    regions = {r: anatomy.regions[r] for r in LABELS}
    assert (sum(m.astype(int) for m in regions.values())[unlabelled] == 0).all() and (
        sum(m.astype(int) for m in regions.values()) <= 1
    ).all()
    assert all((regions[r] == (anatomy.labels == name)).all() for r, name in LABELS.items())
    assert (
        anatomy.regions["auditory"] == (regions["auditory_core"] | regions["auditory_belt"])
    ).all()
    hit = counts.sum((1, 2)) > 0
    assert (
        (~hit).mean() > 0.2
        and (anatomy.vertices[~hit] == -1).all()
        and (anatomy.vertices[hit] >= 0).all()
    )
    assert ((anatomy.regions["left_hemisphere"] | anatomy.regions["right_hemisphere"]) == hit).all()
    assert (
        anatomy.regions["right_hemisphere"][hit] == (counts[hit, 0].sum(1) < counts[hit, 1].sum(1))
    ).all()
    assert ((anatomy.vertices < N_VERTICES) == (counts[:, 0].sum(1) >= counts[:, 1].sum(1)))[
        hit
    ].mean() > 0.97


def test_hcp_labels_are_taken_where_a_reader_supplies_them(subject_tree):
    root = subject_tree[0]
    folder = root / "derivative/freesurfer_subjdir/UTS03/label"
    before = cortex.read(root, "UTS03").regions
    for h, letter in (("lh", "L"), ("rh", "R")):
        codes = np.zeros(N_VERTICES, int)
        codes[:200], codes[200:250] = 1, 2
        write_annot(
            folder / f"{h}.HCPMMP1.annot",
            codes,
            np.array([[0] * 5, [20, 7, 3, 0, 0], [5, 9, 30, 0, 0]]),
            ["???", f"{letter}_A1_ROI", f"{letter}_55b_ROI"],
            fill_ctab=True,
        )
        if h == "lh":  # one hemisphere is not enough
            assert (cortex.read(root, "UTS03").regions["angular"] == before["angular"]).all()
    anatomy = cortex.read(root, "UTS03")
    assert {n for n, m in anatomy.regions.items() if m.any()} == {
        "auditory_core",
        "auditory",
        "middle_frontal",
        "late_language",
        "left_hemisphere",
        "right_hemisphere",
    }
    assert set(anatomy.labels) <= {"", "A1", "55b"}
    sizes = {n: anatomy.regions[n].sum() for n in ("auditory_core", "middle_frontal")}
    assert (
        0.02 < sizes["auditory_core"] / len(anatomy.labels) < 0.2
        and sizes["middle_frontal"] < sizes["auditory_core"]
    )


def test_it_is_computed_once_and_anew_when_a_file_changes(subject_tree, monkeypatch):
    root = subject_tree[0]
    cortex.read(root, "UTS03")
    monkeypatch.setattr(cortex, "_build", lambda files: 1 / 0)
    cortex.read(root, "UTS03")
    path = root / "derivative/pycortex-db/UTS03/transforms/UTS03_auto/matrices.xfm"
    os.utime(path, ns=(1, 1))  # the same size, another time
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        cortex.read(root, "UTS03")


def test_what_another_version_computed_is_not_taken(subject_tree, monkeypatch):
    cortex.read(subject_tree[0], "UTS03")
    monkeypatch.setattr(cortex, "_build", lambda files: 1 / 0)
    monkeypatch.setattr(cortex, "VERSION", cortex.VERSION + 1)
    with pytest.raises(ValueError, match="ZeroDivisionError"):
        cortex.read(subject_tree[0], "UTS03")


def test_files_of_two_subjects_are_refused(subject_tree):
    root = subject_tree[0]
    path = root / "derivative/pycortex-db/UTS03/surfaces"
    (path / "pia_lh.gii").unlink()
    np.savez(path / "pia_lh.npz", pts=np.zeros((5, 3)), polys=np.zeros((1, 3), int))
    with pytest.raises(
        ValueError, match="lh: surfaces of different vertices.*'pia': 5, 'wm': 10242"
    ):
        cortex.read(root, "UTS03")
    (path / "pia_lh.npz").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 10 files missing, first .*pia_lh.gii"):
        cortex.read(root, "UTS03")


def test_a_transform_that_misses_the_mask_is_refused(subject_tree):
    path = subject_tree[0] / "derivative/pycortex-db/UTS03/transforms/UTS03_auto/matrices.xfm"
    path.write_text(json.dumps({"coord": (np.eye(4) * 1000).tolist()}))
    with pytest.raises(ValueError, match="no vertex falls into the mask"):
        cortex.read(subject_tree[0], "UTS03")


def test_nans_and_empty_vertices_in_a_picture():
    class Two:
        """Vertex 0 has both voxels, vertex 1 the second, no other any."""

        def fsaverage5(self, subject):
            return csr_matrix(
                ([0.25, 0.75, 1.0], ([0, 0, 1], [0, 1, 1])), shape=(2 * N_VERTICES, 2)
            )

    assert surface.to_fsaverage5(Two(), "x", [4.0, 8.0])[:2].tolist() == [7.0, 8.0]
    filled = surface.to_fsaverage5(Two(), "x", [4.0, np.nan])
    assert filled[0] == 4.0 and np.isnan(filled[1:]).all()


def test_every_seventh_voxel_is_the_same_cortex_more_coarsely(tmp_path):
    make_tree(tmp_path / "tree", ("UTS03",), stories={"souls": 60.0}, anatomy=True)
    whole, thin = (datasets.load(str(tmp_path / "tree"), voxel_step=n) for n in (1, 7))
    n = len(whole.vertices("UTS03"))
    np.testing.assert_array_equal(thin.vertices("UTS03"), whole.vertices("UTS03")[::7])
    assert all(
        (mask == whole.rois("UTS03")[name][::7]).all() for name, mask in thin.rois("UTS03").items()
    )
    a, b = whole.fsaverage5("UTS03"), thin.fsaverage5("UTS03")
    assert b.shape == (2 * N_VERTICES, len(range(0, n, 7)))
    own = np.asarray(a[:, ::7].sum(1)).ravel() > 0
    np.testing.assert_allclose(
        b[own].toarray(), normalize(a[:, ::7], norm="l1")[own].toarray(), atol=1e-12
    )
    np.testing.assert_allclose(np.asarray(b.sum(1)).ravel(), 1)
    x = np.random.default_rng(0).standard_normal(n)
    assert (
        surface.to_fsaverage5(whole, "UTS03", x).shape
        == surface.to_fsaverage5(thin, "UTS03", x[::7]).shape
    )


def test_a_thinned_map_does_not_reach_beyond_the_scan():
    half = np.arange(
        0, N_VERTICES, 2
    )  # the left hemisphere alone was scanned, every second vertex of it
    matrix = csr_matrix(
        (np.ones(len(half)), (half, np.arange(len(half)))), shape=(2 * N_VERTICES, len(half))
    )
    thin = cortex.every_nth(matrix, 50)
    np.testing.assert_array_equal(np.diff(thin.indptr) > 0, np.diff(matrix.indptr) > 0)


def test_voxels_that_are_vertices_spread_to_the_nearest_ones_of_their_hemisphere():
    matrix = cortex.from_vertices([-1, 0, N_VERTICES, N_VERTICES, 2 * N_VERTICES - 1]).toarray()
    assert matrix.shape == (2 * N_VERTICES, 5) and (matrix[:, 0] == 0).all()
    np.testing.assert_array_equal(matrix[:N_VERTICES], [[0, 1, 0, 0, 0]] * N_VERTICES)
    assert matrix[N_VERTICES].tolist() == [0, 0, 0.5, 0.5, 0]  # two voxels of one vertex
    assert matrix[-1].tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(matrix.sum(1), 1)


def test_points_lie_in_the_voxel_whose_centre_is_nearest():
    """Two vertices with ten points each on a line of five voxels; the middle one is outside of the mask."""
    numbers = np.array([0, 1, -1, 2, 3]).reshape(5, 1, 1)
    line = np.array([[1.0, 0, 0]])
    half = SimpleNamespace(
        wm=np.concatenate([-0.6 * line, 3.49 * line]), pia=np.concatenate([8.4 * line, 4.5 * line])
    )
    half.wm[1, 0], half.pia[1, 0] = 4.49, 4.51
    vertices, voxels = cortex._sample(half, numbers, np.eye(4))
    of_first = voxels[vertices == 0].tolist()
    assert of_first == [0, 1, 2, 3]  # points at -0.6 (outside), 0.4, 1.4, 2.4, 3.4, 4.4 ...
    assert voxels[vertices == 1].tolist() == [3] * 5  # five points below 4.5
    shifted = np.eye(4)
    shifted[0, 3] = 0.2  # the first point at -0.4, the last inside at 3.6
    vertices, voxels = cortex._sample(half, numbers, shifted)
    assert voxels[vertices == 0].tolist() == [0, 1, 2, 3]
    assert 1 not in vertices


def test_vertices_of_the_sphere_go_to_the_nearest_and_no_place_stays_empty(monkeypatch):
    """Of four places, three are taken by a subject's four vertices; the last takes its nearest vertex."""
    monkeypatch.setattr(cortex, "N_VERTICES", 4)
    places = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]])
    own = 100 * np.array([[1, 0.1, 0], [1, -0.1, 0], [-0.1, 1, 0], [0, 0, 1.0]])
    taken = cortex._register(own, places).toarray()
    assert taken.tolist() == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_a_voxel_is_labelled_and_sided_by_most_of_its_points(monkeypatch):
    """Voxels: two vertices of B, one of A; one of A on each side; unlabelled; none at all."""
    numbers = np.arange(4).reshape(4, 1, 1)
    monkeypatch.setattr(cortex, "N_VERTICES", 5)
    monkeypatch.setattr(cortex, "_scan", lambda files: (numbers, np.eye(4)))
    sphere = np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0], [0, -1, 0]])
    monkeypatch.setattr(cortex, "_spheres", lambda: [sphere, sphere])
    x = {"lh": [0, 0, 0, 1, 9], "rh": [1, 2, 2, 9, 9]}
    codes = {"lh": [0, 1, 1, 0, 0], "rh": [0, -1, -1, 1, 1]}

    def hemisphere(files, h):
        points = np.array(x[h])[:, None] * np.array([1.0, 0, 0])
        own = {"codes": np.array(codes[h]), "names": [f"A_{h}", f"B_{h}"]}
        return SimpleNamespace(pia=points, wm=points, sphere=sphere, **own)

    monkeypatch.setattr(cortex, "_hemisphere", hemisphere)
    found = cortex._build({"coord": "matrices.xfm"})
    assert found["labels"].tolist() == ["B_lh", "A_lh", "", ""]
    assert found["side"].tolist() == [0, 0, 1, -1]  # as many on both sides: left
    assert found["vertices"].tolist() == [0, 3, 6, -1]
    assert tuple(found["shape"]) == (10, 4) and found["data"].tolist() == [1.0] * 7


def test_voxels_are_numbered_with_the_first_axis_fastest(tmp_path):
    mask = np.zeros((2, 3, 2))
    mask[1, 0, 0] = mask[0, 2, 0] = mask[0, 0, 1] = 1
    nibabel.Nifti1Image(mask, np.eye(4)).to_filename(tmp_path / "mask.nii.gz")
    (tmp_path / "xfm").write_text(json.dumps({"coord": np.eye(4).tolist()}))
    numbers, _ = cortex._scan({"mask": tmp_path / "mask.nii.gz", "coord": tmp_path / "xfm"})
    assert (numbers[1, 0, 0], numbers[0, 2, 0], numbers[0, 0, 1]) == (0, 1, 2)
    assert (numbers[mask == 0] == -1).all()


def test_responses_of_another_subject_are_refused(tmp_path):
    make_tree(tmp_path / "tree", ("UTS03",), stories={"souls": 60.0}, anatomy=True)
    path = tmp_path / "tree/derivative/preprocessed_data/UTS03/souls.hf5"
    with h5py.File(path, "r") as file:
        data = file["data"][:, :-1]
    with h5py.File(path, "w") as file:
        file["data"] = data
    with pytest.raises(
        ValueError, match="columns, but UTS03's mask holds .* voxels; is it another subject's"
    ):
        datasets.load(str(tmp_path / "tree")).rois("UTS03")
