"""From the voxels of a scan to fsaverage5 and to named regions, by the subject's own anatomy."""

import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import sparse
from scipy.spatial import cKDTree
from sklearn.preprocessing import normalize

from .runtime import atomic, cache_dir, read_arrays, read_json, reading, require
from .surface import N_VERTICES

VERSION = 2  # of what is computed and kept; raise it when that changes
SAMPLES = 10  # points between white and pial surface, both included
SIDES = {"lh": "left", "rh": "right"}
# region: labels of FreeSurfer's aparc.a2009s (Destrieux et al. 2010), and areas of HCP-MMP (Glasser et al. 2016) where a
# reader supplies them. The language areas of HCP-MMP are those that Moussa et al. list for theirs (multi-brain tuning).
REGIONS = {
    "auditory_core": ("G_temp_sup-G_T_transv", "A1"),
    "auditory_belt": ("S_temporal_transverse G_temp_sup-Plan_tempo", "PBelt MBelt LBelt RI A4"),
    "superior_temporal": ("G_temp_sup-Lateral", "STGa A5"),
    "temporal": (
        "G_temporal_middle S_temporal_sup",
        "STSda STva STSva STSdp STSvp TE1a TE2a TGv TGd PSL STV TPOJ1",
    ),
    "angular": ("G_pariet_inf-Angular", "PFm PGs PGi TPOJ2 TPOJ3"),
    "inferior_frontal": ("G_front_inf-Opercular G_front_inf-Triangul", "44 45 IFJa IFSp"),
    "middle_frontal": ("G_front_middle", "55b"),
    "precuneus": ("G_precuneus", "PCV 7m 7Pm POS1 POS2"),
    "visual": ("S_calcarine G_cuneus Pole_occipital", "V1 V2"),
}
# Unions of regions, of all data sets. Lateral superior temporal cortex follows sounds of speech as well as words
# (de Heer et al. 2017), so it is a region of its own and not late language.
UNIONS = {
    "auditory": ("auditory_core", "auditory_belt"),
    "late_language": ("temporal", "angular", "inferior_frontal", "middle_frontal"),
}


def with_unions(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Region masks of shape (n_voxels,) with the unions of regions, "auditory" and "late_language", after them."""
    unions = {
        name: np.any([masks[part] for part in parts], axis=0) for name, parts in UNIONS.items()
    }
    return masks | unions


def read(root, subject: str) -> SimpleNamespace:
    """How a subject's voxels lie on fsaverage5 and in regions; computed once (seconds), then kept in the cache folder.

    Parameters
    ----------
    root : path
        A tree with ``derivative/pycortex-db/<subject>`` and ``derivative/freesurfer_subjdir/<subject>``. Regions are those
        of ``label/?h.HCPMMP1.annot`` where both hemispheres have it, else of ``label/?h.aparc.a2009s.annot``.

    Returns
    -------
    anatomy : namespace
        `matrix`: sparse (20484, n_voxels), rows sum to one, or are empty where a vertex has no voxel; `vertices`:
        (n_voxels,) the vertex each voxel counts most for; `labels`: (n_voxels,) names; `regions`: masks. A voxel that no
        point lies in (of a mask that is thicker than cortex there are many) has vertex -1, label "", and no region.

    Raises
    ------
    FileNotFoundError
        A file of the anatomy is missing (it is named).
    ValueError
        Files that do not belong together.

    Notes
    -----
    Ten points between white and pial surface are taken to the scan by pycortex' transform, and each to the voxel it lies
    in. A vertex of the subject then goes to the nearest vertex of fsaverage5 on the registered sphere; fsaverage5 vertices
    that none goes to take their nearest one. Voxels are numbered as pycortex does: in C order of the transposed mask.
    """
    files = _files(Path(root) / "derivative", subject)
    stamps = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files.values()]
    key = hashlib.blake2b(repr([*stamps, SAMPLES, VERSION]).encode(), digest_size=8).hexdigest()
    cached = cache_dir("cortex") / f"{subject}-{key}.npz"
    try:
        arrays = read_arrays(cached, "a subject's anatomy")
    except (OSError, ValueError):  # not kept yet, or broken
        with reading(files["coord"].parents[2], "the whole anatomy of one subject"):
            arrays = _build(files)
        with atomic(cached) as part, part.open("wb") as file:
            np.savez_compressed(file, **arrays)
    parts = tuple(arrays[name] for name in ("data", "indices", "indptr"))
    atlas = int("HCPMMP1" in files["lh labels"].name)
    regions = {
        name: np.isin(arrays["labels"], areas[atlas].split()) for name, areas in REGIONS.items()
    }
    sides = {f"{side}_hemisphere": arrays["side"] == i for i, side in enumerate(SIDES.values())}
    return SimpleNamespace(
        matrix=sparse.csr_matrix(parts, shape=tuple(arrays["shape"])),
        vertices=arrays["vertices"],
        labels=arrays["labels"],
        regions=with_unions(regions) | sides,
    )


def from_vertices(vertices):
    """The same sparse matrix for voxels that are vertices of fsaverage5; other vertices take the nearest one's (on the sphere)."""
    vertices = np.asarray(vertices)
    on_cortex = np.flatnonzero(vertices >= 0)
    shape = (2 * N_VERTICES, len(vertices))
    return _fill(_pairs(vertices[on_cortex], on_cortex, shape), np.full(2 * N_VERTICES, True))


def every_nth(matrix, step: int):
    """A matrix for every `step`-th voxel; vertices that lost all of theirs take the nearest vertex's (on the sphere)."""
    return _fill(matrix[:, ::step].tocsr(), np.diff(matrix.indptr) > 0)


def _pairs(rows, columns, shape):
    """Sparse matrix that counts how often each (row, column) occurs."""
    return sparse.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape)


