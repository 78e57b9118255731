"""One story of a data set: its sound, its words and phonemes, and the times of its response rows."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from .files import RATE, check_file, read_audio, read_textgrid
from .runtime import require
from .timing import DS003020, Clock, scan_trs, tr_centres

# volumes: of the 84 scans of ds003020, 82 are as long as the rule says and two one longer. Any sound that passes reaches
# beyond what the Lanczos kernel takes into the last row
SLACK = 1


class Story:
    """One story: its sound, its words and phonemes with times, and the TRs of its responses.

    Parameters
    ----------
    name : str
    audio_path : path
    grid_path : path
        Of a TextGrid; it need not exist.
    n_rows : callable, optional
        Called without arguments for the number of response rows; if left out, what ds003020's rule gives for the sound.
    clock : Clock, optional
        When those rows were recorded.
    volumes : int, optional
        Of the scan, where the data set states them; a sound that is too short for ds003020's scans is refused.
    prepare : callable, optional
        Called with "stimuli" or "textgrids" before such a file is read.

    Attributes
    ----------
    audio : array of shape (n_samples,), float32
        Mono, 16 kHz, as stored (not normalised).
    rate : int
        16000, in Hz.
    duration : float
        Seconds.
    words, phonemes : DataFrame
        Columns `start`, `end` (seconds after sound onset) and `text`; fillers such as ``sp`` are dropped.
    tr_times : array of shape (n_trs,)
        Centres of the response rows, seconds after sound onset: 11, 13, 15, ... in ds003020.
    """

    rate = RATE

    def __init__(
        self,
        name: str,
        audio_path: Path,
        *,
        grid_path: Path,
        n_rows: Callable[[], int] | None = None,
        clock: Clock = DS003020,
        volumes: int | None = None,
        prepare: Callable[[str], None] | None = None,
    ):
        self.name = name
        self.audio_path = Path(audio_path)
        self.grid_path = Path(grid_path)
        self.clock, self.volumes = clock, volumes
        self._n_rows = n_rows
        self._prepare = prepare or (lambda what: None)

    @cached_property
    def audio(self) -> np.ndarray:
        self._prepare("stimuli")
        return read_audio(self.audio_path)

    @cached_property
    def _tiers(self):
        self._prepare("textgrids")
        return read_textgrid(self.grid_path)

    @property
    def duration(self) -> float:
        if "audio" in self.__dict__:
            return len(self.audio) / self.rate
        import soundfile

        self._prepare("stimuli")
        check_file(self.audio_path, "a story's sound", smallest=100)
        return soundfile.info(self.audio_path).duration

    @property
    def words(self) -> pd.DataFrame:
        return self._tiers["words"]

    @property
    def phonemes(self) -> pd.DataFrame:
        return self._tiers["phonemes"]

    @property
    def n_rows(self) -> int:
        """Number of response rows; reads no sound where the data set states it."""
        if self._n_rows is None:
            return scan_trs(self.duration) - sum(self.clock.trimmed)
        return self._n_rows()

    @property
    def tr_times(self) -> np.ndarray:
        clock, duration = self.clock, self.duration
        require(
            clock != DS003020 or scan_trs(duration) >= (self.volumes or 0) - SLACK,
            f"story {self.name!r}, {self.audio_path}: {duration:.1f} s of sound, but the scan of {self.volumes} "
            f"volumes played about {clock.tr * (self.volumes or 0) - 20:g} s; cut? Fetch the file again",
        )
        times = tr_centres(self.n_rows, tr=clock.tr, first=clock.first)
        latest = duration + clock.tr / 2 + 1e-6
        require(
            all(times <= latest) and all(times >= -clock.tr),
            f"story {self.name!r}: {len(times)} response rows are centred at {clock.first:g} to "
            f"{clock.first + clock.tr * (len(times) - 1):g} s, but the sound lasts from 0 to {duration:.1f} s; expected rows within it at "
            f"a TR of {clock.tr:g} s: state RepetitionTime and FirstRowTime (s) in "
            "dataset_description.json, or cut the rows",
        )
        return times

    def __repr__(self):
        words = f"{len(self.words)} words" if self.grid_path.exists() else "no TextGrid"
        return f"Story({self.name!r}, {self.duration:.1f} s, {words}, {self.n_rows} TRs)"
