"""Write arrays as a tree that the notebooks read: `python tools/own_tree.py FOLDER` (here with made-up arrays)."""

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import soundfile
from scipy.stats import zscore

TR, RATE, SECONDS, VOXELS = 1.5, 16_000, 60, 30


def write_tree(root, sounds, responses):
    """Sounds {story: (n_samples,)}; responses {subject: {story: (n_trs, n_voxels)}}, row i centred at (i + 1/2) TR."""
    description = {"Name": root.name, "RepetitionTime": TR, "FirstRowTime": TR / 2}
    (root / "stimuli").mkdir(parents=True)
    (root / "dataset_description.json").write_text(json.dumps(description))
    for story, sound in sounds.items():
        if np.issubdtype(sound.dtype, np.floating) and not np.abs(sound).max() <= 1:
            raise ValueError(
                f"{story}: sound beyond -1 to 1, or NaN; divide it by its largest number"
            )
        soundfile.write(root / f"stimuli/{story}.wav", sound, RATE)
    for subject, runs in responses.items():
        folder = root / "derivative" / "preprocessed_data" / subject
        folder.mkdir(parents=True)
        for story, data in runs.items():
            with h5py.File(folder / f"{story}.hf5", "w") as file:
                file["data"] = zscore(data)  # per voxel, over the story


if __name__ == "__main__":  # each voxel follows the loudness of the sound 4.5 s before, with noise
    rng = np.random.default_rng(0)
    sounds, runs = {}, {}
    for i in range(8):
        loudness = rng.uniform(0.05, 1, int(SECONDS / TR))  # one value per TR
        noise = rng.standard_normal(SECONDS * RATE)
        sounds[f"story{i}"] = 0.1 * np.repeat(loudness, int(TR * RATE)) * noise
        signal = 3 * np.roll(loudness, 3)[:, None] * rng.uniform(0.5, 1, VOXELS)
        runs[f"story{i}"] = signal + rng.standard_normal((len(loudness), VOXELS))
    write_tree(Path(sys.argv[1]), sounds, {"S1": runs})
