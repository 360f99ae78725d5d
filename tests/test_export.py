"""The exported file answers as the detector does, in every engine that is installed, and in an environment without PyTorch."""
import configparser
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bare import Bare
from PIL import Image

from mudenet import export as ex
from mudenet.architecture import MuDeNet
from mudenet.config import Config, override
from mudenet.core import TrainingError, digest, rng
from mudenet.data import load_images, open_category
from mudenet.inference import Detector, calibrate
from mudenet.runtime import Detector as Exported
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent
BOTTLE = ROOT.parent / "shared" / "data" / "mvtec_bottle"
SMALL = {"data.image_size": 64, "model.channels": 16, "model.width": 16, "inference.smoothing": 1.0}
NEEDS = dict(onnx=("onnx", "onnxscript", "onnxruntime"), openvino=("onnx", "onnxscript", "openvino"))
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16")


def need(to):
    if gone := [n for n in NEEDS[to] if find_spec(n) is None]:
        pytest.skip(f"{', '.join(gone)} not installed: pip install -e '.[export,openvino]'")


def made(root, **fields):
    """A detector with random networks, calibrated on the nominal images of a category."""
    config = override(Config(), {**SMALL, **fields})
    detector = Detector(MuDeNet(config.model, 64, seed=3), config, dict(category=root.name)).to("cpu")
    category = open_category(root)
    calibrate(detector, load_images(category.validation, 64, interpolation=config.data.interpolation))
    return detector


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    return write_product_line(folder / "line", size=96, train=8, validation=6, good=4, structural=5, logical=5)


@pytest.fixture(scope="module")
def detector(line):
    return made(line)


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    """Every format that can be written here."""
    folder = tmp_path_factory.mktemp("exported")
    return {to: (folder / f"part{ex.SUFFIX[to]}", ex.export_detector(detector, folder / f"part{ex.SUFFIX[to]}", to))
            for to in NEEDS if all(find_spec(n) for n in NEEDS[to])}


@pytest.fixture(scope="module")
def pictures(line, tmp_path_factory):
    """A hundred files: several sizes and every mode, made from the product line and, where it is at hand, from bottle."""
    folder, g = tmp_path_factory.mktemp("pictures"), rng(0, "pictures")
    sources = sorted((line / "test").rglob("*.png"))
    sources += sorted((BOTTLE / "test").rglob("*.png"))[:14] if BOTTLE.is_dir() else []
    for k in range(100):
        w, h = ((96, 96), (64, 64), (200, 40), (40, 200), (333, 517))[k % 5] if k < 60 else g.integers(1, 400, 2).tolist()
        mode = MODES[k % len(MODES)]
        image = Image.open(sources[k % len(sources)]).convert("RGB").resize((w, h))
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        image.save(folder / f"{k:03d}.{'tif' if mode == 'CMYK' else 'png'}")
    return folder


@pytest.mark.parametrize("to", NEEDS)
def test_a_hundred_images(to, detector, files, pictures):
    need(to)
    ours, theirs = detector.predict(pictures), Exported.load(files[to][0], threads=1).predict(pictures)
    assert len(ours) == 100 and [p.name for p in ours] == [p.name for p in theirs]
    assert 5 < sum(p.label for p in ours) < 95  # both answers occur
    for a, b in zip(ours, theirs):
        assert type(a) is type(b) and a.map.shape == b.map.shape and a.map.dtype == b.map.dtype
        assert np.abs(a.map - b.map).max() <= 1e-4 * np.ptp(a.map), a.name
        assert np.abs(a.parts - b.parts).max() <= 1e-4 * np.ptp(a.parts), a.name
        assert abs(a.score - b.score) <= 1e-5 * abs(a.score), a.name
        assert (a.label, a.threshold) == (b.label, b.threshold)


@pytest.mark.parametrize("fields", [
    {"inference.normalization": "robust", "inference.clamp": "zero", "inference.image_score": "top_mean"},
    {"inference.upsampling": "bicubic", "inference.smoothing": 0.0, "model.padding": "reflect", "data.interpolation": "nearest"},
    {"data.interpolation": "bicubic", "model.stem_pool": "max", "model.autoencoder_norm": "batch",
     "inference.upsampling": "nearest"},
    {"data.interpolation": "box", "model.block": "pre", "model.autoencoder_size": "figure"}])
def test_other_readings_of_the_paper(fields, line, tmp_path):
    need("onnx")
    found = ex.export_detector(made(line, **fields), tmp_path / "a.onnx", category=open_category(line))
    assert found["images"] == 8 + 14 and not found["faults"]


