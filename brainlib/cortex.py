"""From the voxels of a scan to fsaverage5 and to named regions, by the participant's own anatomy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .runtime import atomic, cache_dir
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
    unions = {name: np.any([masks[p] for p in parts], axis=0) for name, parts in UNIONS.items()}
    return masks | unions


def read(root, subject: str) -> SimpleNamespace:
    """How one participant's voxels lie on fsaverage5 and in regions; computed once (seconds), then stored in the cache folder.

    Parameters
    ----------
    root : path
        A tree with ``derivative/pycortex-db/<subject>`` and ``derivative/freesurfer_subjdir/<subject>``. Regions are those
        of ``label/?h.HCPMMP1.annot`` where both hemispheres have it, else of ``label/?h.aparc.a2009s.annot``.

    Returns
    -------
    cortex : namespace
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
    in. A vertex of the participant then goes to the nearest vertex of fsaverage5 on the registered sphere; fsaverage5 vertices
    that none goes to take their nearest one. Voxels are numbered as pycortex does: in C order of the transposed mask.
    """
    from scipy.sparse import csr_matrix

    files = _files(Path(root) / "derivative", subject)
    stamp = repr(
        [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files.values()]
        + [SAMPLES, VERSION]
    )
    kept = (
        cache_dir("cortex")
        / f"{subject}-{hashlib.blake2b(stamp.encode(), digest_size=8).hexdigest()}.npz"
    )
    if not kept.exists():
        built = _build(files)
        with atomic(kept) as part, part.open("wb") as file:
            np.savez_compressed(file, **built)
    found = SimpleNamespace(**np.load(kept))
    matrix = csr_matrix((found.data, found.indices, found.indptr), shape=tuple(found.shape))
    atlas = int("HCPMMP1" in files["lh labels"].name)
    regions = {name: np.isin(found.labels, both[atlas].split()) for name, both in REGIONS.items()}
    regions = with_unions(regions)
    regions |= {f"{side}_hemisphere": found.side == i for i, side in enumerate(SIDES.values())}
    return SimpleNamespace(
        matrix=matrix, vertices=found.vertices, labels=found.labels, regions=regions
    )


def from_vertices(vertices):
    """The same sparse matrix for voxels that are vertices of fsaverage5; other vertices take the nearest one's (on the sphere)."""
    from scipy.sparse import csr_matrix

    there = np.flatnonzero(np.asarray(vertices) >= 0)
    matrix = csr_matrix(
        (np.ones(len(there)), (np.asarray(vertices)[there], there)),
        shape=(2 * N_VERTICES, len(vertices)),
    )
    return _filled(matrix, np.full(2 * N_VERTICES, True))


def every_nth(matrix, step: int):
    """A matrix for one voxel in so many; vertices that lost all of theirs take the nearest vertex's (on the sphere)."""
    return _filled(matrix[:, ::step].tocsr(), np.diff(matrix.indptr) > 0)


def _filled(matrix, wanted):
    from scipy.spatial import cKDTree
    from sklearn.preprocessing import normalize

    has, source = np.diff(matrix.indptr) > 0, np.arange(2 * N_VERTICES)
    for i, sphere in enumerate(_spheres()):
        half = slice(i * N_VERTICES, (i + 1) * N_VERTICES)
        some = np.flatnonzero(has[half])
        if len(some):
            nearest = i * N_VERTICES + some[cKDTree(sphere[some]).query(sphere)[1]]
            source[half] = np.where(wanted[half] & ~has[half], nearest, source[half])
    return normalize(matrix, norm="l1")[source]


def _spheres():
    from nilearn.datasets import load_fsaverage

    parts = load_fsaverage("fsaverage5")["sphere"].parts
    return [_unit(parts[side].coordinates) for side in SIDES.values()]


def _unit(points):
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def _files(base: Path, subject: str) -> dict[str, Path]:
    """Where a participant's anatomy lies."""
    names, surfaces, free = (
        base / "subject_xfms.json",
        base / "pycortex-db" / subject / "surfaces",
        base / "freesurfer_subjdir" / subject,
    )
    known = json.loads(names.read_text()) if names.exists() else {}
    transform = (
        base / "pycortex-db" / subject / "transforms" / known.get(subject, f"{subject}_auto")
    )
    files = {"mask": transform / "mask_thick.nii.gz", "coord": transform / "matrices.xfm"}
    atlas = (
        "HCPMMP1"
        if all((free / "label" / f"{h}.HCPMMP1.annot").exists() for h in SIDES)
        else "aparc.a2009s"
    )
    for h in SIDES:
        for name in ("pia", "wm"):  # .gii, but .npz for one participant of ds003020
            plain, packed = surfaces / f"{name}_{h}.gii", surfaces / f"{name}_{h}.npz"
            files[f"{h} {name}"] = packed if packed.exists() and not plain.exists() else plain
        files[f"{h} sphere"], files[f"{h} labels"] = (
            free / "surf" / f"{h}.sphere.reg",
            free / "label" / f"{h}.{atlas}.annot",
        )
    missing = [str(p) for p in files.values() if not p.exists()]
    if missing:
        raise FileNotFoundError(
            f"no way from {subject}'s voxels to fsaverage5: {len(missing)} of {len(files)} files missing, first {missing[0]}"
        )
    return files


