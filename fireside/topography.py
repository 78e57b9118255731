"""Where the simulated subjects' regions lie on fsaverage5, and smooth random fields over their cortex."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from brainlib.cortex import with_unions
from brainlib.surface import N_VERTICES, medial_wall

N_HEMI = 2562  # fsaverage5's first vertices of a hemisphere are those of its parent mesh, evenly spread over it

# name: left MNI coordinate (the right one is its mirror image), reach in mm, strength, levels' shares, region
# of interest. Sources: G Glasser et al. 2016 (centres of A1, 45, PGi), V Vigneau et al. 2006 (peaks of clusters),
# A Andrews-Hanna et al. 2010 (default network), P Power et al. 2011. Which level drives which region is *chosen here*,
# after the order of levels reported by de Heer et al. 2017 and Lerner et al. 2011.
REGIONS = {
    "A1 (G)": ((-44, -25, 11), 15, 1.0, (1.0, 0.0, 0.0, 0.0), "auditory_core"),
    "belt, around A1 (G)": ((-54, -22, 8), 15, 0.9, (0.7, 0.3, 0.0, 0.0), "auditory_belt"),
    "T1a (V)": ((-56, -13, -5), 18, 0.9, (0.0, 1.0, 0.0, 0.0), "superior_temporal"),
    "T1p (V)": ((-55, -48, 15), 18, 0.9, (0.0, 0.9, 0.1, 0.0), "superior_temporal"),
    "T2ml (V)": ((-59, -37, 1), 17, 0.9, (0.0, 0.0, 1.0, 0.0), "temporal"),
    "LTC (A)": ((-60, -24, -18), 18, 0.8, (0.0, 0.0, 1.0, 0.0), "temporal"),
    "Pole (V)": ((-41, 3, -24), 18, 0.7, (0.0, 0.0, 1.0, 0.0), "temporal"),
    "PGi (G)": ((-45, -60, 22), 20, 0.9, (0.0, 0.0, 0.7, 0.3), "angular"),
    "45 (G)": ((-49, 28, 1), 18, 0.8, (0.0, 0.0, 0.8, 0.2), "inferior_frontal"),
    "F3opd (V)": ((-44, 21, 24), 17, 0.7, (0.0, 0.3, 0.7, 0.0), "inferior_frontal"),
    "F2p (V)": ((-37, 10, 48), 20, 0.8, (0.0, 0.0, 0.6, 0.4), "middle_frontal"),
    "PCC (A)": ((-8, -56, 26), 24, 0.9, (0.0, 0.0, 0.0, 1.0), "precuneus"),
    "calcarine (P)": ((-8, -81, 7), 26, 0.0, (0.0, 0.0, 0.0, 0.0), "visual"),
}
# Strength of the right hemisphere beyond auditory cortex: language is left-lateralised.
RIGHT = 0.75
# Spread over subjects of a region's centre along each axis, and of the log of its reach.
SHIFT_MM = 4.0
SCALE = 0.15


@lru_cache(maxsize=1)
def _hemispheres():
    """Of each hemisphere: vertices that are voxels, their places (mm), the graph of distances along the cortex, all vertices' places."""
    from nilearn.datasets import load_fsaverage
    from scipy.sparse import csr_matrix

    mesh = load_fsaverage("fsaverage5")
    hemispheres = []
    for side in ("left", "right"):
        keep = np.flatnonzero(~medial_wall()[side][:N_HEMI])
        middle = (
            mesh["pial"].parts[side].coordinates + mesh["white_matter"].parts[side].coordinates
        ) / 2
        edges = mesh["pial"].parts[side].faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        length = np.linalg.norm(middle[edges[:, 0]] - middle[edges[:, 1]], axis=1)
        graph = csr_matrix((length, edges.T), shape=(len(middle),) * 2)
        sphere = mesh["sphere"].parts[side].coordinates[keep]
        hemispheres.append((keep, sphere, graph.maximum(graph.T), middle))
    return hemispheres


@lru_cache(maxsize=1)
def vertices():
    """fsaverage5 vertex of each voxel (n_voxels,), and how many of them are on the left."""
    left, right = (h[0] for h in _hemispheres())
    return np.concatenate([left, right + N_VERTICES]), len(left)


@lru_cache(maxsize=1)
def _smoothers():
    """Sparse matrix of each hemisphere that smooths along the cortex by about 10 mm full width at half maximum."""
    from scipy.sparse import csr_matrix

    smoothers = []
    for _, sphere, _, _ in _hemispheres():
        sphere = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
        angle = np.arccos(np.clip(sphere @ sphere.T, -1, 1))
        kernel = np.exp(-0.5 * (angle * 100 / 4.5) ** 2).astype(np.float32)
        kernel[kernel < 1e-3] = 0.0
        smoothers.append(csr_matrix(kernel / np.linalg.norm(kernel, axis=1, keepdims=True)))
    return smoothers


def region_distances(rng) -> np.ndarray:
    """Distance along the cortex from each region's centre, in units of its reach: (n_regions, n_voxels).

    `rng` moves the centres and scales the regions, as anatomy differs between subjects.
    """
    from scipy.sparse.csgraph import dijkstra

    distances = []
    for sign, (keep, _, graph, middle) in zip((1, -1), _hemispheres()):
        centres = np.array([r[0] for r in REGIONS.values()]) * (sign, 1, 1)
        centres = centres + SHIFT_MM * rng.standard_normal(centres.shape)
        nearest = [np.linalg.norm(middle - centre, axis=1).argmin() for centre in centres]
        reach = np.array([r[1] for r in REGIONS.values()])
        reach = reach * np.exp(SCALE * rng.standard_normal(len(reach)))
        distances.append(dijkstra(graph, indices=nearest)[:, keep] / reach[:, None])
    return np.concatenate(distances, axis=1).astype(np.float32)


def field(rng, n: int, *, passes: int = 1) -> np.ndarray:
    """`n` random fields of unit variance over the voxels, smooth along the cortex: (n, n_voxels)."""
    fields = []
    for smoother in _smoothers():
        one = rng.standard_normal((smoother.shape[0], n), dtype=np.float32)
        for _ in range(passes):
            one = smoother @ one
        fields.append(one.T)
    both = np.concatenate(fields, axis=1)
    return both / both.std(1, keepdims=True)


def nearest_region(distances) -> np.ndarray:
    """Index of each voxel's nearest region in units of its reach, -1 where none is near: (n_voxels,)."""
    return np.where(distances.min(0) < 1.25, distances.argmin(0), -1)


def rois(distances) -> dict[str, np.ndarray]:
    """Regions of a subject as masks: within reach of a centre and nearest to it; unions by the field's names."""
    nearest, n_left = nearest_region(distances), vertices()[1]
    names = [r[4] for r in REGIONS.values()]
    masks = {
        roi: np.isin(nearest, [i for i, n in enumerate(names) if n == roi])
        for roi in dict.fromkeys(names)
    }
    masks = with_unions(masks)
    left = np.arange(len(nearest)) < n_left
    return masks | {"left_hemisphere": left, "right_hemisphere": ~left}
