"""Made-up trees in the layout of ds003020, with its oddities and none of its data; a made-up anatomy; a server that misbehaves."""

import hashlib
import http.server
import json
import threading
import time
from urllib.parse import unquote

import h5py
import nibabel
import numpy as np
import soundfile
from nibabel.freesurfer import write_annot, write_geometry
from scipy.ndimage import binary_dilation

from fireside.topography import REGIONS

STORIES = {  # name: seconds of sound
    "souls": 61.3,
    "naked": 60.0,
    "sloth": 64.0,
    "buck": 62.0,
    "eyespy": 60.7,
    "life": 60.0,
    "stagefright": 63.0,
    "fromboyhoodtofatherhood": 60.0,
    "wheretheressmoke": 66.0,
}
HALF = ("sloth",)  # wavs of one channel
LATER = "wheretheressmoke"  # whose scan is one volume longer than the rule says
LACKS = {"UTS04": "life", "UTS09": "fromboyhoodtofatherhood"}
SHAPE = (17, 24, 19)  # (z, y, x), so that a mix-up of axes shows
LABELS = {  # Destrieux names of the simulated subjects' regions
    "auditory_core": "G_temp_sup-G_T_transv",
    "auditory_belt": "G_temp_sup-Plan_tempo",
    "superior_temporal": "G_temp_sup-Lateral",
    "temporal": "G_temporal_middle",
    "angular": "G_pariet_inf-Angular",
    "inferior_frontal": "G_front_inf-Triangul",
    "middle_frontal": "G_front_middle",
    "precuneus": "G_precuneus",
    "visual": "S_calcarine",
}


def grid(seconds, rng):
    """A TextGrid with the phone tier first and the field's filler tokens among words and phones."""
    edges = np.arange(0, seconds, 0.4)
    words = [
        (
            a,
            "sp"
            if i == 0
            else str(
                rng.choice(["river", "the", "house", "{BR}", "ns", "sentence_start", "walked"])
            ),
        )
        for i, a in enumerate(edges)
    ]
    phones = [
        (a + d, str(rng.choice(["AH0", "S", "T", "IY1", "sp", "ns", "lg"])))
        for a in edges
        for d in (0, 0.2)
        if a + d < seconds
    ]
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "0",
        str(seconds),
        "<exists>",
        "2",
    ]
    for name, marks in (("one", phones), ("two", words)):  # the order tells them, not their names
        ends = [a for a, _ in marks[1:]] + [seconds]
        lines += ['"IntervalTier"', f'"{name}"', "0", str(seconds), str(len(marks))]
        for (a, text), b in zip(marks, ends):
            lines += [
                f"{a:.3f}" if a else "0",
                f"{b:.3f}" if b != seconds else str(seconds),
                f'"{text}"',
            ]
    return "\n".join(lines) + "\n"


