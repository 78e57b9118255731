"""Arrays for a tree of your own (see own_tree.py) from MATLAB, NIfTI, volumes in MNI space, and tables of words."""

import h5py
import numpy as np
import scipy.io
from nilearn import datasets, maskers, surface
from praatio import textgrid


def from_matlab(path, name):
    """A matrix that MATLAB shows as TRs x voxels: (n_trs, n_voxels), whatever version of the file."""
    if not h5py.is_hdf5(path):
        return np.atleast_2d(scipy.io.loadmat(path)[name])
    with h5py.File(path) as file:  # saved with -v7.3: the dimensions come in reverse order
        return file[name][()].T


def from_nifti(bold, mask, n_start=0, n_end=0):
    """One scan in any space: (n_trs, n_voxels) within the mask, less volumes at its start and end.

    The same mask for all scans of a subject keeps voxels in one order. A region is a mask, too: `in_region`.
    """
    rows = maskers.NiftiMasker(mask_img=mask, standardize=None).fit().transform(bold)
    return _within(np.atleast_2d(rows), n_start, n_end)  # an image without time is one row


def in_region(region, mask):
    """Which voxels of the mask lie in a region, an image on the same grid: (n_voxels,), boolean."""
    return from_nifti(region, mask)[0] > 0.5


def from_mni(bold, n_start=0, n_end=0):
    """One scan in MNI space on fsaverage5: (n_trs, 20484), left hemisphere first; `vertices` is ``np.arange(20484)``."""
    brain = datasets.load_fsaverage("fsaverage5")
    halves = [surface.vol_to_surf(bold, brain["pial"].parts[side]) for side in ("left", "right")]
    rows = np.atleast_2d(np.nan_to_num(np.concatenate(halves).T))
    return _within(rows, n_start, n_end)


def _within(rows, n_start, n_end):
    if n_start < 0 or n_end < 0 or n_start + n_end >= len(rows):
        raise ValueError(f"{n_start} and {n_end} of {len(rows)} volumes cannot be cut off")
    return rows[n_start : len(rows) - n_end]


def write_textgrid(path, words, phones, end):
    """Words and phones as [(start, end, label), ...] in seconds, without overlap, of a story that ends at `end`."""
    grid = textgrid.Textgrid()
    for name, entries in (("phone", phones), ("word", words)):
        for start, stop, label in entries:
            if not 0 <= start < stop <= end:
                raise ValueError(f"{label}: {start} to {stop} s in a story from 0 to {end} s")
        grid.addTier(textgrid.IntervalTier(name, entries, minT=0, maxT=end))
    grid.save(path, format="long_textgrid", includeBlankSpaces=True)
