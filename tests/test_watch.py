"""`mudenet watch` without PyTorch, killed many times while a camera writes: each file is in the results
exactly once.
"""

import csv
import json
import signal
import sys
import threading
import time
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
from bare import Bare
from PIL import Image

from mudenet import export as ex
from mudenet.architecture import MuDeNet
from mudenet.config import Config, override
from mudenet.core import rng
from mudenet.inference import Detector, calibrate

pytestmark = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))) or sys.platform == "win32",
    reason="needs pip install -e '.[export]', and signals as Unix has them",
)
KILLS = 15  # with --slow: 50; three files for each


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return Bare(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """An exported detector with tiny random networks."""
    import torch

    config = override(
        Config(), {"data.image_size": 64, "model.channels": 4, "model.width": 4, "inference.smoothing": 1.0}
    )
    detector = Detector(MuDeNet(config.model, 64), config).to("cpu")
    calibrate(detector, torch.from_numpy(np.stack([picture(k).transpose(2, 0, 1) for k in range(6)])))
    file = tmp_path_factory.mktemp("part") / "part.onnx"
    ex.export_detector(detector, file)
    return file, detector


def picture(k):
    """A smooth picture of 64×64; every third has a bright spot."""
    small = Image.fromarray(rng(0, "picture", k).integers(90, 130, (4, 4, 3)).astype(np.uint8))
    pixels = np.array(small.resize((64, 64), Image.Resampling.BICUBIC))
    if k % 3 == 2:
        pixels[20:30, 20:30] = 255
    return pixels


def camera(folder, count):
    """Write files in two halves with a pause between them, the last of them never to the end."""
    for k in range(count):
        file = folder / f"{k:03d}.png"
        Image.fromarray(picture(k)).save(folder.parent / "whole.png")
        whole = (folder.parent / "whole.png").read_bytes()
        with file.open("wb") as f:
            f.write(whole[: len(whole) // 2])
            f.flush()
            time.sleep(0.03)
            if k < count - 1:
                f.write(whole[len(whole) // 2 :])
        time.sleep(0.15)


def wait_for(what, seconds):
    """Until it is so, or the time is over."""
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.005)


def test_killed_many_times(bare, part, tmp_path, pytestconfig):
    kills = 50 if pytestconfig.getoption("--slow") else KILLS
    count = 3 * kills
    file, detector = part
    folder, g = tmp_path / "in", rng(0, "kills")
    folder.mkdir()
    argv = [
        "watch",
        file,
        folder,
        "--out",
        tmp_path / "out",
        "--accepted",
        tmp_path / "ok",
        "--rejected",
        folder / "bad",
        "--settle",
        "0.05",
        "--patience",
        "1",
        "--threads",
        "1",
    ]
    writer = threading.Thread(target=camera, args=(folder, count))
    writer.start()
    grown, journal = [0], tmp_path / "out" / "results.jsonl"

    def noted():
        return len(journal.read_bytes().splitlines()) if journal.exists() else 0

    def enough(wanted):
        return noted() >= wanted

    for k in range(kills):
        with (tmp_path / "said").open("w") as said, bare.start(*argv, stdout=said, stderr=said) as process:
            if k % 4:  # every fourth is killed while it starts, the others after some lines or none
                wait_for(lambda: "watching" in (tmp_path / "said").read_text(), 60)
                wait_for(partial(enough, grown[-1] + int(g.integers(0, 5))), 3)
            time.sleep(float(g.uniform(0, 0.1 if k % 4 else 0.5)))
            assert process.poll() is None, (tmp_path / "said").read_text()
            process.send_signal(signal.SIGKILL)
        grown.append(noted())
    writer.join()
    r = bare(*argv, "--once")
    assert (
        r.returncode == 0 and "given up" in r.stderr + (tmp_path / "said").read_text() or grown[-1] == count
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    # every file, and none twice
    assert sorted(d["image"] for d in lines) == [f"{k:03d}.png" for k in range(count)]
    assert len(set(grown)) > kills // 4  # it was killed in the middle of its work, not before it or after it
    (torn,) = (d for d in lines if d["error"])
    assert torn["image"] == f"{count - 1:03d}.png" and torn["image"] in torn["error"]
    want = {f"{k:03d}.png": p for k, p in enumerate(detector.predict([picture(k) for k in range(count - 1)]))}
    for d in lines:
        if d["error"] is None:
            p = want[d["image"]]
            assert abs(d["score"] - p.score) <= 1e-5 * abs(p.score) and d["anomalous"] == p.label
    with (tmp_path / "out" / "results.csv").open(newline="") as f:
        assert [(row["image"], row["error"] != "") for row in csv.DictReader(f)] == [
            (d["image"], bool(d["error"])) for d in lines
        ]
    moved = {
        name: {f.name for f in to.glob("*.png")}
        for name, to in (("ok", tmp_path / "ok"), ("bad", folder / "bad"))
    }
    assert moved["ok"] == {n for n, p in want.items() if not p.label} and moved["bad"] == {
        n for n, p in want.items() if p.label
    }
    assert moved["ok"] and moved["bad"] and [f.name for f in folder.glob("*.png")] == [torn["image"]]


def test_interrupted_by_hand(bare, part, tmp_path):
    """SIGTERM is the ordinary way to end it: exit code 0, and a count."""
    (tmp_path / "in").mkdir()
    Image.fromarray(picture(0)).save(tmp_path / "in" / "a.png")
    argv = ["watch", part[0], tmp_path / "in", "--out", tmp_path / "out", "--settle", "0.05"]
    with (tmp_path / "said").open("w") as said, bare.start(*argv, stdout=said) as process:
        for _ in range(200):
            time.sleep(0.05)
            if "a.png" in (tmp_path / "said").read_text():
                break
        twin = bare(*argv, timeout=60)
        process.terminate()
        assert process.wait(20) == 0
    assert twin.returncode == 2 and "another run uses" in twin.stderr and "process" in twin.stderr
    assert "1 fine; 0 ANOMALOUS; 0 unreadable" in (tmp_path / "said").read_text()
