"""Images of more than 8 bits: white comes from the training images, and every way to a score knows it."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mudenet.cli import main
from mudenet.config import Config, override
from mudenet.core import rng
from mudenet.job import open_job
from mudenet.images import read_image
from mudenet.inference import Detector

BITS = 4095


def save_part(path, seed, most=BITS):
    "A smooth grey picture of 12 bits in a file of 16."
    small = rng(seed, "part").integers(0, 256, (6, 6)).astype(np.uint8)
    grey = np.asarray(Image.fromarray(small).resize((80, 72), Image.Resampling.BICUBIC))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grey.astype(np.int64) * most // 255).astype(np.uint16)).save(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A detector of a 12-bit camera, at its start."
    root = tmp_path_factory.mktemp("camera")
    for k in range(6):
        save_part(root / f"parts/train/good/{k}.png", k)
    for k in range(2):
        save_part(root / f"parts/test/good/{k}.png", 10 + k)
    command = ["train", "--root", str(root / "parts"), "--out", str(root / "runs"), "--preset", "fast"]
    assert main([*command, "--data.image_size", "64", "--train.steps", "0"]) == 0
    (found,) = (root / "runs/folder/parts").iterdir()
    return found


def test_training_finds_white(run):
    assert Detector.load(run).config.data.white == BITS


def test_a_file_and_its_8_bits_have_one_score(run):
    detector, file = Detector.load(run), run.parents[2].parent / "parts/test/good/0.png"
    pixels = read_image(file, BITS)
    assert pixels.max() > 200  # 12 bits of 16 would be at most 16
    assert detector.predict(file)[0].score == detector.predict(pixels)[0].score


def test_the_camera_may_be_told(run):
    parts = run.parents[2].parent / "parts"
    job = open_job(override(Config(), {"dataset": "folder", "root": str(parts), "data.white": 8191}))
    assert job.config.data.white == 8191
    found = open_job(override(Config(), {"dataset": "folder", "root": str(parts)}))
    assert found.config.data.white == BITS
    assert job.folder != found.folder  # other pixels, another run


def test_an_exported_detector_knows_it(run, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from mudenet.runtime import Detector as Exported

    file = run.parents[2].parent / "parts/test/good/1.png"
    assert main(["export", str(run), "--to", "onnx", "--out", str(tmp_path / "part.onnx")]) == 0
    exported = Exported.load(tmp_path / "part.onnx")
    assert exported.white == BITS
    assert exported.predict(file)[0].score == pytest.approx(
        Detector.load(run).predict(file)[0].score, rel=1e-4
    )


def test_a_teacher_that_changed_is_said(run, tmp_path, capsys):
    from mudenet.teachers import find_teacher

    teacher, out = tmp_path / "own.safetensors", tmp_path / "runs"
    shutil.copyfile(find_teacher("small"), teacher)
    parts = run.parents[2].parent / "parts"
    command = [
        "train",
        "--root",
        str(parts),
        "--out",
        str(out),
        "--preset",
        "fast",
        "--teacher",
        str(teacher),
    ]
    assert main([*command, "--data.image_size", "64", "--train.steps", "0"]) == 0
    (found,) = (out / "folder/parts").iterdir()
    assert main(["evaluate", str(found)]) == 0
    assert "has changed" not in capsys.readouterr().out
    shutil.copyfile(find_teacher("general"), teacher)
    assert main(["evaluate", str(found)]) == 0
    assert f"{teacher} has changed since this run was trained" in capsys.readouterr().out