@pytest.mark.parametrize("to", NEEDS)
def test_a_batch_is_its_images(to, files):
    need(to)
    run = Exported.load(files[to][0], threads=1).run
    batch = rng(0, "batch").integers(0, 256, (3, 70, 50, 3)).astype(np.uint8)
    together, alone = run(batch), [run(one[None]) for one in batch]
    for name, value in together.items():
        np.testing.assert_allclose(value, np.concatenate([a[name] for a in alone]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("to", NEEDS)
def test_what_a_file_says(to, detector, files):
    need(to)
    path, found = files[to]
    meta = Exported.load(path).meta
    assert meta["detector"] == digest(detector.state_dict()) and meta["opset"] == ex.OPSET
    assert meta["threshold"] == float(detector.threshold) and meta["config"]["data"]["image_size"] == 64
    assert meta["checked"] == found and meta["about"] == detector.about
    assert {"mudenet", "torch", "Pillow", "onnx"} <= set(meta["versions"])
    for file in (path, path.with_suffix(".bin")):
        assert not file.exists() or str(ROOT).encode() not in file.read_bytes()


def test_the_same_detector_gives_the_same_bytes(detector, files, tmp_path):
    need("onnx")
    ex.export_detector(detector, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == files["onnx"][0].read_bytes()


def test_batchnorm_is_folded(files):
    need("onnx")
    import onnx

    kinds = {n.op_type for n in onnx.load(files["onnx"][0]).graph.node}
    assert "Conv" in kinds and "BatchNormalization" not in kinds


def test_openvino_reads_the_onnx_file_too(detector, files, pictures):
    need("onnx"), need("openvino")
    one = pictures / "003.png"
    ours, theirs = detector.predict(one), Exported.load(files["onnx"][0], "openvino").predict(one)
    assert abs(ours[0].score - theirs[0].score) <= 1e-5 * abs(ours[0].score)


def test_a_file_that_disagrees_is_refused(detector, tmp_path, monkeypatch):
    need("onnx")
    exact = ex._product
    monkeypatch.setattr(ex, "_product", lambda w, x: (exact(w, x) + 1).clamp(0, 255))  # one grey level brighter
    with pytest.raises(TrainingError, match=r"was not written.*map \d.*--force"):
        ex.export_detector(detector, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    found = ex.export_detector(detector, tmp_path / "a.onnx", force=True)
    assert found["faults"] and Exported.load(tmp_path / "a.onnx").meta["checked"]["faults"] == found["faults"]


# ---------------------------------------------------------------- without PyTorch


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    need("onnx")
    return Bare(tmp_path_factory.mktemp("bare"))


def test_the_wheel_holds_what_it_names(bare):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert sorted(p.stem for p in (bare.site / "mudenet").glob("*.py")) == sorted(ini["DEFAULT"]["runtime_modules"].split())


def test_predicts_without_torch(bare, detector, files, pictures):
    code = """
import json, sys
from mudenet.runtime import Detector, Prediction
try: import torch
except ImportError as e: said = str(e)
found = Detector.load(sys.argv[1], threads=1).predict(sys.argv[2])
assert all(type(p) is Prediction for p in found)
print(json.dumps([said, [(p.name, p.score, p.label, p.loudest(), p.map.shape) for p in found]]))
"""
    r = bare("-c", code, files["onnx"][0], pictures)
    assert r.returncode == 0, r.stderr
    said, found = json.loads(r.stdout)
    assert said == "No module named 'torch'"
    for p, (name, score, label, loudest, shape) in zip(detector.predict(pictures), found, strict=True):
        assert (p.name, p.label, p.loudest(), p.map.shape) == (name, label, tuple(loudest), tuple(shape))
        assert abs(p.score - score) <= 1e-5 * abs(p.score)


def test_importing_costs_little_more_than_numpy(bare):
    def cost(what):
        timed = f"import time; t = time.process_time(); {what}; print(time.process_time() - t)"
        return min(float(bare("-c", timed).stdout) for _ in range(3))

    assert cost("import mudenet.runtime") < 2.5 * cost("import numpy, PIL.Image")


def test_a_run_needs_the_full_package(bare):
    r = bare("-c", "from mudenet.runtime import open_detector; open_detector('runs/folder/x')")
    assert "mudenet export runs/folder/x --to onnx" in r.stderr and "CheckpointError" in r.stderr


def test_the_full_package_has_the_same_prediction():
    from mudenet import images, inference, runtime

    assert inference.Prediction is runtime.Prediction is images.Prediction