def _fill(matrix, wanted):
    """Rows that sum to one; an empty row that is `wanted` becomes that of the nearest vertex with a voxel."""
    filled = np.diff(matrix.indptr) > 0
    source = np.arange(2 * N_VERTICES)
    for first, sphere in zip((0, N_VERTICES), _spheres()):
        half = slice(first, first + N_VERTICES)
        candidates = np.flatnonzero(filled[half])
        if len(candidates):
            nearest = first + candidates[cKDTree(sphere[candidates]).query(sphere)[1]]
            source[half] = np.where(wanted[half] & ~filled[half], nearest, source[half])
    return normalize(matrix, norm="l1")[source]


def _spheres():
    from nilearn.datasets import load_fsaverage

    parts = load_fsaverage("fsaverage5")["sphere"].parts
    return [_unit(parts[side].coordinates) for side in SIDES.values()]


def _unit(points):
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _files(base: Path, subject: str) -> dict[str, Path]:
    """Where a subject's anatomy lies."""
    surfaces = base / "pycortex-db" / subject / "surfaces"
    freesurfer = base / "freesurfer_subjdir" / subject
    names = base / "subject_xfms.json"
    transforms = read_json(names, "transforms by subject") if names.exists() else {}
    transform = surfaces.parent / "transforms" / transforms.get(subject, f"{subject}_auto")
    files = {"mask": transform / "mask_thick.nii.gz", "coord": transform / "matrices.xfm"}
    has_hcp = all((freesurfer / "label" / f"{h}.HCPMMP1.annot").exists() for h in SIDES)
    atlas = "HCPMMP1" if has_hcp else "aparc.a2009s"
    for h in SIDES:
        for name in ("pia", "wm"):  # .gii, but .npz for one subject of ds003020
            plain, packed = surfaces / f"{name}_{h}.gii", surfaces / f"{name}_{h}.npz"
            files[f"{h} {name}"] = packed if packed.exists() and not plain.exists() else plain
        files[f"{h} sphere"] = freesurfer / "surf" / f"{h}.sphere.reg"
        files[f"{h} labels"] = freesurfer / "label" / f"{h}.{atlas}.annot"
    missing = [str(p) for p in files.values() if not p.exists()]
    require(
        not missing,
        f"no way from {subject}'s voxels to fsaverage5: {len(missing)} of {len(files)} files missing, first {missing[:1]}",
        kind=FileNotFoundError,
    )
    return files


def _points(path: Path) -> np.ndarray:
    """Vertices of a surface in pycortex' form, (n, 3)."""
    import nibabel

    if path.suffix == ".npz":
        return np.load(path)["pts"]
    return nibabel.load(path).agg_data("pointset")


