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
    "LTC (A)": ((-60, -24, -18), 18, 0.8, (0.0, 0.0, 0.9, 0.1), "temporal"),
    "Pole (V)": ((-41, 3, -24), 18, 0.7, (0.0, 0.0, 0.8, 0.2), "temporal"),
    "PGi (G)": ((-45, -60, 22), 20, 0.9, (0.0, 0.0, 0.4, 0.6), "angular"),
    "45 (G)": ((-49, 28, 1), 18, 0.8, (0.0, 0.0, 0.8, 0.2), "inferior_frontal"),
    "F3opd (V)": ((-44, 21, 24), 17, 0.7, (0.0, 0.3, 0.7, 0.0), "inferior_frontal"),
    "F2p (V)": ((-37, 10, 48), 20, 0.8, (0.0, 0.0, 0.3, 0.7), "middle_frontal"),
    "PCC (A)": ((-8, -56, 26), 24, 0.9, (0.0, 0.0, 0.0, 1.0), "precuneus"),
    "calcarine (P)": ((-8, -81, 7), 26, 0.0, (0.0, 0.0, 0.0, 0.0), "visual"),
}
RIGHT = (
    0.75  # strength of the right hemisphere beyond auditory cortex: language is left-lateralised
)


@lru_cache(maxsize=1)
def cortex():
    """Vertices of both hemispheres, smoothing matrix of each, distance of every vertex from every region's centre."""
    from nilearn.datasets import load_fsaverage
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import dijkstra

    mesh = load_fsaverage("fsaverage5")
    vertices, smoothers, distances = [], [], []
    for side, sign in (("left", 1), ("right", -1)):
        keep = np.flatnonzero(~medial_wall()[side][:N_HEMI])
        middle = (
            mesh["pial"].parts[side].coordinates + mesh["white_matter"].parts[side].coordinates
        ) / 2
        edges = mesh["pial"].parts[side].faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
        length = np.linalg.norm(middle[edges[:, 0]] - middle[edges[:, 1]], axis=1)
        graph = csr_matrix((length, edges.T), shape=(len(middle),) * 2)
        graph = graph.maximum(graph.T)
        centres = [
            np.linalg.norm(middle - np.multiply(r[0], (sign, 1, 1)), axis=1).argmin()
            for r in REGIONS.values()
        ]
        distances.append(dijkstra(graph, indices=centres)[:, keep])
        sphere = mesh["sphere"].parts[side].coordinates[keep]
        sphere = sphere / np.linalg.norm(sphere, axis=1, keepdims=True)
        angle = np.arccos(np.clip(sphere @ sphere.T, -1, 1))
        # about 10 mm full width at half maximum
        kernel = np.exp(-0.5 * (angle * 100 / 4.5) ** 2).astype(np.float32)
        smoothers.append(kernel / np.linalg.norm(kernel, axis=1, keepdims=True))
        vertices.append(keep + (0 if side == "left" else N_VERTICES))
    return (
        np.concatenate(vertices),
        smoothers,
        np.concatenate(distances, axis=1).astype(np.float32),
        len(vertices[0]),
    )


def field(rng, n: int, *, passes: int = 1) -> np.ndarray:
    """`n` random fields of unit variance over the voxels, smooth along the cortex: (n, n_voxels)."""
    fields = []
    for smoother in cortex()[1]:
        one = rng.standard_normal((n, len(smoother)), dtype=np.float32)
        for _ in range(passes):
            one = one @ smoother.T
        fields.append(one)
    both = np.concatenate(fields, axis=1)
    return both / both.std(1, keepdims=True)


def nearest_region() -> np.ndarray:
    """Index of each voxel's nearest region in units of its reach, -1 where none is near."""
    scaled = cortex()[2] / np.array([r[1] for r in REGIONS.values()])[:, None]
    return np.where(scaled.min(0) < 1.25, scaled.argmin(0), -1)


def rois() -> dict[str, np.ndarray]:
    """Regions as masks: within `reach` of a centre and nearest to it; unions by the field's names."""
    nearest, n_left = nearest_region(), cortex()[3]
    names = [r[4] for r in REGIONS.values()]
    masks = {
        roi: np.isin(nearest, [i for i, n in enumerate(names) if n == roi])
        for roi in dict.fromkeys(names)
    }
    masks = with_unions(masks)
    left = np.arange(len(nearest)) < n_left
    return masks | {"left_hemisphere": left, "right_hemisphere": ~left}
