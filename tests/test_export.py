"""The exported file answers as the detector does, in every engine that is installed, and in an environment
without PyTorch.
"""

import configparser
import copy
import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from bare import Bare
from PIL import Image
from sklearn.metrics import roc_auc_score

from mudenet import export as ex
from mudenet import runtime
from mudenet.architecture import MuDeNet
from mudenet.cli import main
from mudenet.config import Config, override
from mudenet.core import DataError, TrainingError, digest, rng
from mudenet.data import load_images, open_category
from mudenet.decisions import p_value, p_values
from mudenet.images import read_image
from mudenet.inference import Detector, calibrate
from mudenet.runtime import Detector as Exported
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent
BOTTLE = ROOT.parent / "shared" / "data" / "mvtec_bottle"
SMALL = {"data.image_size": 64, "model.channels": 16, "model.width": 16, "inference.smoothing": 1.0}
NEEDS = dict(onnx=("onnx", "onnxscript", "onnxruntime"), openvino=("onnx", "onnxscript", "openvino"))
ORIGINAL = ex.onnx_model
MODES = ("RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16")


def need(to):
    if gone := [n for n in NEEDS.get(to, ()) if find_spec(n) is None]:
        pytest.skip(f"{', '.join(gone)} not installed: pip install -e '.[export,openvino]'")


def made(root, **fields):
    """A detector with random networks, calibrated on the nominal images of a category."""
    config = override(Config(), {**SMALL, **fields})
    detector = Detector(MuDeNet(config.model, 64, seed=3), config, dict(category=root.name)).to("cpu")
    category = open_category(root)
    nominal, trained = (
        load_images(items, 64, interpolation=config.data.interpolation)
        for items in (category.validation, category.train)
    )
    calibrate(detector, nominal, trained)
    return detector


def memory(trace):
    """A function that traces a detector, which it does once for each of the same state and configuration."""
    known = {}

    def remembered(detector, raw=False):
        key = digest(detector.state_dict()), repr((detector.config, detector.shares, detector.held_out, raw))
        if key not in known:
            known[key] = trace(detector, raw)
        return copy.deepcopy(known[key])

    return remembered