def _build(files: dict[str, Path]) -> dict[str, np.ndarray]:
    """The arrays that `read` keeps: the parts of the sparse matrix, and label, side and vertex of each voxel."""
    numbers, transform = _scan(files)
    n_voxels = numbers.max() + 1
    matrices, n_points, votes, names = [], [], [], [""]
    for h, fsaverage in zip(SIDES, _spheres()):
        half = _hemisphere(files, h)
        vertices, voxels = _sample(half, numbers, transform)
        sampled = _pairs(vertices, voxels, (len(half.pia), n_voxels))
        matrices.append(_register(half.sphere, fsaverage) @ sampled)
        n_points.append(np.bincount(voxels, minlength=n_voxels))
        labelled = np.flatnonzero(half.codes >= 0)  # -1: no label, such as the medial wall
        by_label = _pairs(half.codes[labelled], labelled, (len(half.names), len(half.pia)))
        votes.append((by_label @ sampled).toarray())
        names += half.names
    matrix = normalize(sparse.vstack(matrices).tocsr(), norm="l1")
    require(
        matrix.nnz,
        f"{files['coord']}: no vertex falls into the mask; transform and surfaces of one subject are expected",
    )
    left, right = n_points
    votes = np.concatenate(votes)
    in_cortex = np.diff(matrix.tocsc().indptr) > 0
    return {
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "shape": matrix.shape,
        "labels": np.array(names)[np.where(votes.any(0), votes.argmax(0) + 1, 0)],
        "side": np.where(left + right > 0, left < right, -1),
        "vertices": np.where(in_cortex, np.asarray(matrix.argmax(0)).ravel(), -1),
    }


def _scan(files):
    """Number of each voxel of the mask, (x, y, z), -1 outside; transform from surface (x, y, z, 1) to it, (4, 4)."""
    import nibabel

    mask = np.asarray(nibabel.load(files["mask"]).dataobj).T > 0  # (z, y, x)
    numbers = np.full(mask.shape, -1)
    numbers[mask] = np.arange(mask.sum())
    return numbers.T, np.array(json.loads(files["coord"].read_text())["coord"], float)


def _hemisphere(files, h) -> SimpleNamespace:
    """Surfaces of one hemisphere, (n_vertices, 3) each, and the label of each vertex as a code into `names`."""
    from nibabel import freesurfer

    codes, _, names = freesurfer.read_annot(files[f"{h} labels"])
    half = SimpleNamespace(
        pia=_points(files[f"{h} pia"]),
        wm=_points(files[f"{h} wm"]),
        sphere=freesurfer.read_geometry(files[f"{h} sphere"])[0],
        codes=codes,
    )
    sizes = {name: len(values) for name, values in vars(half).items()}
    require(
        len(set(sizes.values())) == 1,
        f"{files[f'{h} pia'].parents[1].name} {h}: surfaces of different vertices {sizes}; one subject's files are expected",
    )
    half.names = [re.sub(r"^[LR]_|_ROI$", "", name.decode()) for name in names]
    return half


def _sample(half, numbers, transform):
    """Vertex and voxel of each point between white and pial surface that lies in the mask."""
    depth = np.linspace(0, 1, SAMPLES)[:, None, None]
    points = ((1 - depth) * half.wm + depth * half.pia).reshape(-1, 3)
    places = np.floor(points @ transform[:3, :3].T + transform[:3, 3] + 0.5).astype(int)
    inside = np.flatnonzero(((places >= 0) & (places < numbers.shape)).all(1))
    voxels = numbers[tuple(places[inside].T)]
    in_mask = voxels >= 0
    return inside[in_mask] % len(half.pia), voxels[in_mask]


def _register(sphere, fsaverage):
    """Sparse (10242, n_vertices): which of a subject's vertices each fsaverage5 vertex takes, on the registered sphere."""
    sphere = _unit(sphere)
    own = np.arange(len(sphere))
    nearest = cKDTree(fsaverage).query(sphere)[1]
    untaken = np.setdiff1d(np.arange(N_VERTICES), nearest)
    own = np.append(own, cKDTree(sphere).query(fsaverage[untaken])[1])
    return _pairs(np.append(nearest, untaken), own, (N_VERTICES, len(sphere)))
