"""Make `wavlm-pico`, the embedded speech model: a slim WavLM distilled from Whisper's encoder on synthetic speech.

    python tools/train_pico.py speak  --text PROSE --work WORK [--part 0/2]   # public-domain prose read by many voices
    python tools/train_pico.py teach  --work WORK                             # hidden states of Whisper tiny.en's encoder
    python tools/train_pico.py train  --work WORK --minutes 60                # resumable; writes the model, card and curve

Needs the extra ``[speech]`` and Kokoro's voice packs (see make_fireside.py). `speak` and `teach` skip what is there;
`train` goes on from the last checkpoint. Nothing here is needed to use the model.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from pathlib import Path

import numpy as np
from make_fireside import MODEL_RATE, RATE, Speaker
from whisper_weights import whisper_model

OUT = Path(__file__).resolve().parents[1] / "brainlib" / "assets" / "wavlm-pico"
CLIP_S = 30
# minutes a voice: the four fireside voices get most, four others keep the model from knowing only those
VOICES = {
    "am_michael": 16,
    "bf_emma": 9,
    "bm_george": 9,
    "af_heart": 1,
    "am_fenrir": 3,
    "bf_isabella": 3,
    "af_bella": 3,
    "bm_fable": 3,
}
HIBARI_MINUTES = 150  # a light model of the voice af_heart, thirty times faster


# ------------------------------------------------------------------ speech
def sentences(folder: Path) -> list[str]:
    """Sentences of 30 to 260 characters from every .txt of `folder`, in a seeded order."""
    text = "\n".join(
        p.read_text(encoding="utf-8", errors="ignore") for p in sorted(folder.glob("*.txt"))
    )
    text = text.translate(str.maketrans("“”‘’", "\"\"''")).replace("_", "").replace("--", ", ")
    found = re.findall(r"[A-Z\"'][^.!?\n]*(?:\n[^.!?\n]+)*[.!?]", re.sub(r"[ \t]+", " ", text))
    found = [" ".join(s.split()) for s in found]
    found = sorted(
        {
            s
            for s in found
            if 30 <= len(s) <= 260 and not re.search(r"[^A-Za-z ,.!?;:'\"-]|[A-Z]{3}", s)
        }
    )
    return [found[i] for i in np.random.default_rng(0).permutation(len(found))]


def hibari_speaker():
    """-> function: sentence to (n,) audio at 24 kHz, hibari's bundled voice."""
    from hibari import Hibari

    voice = Hibari()
    return lambda text: np.asarray(voice(text, seed=0), np.float32).ravel()