def _points(path: Path) -> np.ndarray:
    """Vertices of a surface in pycortex' form, (n, 3)."""
    import nibabel

    if path.suffix == ".npz":
        return np.load(path)["pts"]
    return nibabel.load(path).agg_data("pointset")


def _build(files: dict[str, Path]) -> dict[str, np.ndarray]:
    import nibabel
    from scipy.sparse import vstack
    from sklearn.preprocessing import normalize

    mask = np.asarray(nibabel.load(files["mask"]).dataobj).T > 0  # (z, y, x)
    number = np.full(mask.shape, -1)  # of each voxel of the scan, as pycortex counts; -1 outside
    number[mask] = np.arange(mask.sum())
    # surface (x, y, z, 1) to voxel (i, j, k, 1)
    transform = np.array(json.loads(files["coord"].read_text())["coord"], float)
    rows, votes, seen, names = [], [], [], [""]
    for side, target in zip(SIDES, _spheres()):
        pia, white, sphere, codes, side_names = _surfaces(files, side)
        sampled = _sample(pia, white, number=number, transform=transform)
        rows.append(_register(sphere, target) @ sampled)
        votes.append(_count_labels(codes, sampled, n_labels=len(side_names)))
        seen.append(np.asarray(sampled.sum(0)).ravel())
        names += side_names
    matrix = normalize(vstack(rows).tocsr(), norm="l1")
    if not matrix.nnz:
        raise ValueError(
            f"{files['coord']}: no vertex falls into the mask; transform and surfaces of one "
            "participant are expected"
        )
    side = np.where(seen[0] + seen[1] > 0, seen[0] < seen[1], -1)
    votes = np.concatenate(votes)
    labels = np.array(names)[np.where(votes.any(0), votes.argmax(0) + 1, 0)]
    placed = np.diff(matrix.tocsc().indptr) > 0
    return {
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "shape": matrix.shape,
        "labels": labels,
        "side": side,
        "vertices": np.where(placed, np.asarray(matrix.argmax(0)).ravel(), -1),
    }


def _surfaces(files, side):
    """Of one hemisphere: pial and white points, registered sphere, label of each vertex, and the labels' names."""
    import nibabel

    pia = _points(files[f"{side} pia"])
    white = _points(files[f"{side} wm"])
    sphere, _ = nibabel.freesurfer.read_geometry(files[f"{side} sphere"])
    codes, _, encoded = nibabel.freesurfer.read_annot(files[f"{side} labels"])
    parts = {"pia": pia, "wm": white, "sphere.reg": sphere, "labels": codes}
    sizes = {name: len(part) for name, part in parts.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"{files[f'{side} pia'].parents[1].name} {side}: surfaces of different vertices {sizes}; "
            "one participant's files are expected"
        )
    names = [n.decode().removeprefix("L_").removeprefix("R_").removesuffix("_ROI") for n in encoded]
    return pia, white, sphere, codes, names


def _sample(pia, white, *, number, transform):
    """Sparse (n_vertices, n_voxels): how many of a vertex's points between white and pial surface lie in a voxel."""
    depth = np.linspace(0, 1, SAMPLES)[:, None, None]
    points = ((1 - depth) * white + depth * pia).reshape(-1, 3)
    place = np.floor(points @ transform[:3, :3].T + transform[:3, 3] + 0.5).astype(int)
    inside = ((place >= 0) & (place < number.shape[::-1])).all(1)  # (i, j, k) against (z, y, x)
    voxel = np.full(len(points), -1)
    i, j, k = place[inside].T
    voxel[inside] = number[k, j, i]
    vertex = np.tile(np.arange(len(pia)), SAMPLES)
    hit = voxel >= 0
    return _ones(vertex[hit], voxel[hit], shape=(len(pia), number.max() + 1))


def _register(sphere, target):
    """Sparse (N_VERTICES, n_vertices): each vertex goes to its nearest on fsaverage5; those that get none take their nearest."""
    from scipy.spatial import cKDTree

    sphere = _unit(sphere)
    nearest = cKDTree(target).query(sphere)[1]
    bare = np.setdiff1d(np.arange(N_VERTICES), nearest)
    own = np.append(np.arange(len(sphere)), cKDTree(sphere).query(target[bare])[1])
    return _ones(np.append(nearest, bare), own, shape=(N_VERTICES, len(sphere)))


def _count_labels(codes, sampled, *, n_labels):
    """(n_labels, n_voxels): how many points of a voxel have a label."""
    labelled = np.flatnonzero(codes >= 0)  # -1: no label, such as the medial wall
    one_hot = _ones(codes[labelled], labelled, shape=(n_labels, len(codes)))
    return (one_hot @ sampled).toarray()


def _ones(rows, columns, *, shape):
    from scipy.sparse import coo_matrix

    return coo_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()