def make_tree(root, subjects=("UTS03",), voxels=40, stories=STORIES, anatomy=False, seed=0):
    """Sound, words and responses; each voxel follows the loudness of the sound 4 s later, some are broken."""
    rng = np.random.default_rng(seed)
    base, counts, loud = root / "derivative", {}, {}
    for folder in (root / "stimuli", base / "TextGrids"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, seconds in stories.items():
        knots = np.arange(0, seconds + 2, 2)
        slow = np.interp(np.arange(0, seconds, 1 / 44100), knots, rng.uniform(0.05, 1, len(knots)))
        sound = 0.3 * slow * rng.standard_normal(len(slow))
        both = sound if name in HALF else np.stack([sound, 0.5 * sound], 1)
        soundfile.write(root / f"stimuli/{name}.wav", both.clip(-1, 1), 44100, subtype="PCM_16")
        (base / f"TextGrids/{name}.TextGrid").write_text(grid(seconds, rng))
        counts[name] = int((seconds + 20) // 2) + (name == LATER)
        loud[name] = np.interp(
            11 + 2 * np.arange(counts[name] - 20) - 4, np.arange(len(slow)) / 44100, slow
        )
    (base / "respdict.json").write_text(json.dumps(counts))
    (base / "subject_xfms.json").write_text(
        json.dumps(
            {s: f"{s}_auto" if s != "UTS02" else "own_name" for s in subjects if s != "UTS09"}
        )
    )
    for subject in subjects:
        n = (
            make_anatomy(root, subject, free=subject != "UTS09", packed=subject == "UTS02")
            if anatomy
            else voxels
        )
        gain = rng.uniform(0.3, 1.5, n)
        for name in stories:
            if LACKS.get(subject) != name:
                write_story(
                    base / f"preprocessed_data/{subject}/{name}.hf5",
                    subject,
                    name,
                    loud[name],
                    gain,
                    rng,
                )
    return root


def zscored(x):
    return (x - x.mean(-2, keepdims=True)) / x.std(-2, keepdims=True)


def write_story(path, subject, name, drive, gain, rng):
    """float64, contiguous; the test story with five or ten repeats and their plain mean, which UTS01 lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    n_repeats = (
        (10 if subject in ("UTS01", "UTS02", "UTS03") else 5) if name == "wheretheressmoke" else 1
    )
    signal = zscored(drive[:, None]) * gain
    repeats = zscored(signal + rng.standard_normal((n_repeats, *signal.shape)))
    data = repeats.mean(0) if subject != "UTS01" else zscored(repeats[0])
    if name == "souls":
        data[:, 5], data[3, 7] = np.nan, np.nan
    if name == "naked":
        data = 7 + 3 * data  # not z-scored
    if subject == "UTS02" and n_repeats > 1:
        data = zscored(data)  # the mean, scaled again
    with h5py.File(path, "w") as file:
        file["data"] = data.astype("f8")
        if n_repeats > 1:
            file["individual_repeats"] = repeats.astype("f8")


# ------------------------------------------------------------------ anatomy
def make_anatomy(root, subject, free=True, packed=False, order=None, size=9.0):
    """fsaverage5 itself as a subject, in a slanted scan of 9 mm voxels; how many voxels its mask holds."""
    from nilearn.datasets import load_fsaverage

    mesh, base = load_fsaverage("fsaverage5"), root / "derivative"
    transform = "own_name" if subject == "UTS02" else f"{subject}_auto"
    cortex, surf, label = (
        base / "pycortex-db" / subject,
        base / f"freesurfer_subjdir/{subject}/surf",
        base / f"freesurfer_subjdir/{subject}/label",
    )
    folders = [
        cortex / "surfaces",
        cortex / f"transforms/{transform}",
        *([surf, label] if free else []),
    ]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    turn, slant = np.radians(8), np.eye(4)
    slant[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    coord = np.diag([1 / size, 1 / size, 1 / size, 1]) @ slant
    coord[:3, 3] = np.array(SHAPE[::-1]) / 2 + [0.2, 1.6, -1.9]
    (cortex / f"transforms/{transform}/matrices.xfm").write_text(
        json.dumps({"coord": coord.tolist(), "magnet": np.eye(4).tolist()})
    )
    mask = np.zeros(SHAPE[::-1], np.uint8)  # as nibabel holds it: (x, y, z)
    for side, h, sign in (("left", "lh", 1), ("right", "rh", -1)):
        order_here = np.arange(10242) if order is None else order
        faces = np.argsort(order_here)[mesh["pial"].parts[side].faces]
        points = {
            k: mesh[n].parts[side].coordinates[order_here]
            for k, n in (("pia", "pial"), ("wm", "white_matter"), ("sphere", "sphere"))
        }
        for part in (0, 0.5, 1):
            middle = part * points["pia"] + (1 - part) * points["wm"]
            i, j, k = np.rint(middle @ coord[:3, :3].T + coord[:3, 3]).astype(int).T
            ok = (i < SHAPE[2]) & (j < SHAPE[1]) & (k < SHAPE[0]) & (i >= 0) & (j >= 0) & (k >= 0)
            mask[i[ok], j[ok], k[ok]] = 1
        for name in ("pia", "wm"):
            if packed:
                np.savez(cortex / f"surfaces/{name}_{h}.npz", pts=points[name], polys=faces)
                continue
            arrays = [
                nibabel.gifti.GiftiDataArray(
                    points[name].astype("f4"), intent="NIFTI_INTENT_POINTSET"
                ),
                nibabel.gifti.GiftiDataArray(faces.astype("i4"), intent="NIFTI_INTENT_TRIANGLE"),
            ]
            nibabel.save(
                nibabel.gifti.GiftiImage(darrays=arrays), cortex / f"surfaces/{name}_{h}.gii"
            )
        if free:
            write_geometry(
                surf / f"{h}.sphere.reg",
                100 * points["sphere"] / np.linalg.norm(points["sphere"], axis=1, keepdims=True),
                faces,
            )
            names = [
                "Unknown",
                *LABELS.values(),
            ]  # its colour is 0, which nibabel reads as no label
            table = np.c_[
                np.arange(len(names))[:, None] * [20, 7, 3], np.zeros((len(names), 2), int)
            ]
            write_annot(
                label / f"{h}.aparc.a2009s.annot",
                parcel(points["pia"], sign),
                table,
                names,
                fill_ctab=True,
            )
    mask = binary_dilation(mask).astype(np.uint8)  # thicker than cortex, as the real one is
    image = nibabel.Nifti1Image(mask, np.linalg.inv(coord) * 1.0)
    nibabel.save(image, cortex / f"transforms/{transform}/mask_thick.nii.gz")
    return int(mask.sum())


def parcel(points, sign):
    """Label of each vertex: that of the nearest region's centre within 30 mm."""
    centres = np.array([np.multiply(r[0], (sign, 1, 1)) for r in REGIONS.values()])
    far = np.linalg.norm(points[:, None] - centres, axis=2)
    own = np.array([list(LABELS).index(r[4]) + 1 for r in REGIONS.values()])
    return np.where(far.min(1) < 30, own[far.argmin(1)], 0)


# ------------------------------------------------------------------ a server
def manifest_of(root, path):
    """Paths, sizes and MD5s of a tree, as the package ships them of the real one."""
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith("."))
    rows = [
        f"{p.relative_to(root)},{p.stat().st_size},{hashlib.md5(p.read_bytes()).hexdigest()}"
        for p in files
    ]
    path.write_text("path,bytes,md5\n" + "\n".join(rows) + "\n")
    return path


class Server:
    """Serves a folder with ranges, as the bucket does; `faults` says what goes wrong the next times a path is asked for."""

    def __init__(self, root):
        self.root, self.faults, self.log, self.slow = root, {}, [], 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, body):
                path = unquote(self.path).lstrip("/")
                faults = outer.faults.get(path.removeprefix("moved/"), [])
                fault = faults.pop(0) if body and faults else None
                outer.log.append((self.command, path, self.headers.get("Range"), fault))
                file = outer.root / path.removeprefix("moved/")
                if not file.is_file():
                    return self.whole(404, b"no such key")
                content, start, status = file.read_bytes(), 0, 200
                if fault in ("503", "429") or (fault == "416" and self.headers.get("Range")):
                    return self.whole(int(fault), b"slow down")
                if fault == "html":
                    return self.whole(200, b"<!DOCTYPE html><html>please log in</html>")
                if fault == "pointer":
                    return self.whole(200, b"/annex/objects/MD5E-s1--0.wav")
                if fault == "redirect":
                    self.send_response(302)
                    self.send_header("Location", f"/moved/{path}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                if fault == "corrupt":
                    content = (
                        content[: len(content) // 2] + b"!!" + content[len(content) // 2 + 2 :]
                    )
                if self.headers.get("Range") and fault != "norange":
                    start, status = (
                        int(self.headers["Range"].removeprefix("bytes=").split("-")[0]),
                        206,
                    )
                part = content[start:]
                self.send_response(status)
                self.send_header(
                    "Content-Length", str(len(part) if fault != "truncate" else len(part) // 2)
                )
                self.end_headers()
                if body and fault == "trickle":
                    for a in range(40):
                        self.wfile.write(part[a : a + 1])
                        time.sleep(0.1)
                    return self.connection.close()
                if body and fault == "stall":
                    self.wfile.write(part[:100])
                    self.wfile.flush()
                    return time.sleep(7)  # longer than the client waits
                if body and fault in ("truncate", "close"):
                    self.wfile.write(part[: len(part) // 2])
                    return self.connection.close() if fault == "close" else None
                for a in range(0, len(part) if body else 0, 1 << 16):
                    self.wfile.write(part[a : a + (1 << 16)])
                    time.sleep(outer.slow)

            def whole(self, status, body):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.httpd = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}"
        threading.Thread(target=self.httpd.serve_forever, daemon=True).start()
