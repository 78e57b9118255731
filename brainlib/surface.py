"""Voxels to fsaverage5, and pictures of the cortex that say by themselves when they show simulated data."""

from functools import lru_cache

import numpy as np

from .runtime import require

N_VERTICES = 10_242  # of one hemisphere of fsaverage5 (Fischl et al. 1999)


@lru_cache(maxsize=1)
def medial_wall() -> dict[str, np.ndarray]:
    """Where fsaverage5 is no cortex, by hemisphere, (10242,) booleans: cortex thinner than 1 mm."""
    from nilearn.datasets import load_fsaverage_data

    thickness = load_fsaverage_data(mesh="fsaverage5", data_type="thickness").data.parts
    return {side: values <= 1.0 for side, values in thickness.items()}


@lru_cache(maxsize=1)
def _meshes():
    from nilearn.datasets import load_fsaverage, load_fsaverage_data
    from nilearn.surface import SurfaceImage

    mesh = load_fsaverage("fsaverage5")
    sulci = load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts
    return mesh, SurfaceImage(mesh["inflated"], sulci)


def to_fsaverage5(ds, subject: str, values) -> np.ndarray:
    """Values of a subject's voxels as values of all fsaverage5 vertices.

    Parameters
    ----------
    ds : Dataset
        See `Dataset.fsaverage5`.
    subject : str
    values : array of shape (n_voxels,)
        Numbers or booleans. A vertex takes the mean of its voxels, weighted by their share of it; NaN does not count.

    Returns
    -------
    filled : array of shape (20484,)
        Left hemisphere first; NaN where no voxel lies, and on the medial wall (cortex thinner than 1 mm). Simulated
        voxels are some of the vertices: others take the value of the nearest that has one (on the sphere).
    """
    matrix, values = ds.fsaverage5(subject), np.asarray(values, float)
    require(
        values.shape == (matrix.shape[1],),
        f"{values.shape} values but {matrix.shape[1]} voxels of {subject}: expected one value per voxel",
    )
    finite = np.isfinite(values)
    weight = matrix @ finite.astype(float)
    with np.errstate(invalid="ignore"):
        filled = np.where(weight > 0, matrix @ np.where(finite, values, 0) / weight, np.nan)
    return np.where(np.concatenate(list(medial_wall().values())), np.nan, filled)


def label(ds, text: str = "") -> str:
    """A figure's title, with the data set and, if it is, the word *simulated*."""
    source = f"{ds.name}, simulated" if ds.simulated else ds.name
    return f"{text} ({source})" if text else source


def _on_vertices(ds, subject, values) -> np.ndarray:
    values = np.asarray(values, float)
    return values if values.shape == (2 * N_VERTICES,) else to_fsaverage5(ds, subject, values)


def _image(values):
    from nilearn.surface import SurfaceImage

    mesh = _meshes()[0]["inflated"]
    return SurfaceImage(mesh, {"left": values[:N_VERTICES], "right": values[N_VERTICES:]})


def plot_cortex(
    ds,
    subject: str,
    values,
    *,
    title: str = "",
    unit: str = "",
    cmap: str = "viridis",
    vmin=None,
    vmax=None,
    axes=None,
):
    """Four views of the inflated cortex, two by two: left and right, lateral above medial.

    Parameters
    ----------
    values : array of shape (n_voxels,) or (20484,)
        NaN shows the bare cortex.
    unit : str
        Label of the colour bar.
    axes : array of four 3-D axes, optional

    Returns
    -------
    axes : array of four axes
        Their figure is ``axes[0].figure``.
    """
    import matplotlib.pyplot as plt
    from nilearn.plotting import plot_surf_stat_map

    values = _on_vertices(ds, subject, values)
    finite = values[np.isfinite(values)]
    if vmin is None:
        vmin = finite.min(initial=0.0)
    if vmax is None:
        vmax = max(finite.max(), vmin + 1e-6) if len(finite) else 1.0
    axes = _four_axes() if axes is None else np.ravel(axes)
    views = [(side, view) for view in ("lateral", "medial") for side in ("left", "right")]
    for ax, (side, view) in zip(axes, views):
        plot_surf_stat_map(
            stat_map=_image(values),
            hemi=side,
            view=view,
            bg_map=_meshes()[1],
            bg_on_data=False,
            cmap=cmap,
            vmin=vmin,
            vmax=vmax,
            colorbar=False,
            axes=ax,
            figure=ax.figure,
            engine="matplotlib",
        )
        ax.set_box_aspect(None, zoom=1.4)
        ax.set_title(f"{side}, {view}", fontsize=13, y=0.9)
    scale = plt.cm.ScalarMappable(plt.Normalize(vmin, vmax), cmap)
    bar = ax.figure.colorbar(scale, ax=list(axes), shrink=0.6, pad=0.02)
    bar.set_label(unit, fontsize=13)
    bar.ax.tick_params(labelsize=12)
    ax.figure.suptitle(label(ds, title or subject), fontsize=14, wrap=True)
    return axes


def _four_axes():
    import matplotlib.pyplot as plt

    margins = {"wspace": 0, "hspace": 0, "left": 0, "right": 0.95, "top": 0.88, "bottom": 0}
    options = {"figsize": (7.5, 6.2), "subplot_kw": {"projection": "3d"}, "gridspec_kw": margins}
    return plt.subplots(2, 2, **options)[1].ravel()


def view_cortex(
    ds, subject: str, values, *, title: str = "", cmap: str = "viridis", vmin=None, vmax=None
):
    """The cortex to turn around in a browser (both hemispheres, self-contained HTML): nilearn's view object."""
    from nilearn.plotting import view_surf

    view = view_surf(
        surf_mesh=_meshes()[0]["inflated"],
        surf_map=_image(_on_vertices(ds, subject, values)),
        bg_map=_meshes()[1],
        hemi="both",
        cmap=cmap,
        symmetric_cmap=False,
        vmin=vmin,
        vmax=vmax,
        title=label(ds, title or subject),
        title_fontsize=10,  # what a page has room for
        colorbar_fontsize=14,
        colorbar_height=0.6,
    )
    view.resize(640, 480)  # the frame in a page; a wider one is mostly blank
    return view