@pytest.fixture(scope="module", autouse=True)
def traced_once():
    """A trace takes far longer than all that is done with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ex, "onnx_model", memory(ORIGINAL))
        yield


@pytest.fixture
def traced_anew(monkeypatch):
    """For what a trace itself decides: it is done again, and remembered by itself."""
    monkeypatch.setattr(ex, "onnx_model", memory(ORIGINAL))


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    return write_product_line(
        folder / "line", size=96, train=8, validation=6, good=4, structural=5, logical=5
    )


@pytest.fixture(scope="module")
def detector(line):
    return made(line)


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    """Every format that can be written here."""
    folder = tmp_path_factory.mktemp("exported")
    return {
        to: (
            folder / f"part{ex.SUFFIX[to]}",
            ex.export_detector(detector, folder / f"part{ex.SUFFIX[to]}", to),
        )
        for to in NEEDS
        if all(find_spec(n) for n in NEEDS[to])
    }


@pytest.fixture(scope="module")
def pictures(line, tmp_path_factory):
    """A hundred files: several sizes and every mode, made from the product line and, where it is at hand,
    from bottle.
    """
    folder, g = tmp_path_factory.mktemp("pictures"), rng(0, "pictures")
    sources = sorted((line / "test").rglob("*.png"))
    sources += sorted((BOTTLE / "test").rglob("*.png"))[:14] if BOTTLE.is_dir() else []
    for k in range(100):
        w, h = (
            ((96, 96), (64, 64), (200, 40), (40, 200), (333, 517))[k % 5]
            if k < 60
            else g.integers(1, 400, 2).tolist()
        )
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


def engines(path):
    """What opens a file of one format: the runtime with each engine that reads it, or PyTorch."""
    if path.suffix == ".pt2":
        return [ex._opened(path)]
    there = [e for e in runtime._READS[path.suffix] if find_spec(e)]
    return [Exported.load(path, e, threads=1) for e in there]


@pytest.mark.parametrize("to", ex.SUFFIX)
def test_the_graph_decides_as_the_package(to, detector, files, pictures, tmp_path):
    """A graph's label and p-value are what the package makes of the same score, to the last bit; and what it
    says of the image, unless a held-out score lies between the two scores.
    """
    need(to)
    path = files[to][0] if to in files else tmp_path / "part.pt2"
    if to not in files:
        ex.export_detector(detector, path, to)
    held, limit = np.array(detector.held_out), float(detector.threshold)
    for opened in engines(path):
        for ours in detector.predict(sorted(pictures.iterdir())[::4]):
            out = opened.run(read_image(pictures / ours.name)[None])
            (score,), (share,), (label,) = out["score"], out["p_value"], out["label"]
            assert (share.dtype, label.dtype) == (np.float32, bool)
            assert share == np.float32(p_value(float(score), held)) and label == (float(score) > limit)
            low, high = sorted((ours.score, float(score)))
            assert label == ours.label and (
                share == np.float32(ours.p_value) or ((low < held) & (held <= high)).any()
            )


@pytest.mark.parametrize("to", ex.SUFFIX)
def test_ties_and_neighbours(to, tmp_path):
    """The decision alone, in every engine: scores on, right below and right above each held-out score and the
    threshold.
    """
    need(to)
    held = np.sort(rng(0, "held").normal(2, 1, 60))
    held = np.sort(np.r_[held, held[:30].astype(np.float32), 1 / 3, 1 / 3])
    edges = np.r_[held.astype(np.float32), np.float32(2.1)]
    scores = np.concatenate([edges, *(np.nextafter(edges, np.float32(end)) for end in (-9, 9))])
    program = torch.export.export(
        ex.Decision(held.tolist(), torch.tensor(2.1)),
        (torch.zeros(2),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    for share, label in decided(program, to, scores):
        assert share.tobytes() == p_values(scores, held).astype(np.float32).tobytes()
        assert label.tolist() == [float(s) > float(np.float32(2.1)) for s in scores]


def decided(program, to, scores):
    """p-values and labels of scores by the engines of a format."""
    if to == "pt2":
        return [[v.numpy() for v in program.module()(torch.from_numpy(scores))]]
    model = torch.onnx.export(program, dynamo=True, opset_version=ex.OPSET, verbose=False).model_proto
    if to == "onnx":
        import onnxruntime as ort

        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return [session.run(None, {model.graph.input[0].name: scores})]
    graph, how = ex.openvino_model(model), "INFERENCE_PRECISION_HINT"
    answers = [
        runtime.openvino_core().compile_model(graph, "CPU", {how: hint})(scores) for hint in ("f32", "bf16")
    ]
    return [list(found.values()) for found in answers]


@pytest.mark.parametrize(
    "fields",
    [
        {"inference.normalization": "robust", "inference.clamp": "zero", "inference.image_score": "top_mean"},
        {
            "inference.upsampling": "bicubic",
            "inference.smoothing": 0.0,
            "model.padding": "reflect",
            "data.interpolation": "nearest",
        },
        {
            "data.interpolation": "bicubic",
            "model.stem_pool": "max",
            "model.autoencoder_norm": "batch",
            "inference.upsampling": "nearest",
        },
        {"data.interpolation": "box", "model.block": "pre", "model.autoencoder_size": "figure"},
        {"inference.standardise_places": True},
        {"inference.place_modes": 4},
        {"model.teacher_trunk": "resnet18", "backbone.name": "resnet18", "model.teacher_patch": 3},
    ],
)
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


def test_the_same_detector_gives_the_same_bytes(detector, files, tmp_path, traced_anew):
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


def test_a_signal_after_several_detectors(files):
    """OpenVINO gives signals a stack of their own; it must still be there when detectors have gone."""
    need("openvino")
    code = """