def speak(text: Path, work: Path, voices: Path, part: str):
    """Write 30-s clips, `<voice>-<i>.npy` float16 16 kHz, sentence after sentence; a clip that is there is not made again."""
    from scipy.signal import resample_poly

    pool, (mine, of) = sentences(text), map(int, part.split("/"))
    speaker = Speaker(voices)
    for number, (voice, minutes) in enumerate({**VOICES, "hibari": HIBARI_MINUTES}.items()):
        say = hibari_speaker() if voice == "hibari" else None
        for clip in range(minutes * 60 // CLIP_S):
            target = work / "clips" / f"{voice}-{clip:03d}.npy"
            cursor = (number * 3_001 + clip * 14) % len(pool)
            if clip % of != mine or target.exists():
                continue
            wave, at = [], cursor
            while sum(map(len, wave)) < CLIP_S * MODEL_RATE:
                sentence = pool[at % len(pool)]
                at += 1
                if say:
                    wave.append(say(sentence))
                else:
                    wave += [
                        speaker.sentence(symbols, voice)[0]
                        for symbols in speaker.front.phonemize(sentence)
                    ]
                wave.append(np.zeros(MODEL_RATE // 8, np.float32))
            audio = resample_poly(np.concatenate(wave)[: CLIP_S * MODEL_RATE], RATE, MODEL_RATE)
            target.parent.mkdir(parents=True, exist_ok=True)
            np.save(
                target.with_suffix(".part.npy"),
                (0.6 * audio / np.abs(audio).max()).astype(np.float16),
            )
            target.with_suffix(".part.npy").rename(target)
        print(voice, "done", flush=True)


# ------------------------------------------------------------------ teacher
TEACHER_LAYERS, STUDENT_LAYERS = (2, 3, 4), (2, 4, 6)
SPEEDS = {"hibari": (0.84, 0.92, 1.0, 1.09, 1.19)}  # resampling by these makes other voices of one


def teach(work: Path):
    """Teacher's layers of every clip, each frame normalised, float16, with the audio: `taught/<clip>.npz`."""
    import torch
    from scipy.signal import resample
    from transformers import WhisperFeatureExtractor

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    encoder, extract = whisper_model().encoder, WhisperFeatureExtractor(feature_size=80)
    for number, path in enumerate(sorted((work / "clips").glob("*-[0-9][0-9][0-9].npy"))):
        target = work / "taught" / f"{path.stem}.npz"
        if target.exists():
            continue
        audio = np.load(path).astype(np.float32)
        speed = SPEEDS.get(path.name.split("-")[0], (1.0, 0.93, 1.0, 1.07))
        audio = resample(audio, int(len(audio) / speed[number % len(speed)]))
        audio = np.pad(audio, (0, max(CLIP_S * RATE - len(audio), 0)))[: CLIP_S * RATE]
        with torch.inference_mode():
            hidden = encoder(
                extract(audio, sampling_rate=RATE, return_tensors="pt").input_features,
                output_hidden_states=True,
            ).hidden_states
        states = torch.stack(
            [
                torch.nn.functional.layer_norm(hidden[i][0], hidden[i].shape[-1:])
                for i in TEACHER_LAYERS
            ]
        )
        target.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            target.with_suffix(".part.npz"),
            audio=audio.astype(np.float16),
            states=states.numpy().astype(np.float16),
        )
        target.with_suffix(".part.npz").rename(target)
    print(len(list((work / "taught").glob("*.npz"))), "clips taught")


# ------------------------------------------------------------------ student
def student():
    from transformers import WavLMConfig, WavLMModel

    none = dict.fromkeys(
        (
            "layerdrop",
            "hidden_dropout",
            "attention_dropout",
            "activation_dropout",
            "feat_proj_dropout",
        ),
        0.0,
    )
    return WavLMModel(
        WavLMConfig(
            hidden_size=192,
            num_hidden_layers=6,
            num_attention_heads=6,
            intermediate_size=768,
            conv_dim=(32, 48, 64, 96, 96, 96, 96),
            num_conv_pos_embeddings=64,
            num_conv_pos_embedding_groups=8,
            apply_spec_augment=False,
            **none,
        )
    )


class Distillation:
    """Clips with the teacher's states, the student with a linear head per layer, and the optimiser; what a checkpoint holds."""

    def __init__(self, work: Path, crop_s: int):
        import torch

        files = sorted(f for f in (work / "taught").glob("*.npz") if ".part" not in f.name)
        clips = [np.load(f, allow_pickle=False) for f in files]
        self.crop_s = crop_s
        self.audio = torch.from_numpy(np.stack([c["audio"] for c in clips]))
        self.taught = torch.from_numpy(np.stack([c["states"] for c in clips]))  # (n, 3, 1500, 384)
        states = self.taught.float()
        self.mean = states.mean((0, 2), keepdim=True)[0]
        self.scale = states.std((0, 2), keepdim=True)[0]
        unseen = torch.arange(len(clips)) % 25 == 0
        self.fit = torch.nonzero(~unseen).flatten()
        self.unseen = torch.nonzero(unseen).flatten()
        self.model = student()
        width, target = self.model.config.hidden_size, self.taught.shape[-1]
        self.heads = torch.nn.ModuleList([torch.nn.Linear(width, target) for _ in TEACHER_LAYERS])
        self.parameters = [*self.model.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1.2e-3, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.curve, self.step, self.spent = [], 0, 0.0
        self.checkpoint = work / "checkpoint.pt"

    def loss(self, chosen, *, jitter: float):
        """Squared error of the teacher's normalised states over a random crop of each clip."""
        import torch

        offset = torch.randint(0, (CLIP_S - self.crop_s) * 50, (len(chosen),))
        crops = [
            self.audio[i, o * 320 : o * 320 + self.crop_s * RATE] for i, o in zip(chosen, offset)
        ]
        x = torch.stack(crops).float()
        x = (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-5)
        x = x + jitter * torch.rand(len(x), 1) * 0.05 * torch.randn_like(x)
        hidden = self.model(x, output_hidden_states=True).hidden_states
        n = hidden[0].shape[1]
        total = 0
        for j, (layer, head) in enumerate(zip(STUDENT_LAYERS, self.heads)):
            states = torch.stack([self.taught[i, j, o : o + n] for i, o in zip(chosen, offset)])
            target = (states.float() - self.mean[j]) / self.scale[j]
            total = total + torch.nn.functional.mse_loss(head(hidden[layer]), target)
        return total / len(self.heads)

    def unseen_loss(self) -> float:
        import torch

        batches = self.unseen.split(6)
        with torch.no_grad():
            return float(np.mean([float(self.loss(batch, jitter=0.0)) for batch in batches]))

    def save(self):
        import torch

        state = {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "curve": self.curve,
            "step": self.step,
            "spent": self.spent,
            "rng": torch.get_rng_state(),
        }
        part = self.checkpoint.with_suffix(".part")
        torch.save(state, part)
        part.rename(self.checkpoint)

    def restore(self):
        import torch

        state = torch.load(self.checkpoint, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.curve, self.step, self.spent = state["curve"], state["step"], state["spent"]
        torch.set_rng_state(state["rng"])


def train(work: Path, minutes: float, seed: int = 0, crop_s: int = 6, batch: int = 6):
    """Distil: normalised teacher layers 2, 3, 4 from student layers 2, 4, 6; a checkpoint every 200 steps."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    run = Distillation(work, crop_s)
    if run.checkpoint.exists():
        run.restore()
    run.model.train()
    started = time.time() - run.spent
    losses = []
    while (time.time() - started) < minutes * 60:
        run.spent = time.time() - started
        done = run.spent / (minutes * 60)
        for group in run.optimizer.param_groups:
            group["lr"] = 1.2e-3 * min(1, (run.step + 1) / 200) * max(0.02, 1 - done)
        chosen = run.fit[torch.randint(0, len(run.fit), (batch,))]
        loss = run.loss(chosen, jitter=1.0)
        run.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(run.parameters, 1.0)
        run.optimizer.step()
        run.step += 1
        losses.append(float(loss.detach()))
        if run.step % 200 == 0:
            row = {"step": run.step, "minutes": round(run.spent / 60, 1)}
            row |= {"train": round(float(np.mean(losses)), 4)}
            row |= {"held_out": round(run.unseen_loss(), 4)}
            run.curve.append(row)
            losses = []
            print(row, flush=True)
            run.save()
            export(run.model, run.curve, len(run.audio), minutes)
    export(run.model, run.curve, len(run.audio), minutes)


CARD = """---
license: mit
tags: [speech, wavlm, distillation]
---
# wavlm-pico

A WavLM of 3.1 M parameters (slim convolutional front 32-48-64-96-96-96-96, width 192, 6 layers) for the book
"From stories to brain-tuned speech models". Half-precision safetensors in Hugging Face format; transformers 5 opens them so, unless told a `dtype`.

- **Teacher**: hidden layers 2, 3 and 4 of the encoder of Whisper tiny.en (OpenAI, MIT licence; Radford et al. 2023), each
  frame normalised, predicted from layers 2, 4 and 6 by a linear map that is thrown away. Loss: mean squared error.
- **Data**: {hours} hours of synthetic English speech: public-domain prose (Grimm, Carroll, Doyle) read by {voices} voices of
  Kokoro-82M and hibari (Apache-2.0), the four voices of fireside among them; resampled copies make more. No fireside story.
- **Compute**: {step} steps of six 6-s crops, AdamW, {minutes} minutes of wall time on two shared CPU cores. Held-out loss
  at the end: {held_out} (1 is the variance of the targets). The curve is in `training.json`.
- **How it does** on a simulated subject of *fireside*, layer by layer, and in reading phonemes: below, and in `evaluation.json`.
- **Made by** `tools/train_pico.py`, seeded; resumable.
- **Licence**: MIT, as its teacher.

```python
import torch
from transformers import AutoFeatureExtractor, AutoModel

extract = AutoFeatureExtractor.from_pretrained("wavlm-pico")  # this folder; sound: mono, 16 kHz
inputs = extract(sound, sampling_rate=16_000, return_tensors="pt")
model = AutoModel.from_pretrained("wavlm-pico", dtype=torch.float32)
states = model(**inputs).last_hidden_state

model = AutoModel.from_pretrained("wavlm-pico", dtype=torch.float16)  # or bfloat16
states = model(**inputs.to(model.dtype)).last_hidden_state  # the extractor gives float32
```

**What it is not.** A research toy, not a product: it was made so that a book can be built without a download. It is not self-supervised
(its targets come from a model trained on transcripts), it has heard only synthetic voices, and what it scores says
nothing about WavLM, wav2vec 2.0 or Whisper.

<!-- evaluation -->
<!-- end of evaluation -->
"""


def export(model, curve, n_clips, minutes):
    """The folder that ships: config, half-precision safetensors, preprocessor, training log and model card."""
    import copy

    from transformers import Wav2Vec2FeatureExtractor

    copy.deepcopy(model).half().save_pretrained(OUT)
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(OUT)
    log = {
        "hours_of_speech": round(n_clips * CLIP_S / 3600, 2),
        "planned_minutes_on_two_cores": minutes,
        "curve": curve,
    }
    (OUT / "training.json").write_text(json.dumps(log, indent=1))
    (OUT / "README.md").write_text(
        CARD.format(
            hours=log["hours_of_speech"],
            voices=len(VOICES) + 1,
            **curve[-1] if curve else {"step": 0, "minutes": 0, "held_out": 1},
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["speak", "teach", "train"])
    parser.add_argument("--text", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--voices", type=Path, default=os.environ.get("KOKORO_VOICES"))
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--minutes", type=float, default=60)
    given = parser.parse_args()
    if given.step == "speak":
        speak(given.text, given.work, given.voices, given.part)
    elif given.step == "teach":
        teach(given.work)
    else:
        train(given.work, given.minutes)
