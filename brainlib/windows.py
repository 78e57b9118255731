"""Which stretches of a story a speech model hears, and which of their frames are kept."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from .families import RATE
from .runtime import require

DEFAULT_WINDOW, DEFAULT_HOP = 8.0, 4.0  # seconds
EXACT_WINDOW, EXACT_HOP = 16.1, 0.1  # seconds; Vaidya, Jain and Huth 2022


@dataclass(frozen=True)
class Window:
    """A stretch of a story.

    Attributes
    ----------
    start, n_samples : int
        Of the sound.
    first_frame, end_frame : int
        Frames to keep, of those that this window gives; `end_frame` is not kept.
    row : int
        Number of `first_frame` among all frames that the story's windows give.
    padding : int
        Samples of silence after the sound.
    frames_per_row : int
        So many frames are averaged to one row of the story's features.
    """

    start: int
    n_samples: int
    first_frame: int
    end_frame: int
    row: int
    padding: int = 0
    frames_per_row: int = 1

    @property
    def rows(self) -> np.ndarray:
        """The row of the story's features to which each frame that is kept belongs: (n_kept,)."""
        return (self.row + np.arange(self.end_frame - self.first_frame)) // self.frames_per_row

    @property
    def clip_samples(self) -> int:
        """Length of what the model hears: sound and silence."""
        return self.n_samples + self.padding

    def clip(self, audio):
        """The sound of this window, (clip_samples,)."""
        return np.pad(audio[self.start : self.start + self.n_samples], (0, self.padding))


def by_length(windows) -> dict[int, list[Window]]:
    """{clip_samples: windows}: what can be computed in one batch."""
    groups = defaultdict(list)
    for window in windows:
        groups[window.clip_samples].append(window)
    return groups


def plan_windows(family, n_samples: int, *, window, hop, exact=False, pool=None) -> tuple:
    """Part a story into windows (see `SpeechEncoder.features` for the settings).

    Parameters
    ----------
    family : object of `families`
        Its frames' geometry.
    n_samples : int
        Of the story, at 16 kHz.
    window, hop, pool : float
        Seconds.
    exact : bool
        A window ends every hop and gives one frame.

    Returns
    -------
    windows : list of Window
    times : array of shape (n_rows,)
        Of the rows of features that they give, in seconds after sound onset.

    Raises
    ------
    ValueError
        If the hop exceeds the window, or the window what the model has positions for.
    """
    shortest = family.field / RATE if exact else 0
    also = f", hop >= {shortest:g}" if exact else ""
    require(
        0 < hop <= window and hop >= shortest,
        f"hop {hop} s and window {window} s; expected 0 < hop <= window{also}",
    )
    longest = family.longest or np.inf
    require(
        window * RATE <= longest,
        f"window {window} s; {family.name} has positions for {longest / RATE:g} s",
    )
    if exact:
        return _one_frame_per_window(family, n_samples, window, hop)
    return _frames_of_each_hop(family, n_samples, window, hop, pool)


def _one_frame_per_window(family, n_samples, window, hop):
    n_windows = int(n_samples / RATE / hop + 1e-6)
    ends = [int(round(k * hop * RATE)) for k in range(1, n_windows + 1)]
    windows = []
    for row, end in enumerate(ends):
        start = max(end - int(round(window * RATE)), 0)
        padding, frame = family.exact_window(end - start)
        windows.append(Window(start, end - start, frame, frame + 1, row, padding))
    return windows, np.array(ends) / RATE


def _frames_of_each_hop(family, n_samples, window, hop, pool):
    n_frames = family.n_frames(n_samples)
    hop_frames, window_frames = (
        max(int(round(seconds * family.frame_rate)), 1) for seconds in (hop, window)
    )
    frames_per_row = max(int(round((pool or 0) * family.frame_rate)), 1)
    windows = []
    for first in range(0, n_frames, hop_frames):
        end = min(first + hop_frames, n_frames)
        start = max(end - window_frames, 0)
        place = (start * family.stride, family.n_samples(end - start), first - start, end - start)
        windows.append(Window(*place, first, frames_per_row=frames_per_row))
    whole_rows = np.arange(n_frames // frames_per_row * frames_per_row)
    centres = whole_rows * family.stride + family.first_centre
    times = centres.reshape(-1, frames_per_row).mean(1) / RATE
    return windows, times
