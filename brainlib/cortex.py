"""From the voxels of a scan to fsaverage5 and to named regions, by the listener's own anatomy."""

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
    """How one listener's voxels lie on fsaverage5 and in regions; computed once (seconds), then kept in the cache folder.

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
    in. A vertex of the listener then goes to the nearest vertex of fsaverage5 on the registered sphere; fsaverage5 vertices
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
    """Where a listener's anatomy lies."""
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
        for name in ("pia", "wm"):  # .gii, but .npz for one listener of ds003020
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
    from scipy.sparse import coo_matrix, vstack
    from scipy.spatial import cKDTree
    from sklearn.preprocessing import normalize

    mask = np.asarray(nibabel.load(files["mask"]).dataobj).T > 0  # (z, y, x)
    number = np.full(mask.shape, -1)
    number[mask] = np.arange(mask.sum())
    coord = np.array(
        json.loads(files["coord"].read_text())["coord"], float
    )  # surface (x, y, z, 1) to voxel (i, j, k, 1)
    rows, votes, seen, names = [], [], [], [""]
    for h, target in zip(SIDES, _spheres()):
        pia, white = _points(files[f"{h} pia"]), _points(files[f"{h} wm"])
        sphere, _ = nibabel.freesurfer.read_geometry(files[f"{h} sphere"])
        codes, _, these = nibabel.freesurfer.read_annot(files[f"{h} labels"])
        if not len(pia) == len(white) == len(sphere) == len(codes):
            sizes = {
                n: len(x)
                for n, x in (("pia", pia), ("wm", white), ("sphere.reg", sphere), ("labels", codes))
            }
            raise ValueError(
                f"{files[f'{h} pia'].parents[1].name} {h}: surfaces of different vertices {sizes}; one listener's files are expected"
            )
        depth = np.linspace(0, 1, SAMPLES)[:, None, None]
        points = ((1 - depth) * white + depth * pia).reshape(-1, 3)
        i, j, k = np.floor(points @ coord[:3, :3].T + coord[:3, 3] + 0.5).astype(int).T
        inside = (
            (i >= 0)
            & (j >= 0)
            & (k >= 0)
            & (k < mask.shape[0])
            & (j < mask.shape[1])
            & (i < mask.shape[2])
        )
        voxel = np.full(len(points), -1)
        voxel[inside] = number[k[inside], j[inside], i[inside]]
        vertex, hit = np.tile(np.arange(len(pia)), SAMPLES), voxel >= 0
        sampled = coo_matrix(
            (np.ones(hit.sum()), (vertex[hit], voxel[hit])), shape=(len(pia), mask.sum())
        ).tocsr()
        to, own = cKDTree(target).query(_unit(sphere))[1], np.arange(len(pia))
        bare = np.setdiff1d(np.arange(N_VERTICES), to)
        to, own = np.append(to, bare), np.append(own, cKDTree(_unit(sphere)).query(target[bare])[1])
        rows.append(
            coo_matrix((np.ones(len(to)), (to, own)), shape=(N_VERTICES, len(pia))).tocsr()
            @ sampled
        )
        plain = [
            n.decode().removeprefix("L_").removeprefix("R_").removesuffix("_ROI") for n in these
        ]
        names += plain
        named = np.flatnonzero(codes >= 0)  # -1: no label, such as the medial wall
        one_hot = coo_matrix(
            (np.ones(len(named)), (codes[named], named)), shape=(len(plain), len(pia))
        ).tocsr()
        votes.append((one_hot @ sampled).toarray())
        seen.append(np.asarray(sampled.sum(0)).ravel())
    matrix = normalize(vstack(rows).tocsr(), norm="l1")
    if not matrix.nnz:
        raise ValueError(
            f"{files['coord']}: no vertex falls into the mask; transform and surfaces of one listener are expected"
        )
    side, votes = np.where(seen[0] + seen[1] > 0, seen[0] < seen[1], -1), np.concatenate(votes)
    labels = np.array(names)[np.where(votes.any(0), votes.argmax(0) + 1, 0)]
    vertices = np.where(
        np.diff(matrix.tocsc().indptr) > 0, np.asarray(matrix.argmax(0)).ravel(), -1
    )
    parts = {
        "data": matrix.data,
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "shape": matrix.shape,
    }
    return parts | {"labels": labels, "side": side, "vertices": vertices}