import signal, sys
from mudenet.runtime import Detector

open_ = [Detector.load(sys.argv[1], "openvino") for _ in range(2)]
while open_:
    del open_[0]
signal.signal(signal.SIGTERM, lambda *given: print("heard"))
signal.raise_signal(signal.SIGTERM)
"""
    argv = [sys.executable, "-c", code, str(files["openvino"][0])]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_a_file_that_disagrees_is_refused(detector, tmp_path, monkeypatch, traced_anew):
    need("onnx")
    exact = ex._product
    # one grey level brighter
    monkeypatch.setattr(ex, "_product", lambda w, x: (exact(w, x) + 1).clamp(0, 255))
    with pytest.raises(TrainingError, match=r"was not written.*map \d.*--force"):
        ex.export_detector(detector, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    found = ex.export_detector(detector, tmp_path / "a.onnx", force=True)
    assert found["faults"] and Exported.load(tmp_path / "a.onnx").meta["checked"]["faults"] == found["faults"]


# ---------------------------------------------------------------- below float32


LOWER = [(to, p) for to, kinds in ex.PRECISIONS.items() for p in kinds if p != "float32"]


def lower(to, precision):
    need(to)
    if (to, precision) == ("openvino", "int8") and find_spec("nncf") is None:
        pytest.skip("nncf not installed: pip install nncf")


@pytest.mark.parametrize("to, precision", LOWER)
def test_statistics_are_those_of_the_networks_as_they_run(to, precision, detector, line, tmp_path):
    """On the nominal images the parts lie in 0..1 again and touch both ends; the threshold is the quantile of
    the new scores.
    """
    lower(to, precision)
    category, path = open_category(line), tmp_path / f"a{ex.SUFFIX[to]}"
    found = ex.export_detector(detector, path, to, precision, category, force=True)
    exported = Exported.load(path, threads=1)
    squares = load_images(category.validation, 64).permute(0, 2, 3, 1).contiguous().numpy()
    answers = exported.predict(list(squares))
    parts, scores = np.stack([p.parts for p in answers]), [p.score for p in answers]
    np.testing.assert_allclose(parts.min((0, 3, 4)), 0, atol=0.02)
    np.testing.assert_allclose(parts.max((0, 3, 4)), 1, atol=0.02)
    assert abs(np.quantile(scores, 0.99) - exported.threshold) <= 0.01 * exported.threshold
    assert exported.meta["precision"] == precision and exported.meta["checked"] == found
    assert exported.meta["detector"] == digest(detector.state_dict())
    assert exported.threshold != float(detector.threshold) and 0 < found["moved"] < 0.2
    # the answer has float32's digits, whatever the networks have
    assert len({float(np.float32(s)) for s in scores}) == len(scores)
    assert any(torch.tensor(s).bfloat16().float() != s for s in scores)


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_half_the_bits_are_half_the_file(to, detector, tmp_path):
    need(to)

    def size(precision):
        path = tmp_path / f"{precision}{ex.SUFFIX[to]}"
        graph = ex.graph_of(detector, to, precision, np.empty(0))
        ex.write_graph(path, graph, ex.described(detector, to, precision))
        return (path.with_suffix(".bin") if to == "openvino" else path).stat().st_size

    assert size("float16") < 0.6 * size("float32")


def test_only_the_widest_kernels_have_8_bits(detector, line, tmp_path):
    need("onnx")
    import onnx

    ex.export_detector(detector, tmp_path / "a.onnx", "onnx", "int8", open_category(line), force=True)
    graph = onnx.load(tmp_path / "a.onnx").graph
    made = {o: n for n in graph.node for o in n.output}
    convolutions = [n for n in graph.node if n.op_type == "Conv"]
    quantised = [
        n for n in convolutions if made.get(n.input[1]) and made[n.input[1]].op_type == "DequantizeLinear"
    ]
    kinds = [next(a.ints for a in n.attribute if a.name == "kernel_shape") for n in quantised]
    assert len(quantised) == 3 * 4 and all(list(k) == [5, 5] for k in kinds) and len(convolutions) > 40


def test_lower_precision_that_is_not_faithful_is_refused(detector, line, tmp_path, monkeypatch):
    need("onnx")
    monkeypatch.setattr(ex, "consequences", lambda *a: dict(decisions=0.97, nominal=0.9, auroc=[0.95, 0.9]))
    with pytest.raises(
        TrainingError, match=r"AUROC 0.9500 → 0.9000, 3.0% of the decisions on test.*10.0% .* nominal images"
    ):
        ex.export_detector(detector, tmp_path / "a.onnx", "onnx", "int8", open_category(line))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(ex, "consequences", lambda *a: dict(decisions=0.98, nominal=1.0, auroc=[0.95, 0.945]))
    assert not ex.export_detector(detector, tmp_path / "a.onnx", "onnx", "int8", open_category(line))[
        "faults"
    ]


def test_consequences_are_counted(detector, line):
    """Against a detector whose answers are known: every third score is halved."""

    class Halved:
        def predict(self, images):
            found = detector.predict(images)
            halves = [replace(p, score=p.score / 2, label=p.score / 2 > p.threshold) for p in found]
            return [halves[k] if k % 3 == 0 else p for k, p in enumerate(found)]

    category = open_category(line)
    found = ex.consequences(detector, Halved(), category)
    ours = detector.predict([np.array(Image.open(i.image).convert("RGB")) for i in category.test])
    theirs = Halved().predict([np.array(Image.open(i.image).convert("RGB")) for i in category.test])
    assert (
        found["decisions"] == np.mean([a.label == b.label for a, b in zip(ours, theirs)])
        and found["moved"] == 0
    )
    labels = [i.label for i in category.test]
    assert found["auroc"] == pytest.approx(
        [roc_auc_score(labels, [p.score for p in ps]) for ps in (ours, theirs)]
    )


def test_by_command_line(detector, tmp_path, capsys):
    need("onnx")
    detector.save(tmp_path / "detector.safetensors")
    assert main(["export", str(tmp_path), "--to", "onnx"]) == 0
    assert "faithful" in capsys.readouterr().out and (tmp_path / "detector.onnx").is_file()
    assert main(["export", str(tmp_path), "--to", "onnx", "--precision", "int8"]) == 2
    assert "nominal images, which are not at hand" in capsys.readouterr().err
    assert main(["export", str(tmp_path), "--to", "onnx", "--out", str(tmp_path / "a.xml")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    "now, words",
    [
        (dict(how="rate", folds=5, source="x"), "the 5 detectors of its folds"),
        (dict(how="rate", source="x"), "comes from other parts"),
        (dict(how="given", source="x"), "given by hand"),
        (dict(how="labelled", bad=9), "with bad parts in view"),
    ],
)
def test_a_threshold_that_was_set_later_is_not_measured_again(now, words, detector, line, tmp_path):
    """Whatever set it, the refusal names that, and says what to do."""
    later = copy.deepcopy(detector)
    later.calibrations = [*detector.calibrations, now]
    with pytest.raises(DataError, match=f"{words}.*leave --precision out"):
        ex.export_detector(later, tmp_path / "a.onnx", "onnx", "int8", category=open_category(line))
    assert not (tmp_path / "a.onnx").exists()


def marks(out):
    """regions.json and the masks by name that `predict --regions` wrote."""
    masks = {
        p.relative_to(out).as_posix(): np.array(Image.open(p)) for p in sorted(out.rglob("masks/**/*.png"))
    }
    return json.loads((out / "regions.json").read_text()), masks


def test_regions_of_a_file_are_those_of_the_package(detector, line, tmp_path, capsys):
    """Both by command line, on images of several sizes: the same masks and the same regions.json, but for the
    last digits of what is measured on the map.
    """
    need("onnx")
    quieter = copy.deepcopy(detector)
    quieter.config = override(quieter.config, {"inference.min_area": 4})
    maxima = [p.grid.max() for p in detector.predict(line / "test")]
    # so that most images have something to compare
    quieter.calibrations[-1]["pixel_threshold"] = float(np.quantile(maxima, 0.2))
    (tmp_path / "run").mkdir()
    quieter.save(tmp_path / "run" / "detector.safetensors")
    assert main(["export", str(tmp_path / "run"), "--to", "onnx"]) == 0, capsys.readouterr().err
    (tmp_path / "in" / "sub").mkdir(parents=True)
    images = sorted((line / "test").rglob("*.png"))
    for k, (path, size) in enumerate(zip(images, [(96, 96), (50, 77), (200, 40), (30, 30)] * 3)):
        Image.open(path).convert("RGB").resize(size).save(tmp_path / "in" / ("sub" * (k % 2)) / f"{k}.png")
    close = quieter.predict(tmp_path / "in")
    edge = {p.name for p in close if np.abs(p.grid - quieter.pixel_threshold).min() < 1e-5}
    said = {}
    for name, what in (("run", tmp_path / "run"), ("file", tmp_path / "run" / "detector.onnx")):
        argv = ["predict", str(what), str(tmp_path / "in"), "--out", str(tmp_path / name), "--regions"]
        assert main(argv) == 0, capsys.readouterr().err
        said[name] = marks(tmp_path / name)
    (ours, our_masks), (theirs, their_masks) = said["run"], said["file"]
    assert list(our_masks) == list(their_masks) and len(our_masks) == len(close) > 8
    assert sum(m.any() for m in our_masks.values()) > 3 and len(edge) < 3
    for name, mask in our_masks.items():
        if name.removeprefix("masks/").removesuffix(".png") not in edge:
            assert (mask == their_masks[name]).all(), name
    assert ours["info"] == theirs["info"] and ours["images"] == theirs["images"]
    kept = [
        [a for a in d["annotations"] if d["images"][a["image_id"] - 1]["file_name"] not in edge]
        for d in (ours, theirs)
    ]
    assert len(kept[0]) == len(kept[1]) > 3
    for a, b in zip(*(sorted(k, key=lambda a: (a["image_id"], a["bbox"])) for k in kept)):
        same = ("image_id", "category_id", "iscrowd", "area", "bbox", "segmentation")
        assert {k: a[k] for k in same} == {k: b[k] for k in same}
        assert a["score"] == pytest.approx(b["score"], rel=1e-4)
        more, others = a["attributes"], b["attributes"]
        assert (more["branch"], more["level"]) == (others["branch"], others["level"])
        assert more["mean"] == pytest.approx(others["mean"], rel=1e-4)
        assert more["centroid"] == pytest.approx(others["centroid"])


# ---------------------------------------------------------------- without PyTorch


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    need("onnx")
    return Bare(tmp_path_factory.mktemp("bare"))


def test_the_wheel_holds_what_it_names(bare):
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    assert sorted(p.stem for p in (bare.site / "mudenet").glob("*.py")) == sorted(
        ini["DEFAULT"]["runtime_modules"].split()
    )


def test_predicts_without_torch(bare, detector, files, pictures):
    code = """
import json, sys
from mudenet.runtime import Detector, Prediction
try: import torch
except ImportError as e: said = str(e)
found = Detector.load(sys.argv[1], threads=1).predict(sys.argv[2])
assert all(type(p) is Prediction for p in found)
print(json.dumps([said, [(p.name, p.score, p.label, p.strongest(), p.map.shape) for p in found]]))
"""
    r = bare("-c", code, files["onnx"][0], pictures)
    assert r.returncode == 0, r.stderr
    said, found = json.loads(r.stdout)
    assert said == "No module named 'torch'"
    for p, (name, score, label, strongest, shape) in zip(detector.predict(pictures), found, strict=True):
        assert (p.name, p.label, p.strongest(), p.map.shape) == (name, label, tuple(strongest), tuple(shape))
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
