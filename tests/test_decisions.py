"""A promised false-alarm rate, p-values, and one decision whoever asks: Python, command line, report, explorer, exported file."""
import csv
import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from mudenet.cli import main
from mudenet.config import ConfigError, InferenceConfig, load_config
from mudenet.core import CheckpointError, DataError, load_tensors, read_record, save_tensors
from mudenet.decisions import p_values
from mudenet.evaluation import ensure_detector, evaluate, open_job
from mudenet.explorer import collect, finish, own_choice
from mudenet.inference import Detector, label_threshold
from mudenet.synthetic import write_product_line

PROMISED = InferenceConfig(false_alarms=0.1, statistics_images="train")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    return write_product_line(folder / "line", size=64, train=6, validation=9, good=4, structural=5, logical=3)


@pytest.fixture(scope="module")
def job(line):
    """A detector of a few steps with a promised rate, its record and its report."""
    small = dict(backbone=dict(weights="random"), model=dict(channels=8, width=8), distill=dict(steps=2), train=dict(steps=2),
                 inference=dict(false_alarms=0.2, statistics_images="train", batch_size=4))
    found = open_job(load_config("tiny", tree=dict(root=str(line), out=str(line.parent / "runs"), device="cpu", **small)))
    evaluate(ensure_detector(found), found)
    return found


def decisions(predictions):
    """What must be the same everywhere, to the last bit, but the score, which an engine computes in its own order."""
    return [(p.label, p.threshold, p.p_value) for p in predictions]


def test_label_is_the_p_value():
    scores = torch.rand(60, generator=torch.Generator().manual_seed(0))
    new = torch.rand(200, generator=torch.Generator().manual_seed(1))
    called = new > label_threshold(scores, PROMISED)
    assert called.tolist() == (p_values(new.numpy(), scores.numpy()) <= 0.1).tolist()
    assert called.any() and not called.all()


def test_too_few_images_are_told_before_training(tmp_path):
    config = load_config("tiny", tree=dict(out=str(tmp_path), inference=dict(false_alarms=0.01, statistics_images="train")))
    with pytest.raises(DataError, match=r"false_alarms=0.01: \d+ held-out images promise .* at best; 0.01 takes \d+ more"):
        ensure_detector(open_job(config))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_statistics_from_the_same_images_are_refused():
    with pytest.raises(ConfigError, match="statistics_images=train"):
        InferenceConfig(false_alarms=0.1)


def test_p_value_of_a_prediction_is_the_definition(job, line):
    detector = Detector.load(job.folder, "cpu")
    held = detector.held_out
    assert held == sorted(p.score for p in detector.predict([i.image for i in job.category.validation])) and len(held) == 9
    for p in detector.predict(line / "test"):
        assert p.p_value == (1 + sum(h >= p.score for h in held)) / 10
        assert p.label == (p.p_value <= 0.2)


def test_the_file_keeps_the_held_out_scores(job, tmp_path):
    path = job.folder / "detector.safetensors"
    tensors, meta = load_tensors(path, "detector")
    assert meta["held_out"] == Detector.load(job.folder, "cpu").held_out
    assert Detector.load(Detector.load(path, "cpu").save(tmp_path / "again.safetensors"), "cpu").held_out == meta["held_out"]
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    one = str(meta["held_out"][0])
    (tmp_path / "other.safetensors").write_bytes(path.read_bytes().replace(one.encode(), one[:-1].encode() + b"0", 1))
    with pytest.raises(CheckpointError, match="damaged"):
        Detector.load(tmp_path / "other.safetensors", "cpu")


def test_a_file_of_before_has_no_p_values(job, line, tmp_path):
    tensors, meta = load_tensors(job.folder / "detector.safetensors", "detector")
    before = {k: v for k, v in meta.items() if k not in ("held_out", "calibrations", "sha256")}
    old = Detector.load(save_tensors(tmp_path / "old.safetensors", tensors, "detector", before), "cpu")
    new = Detector.load(job.folder, "cpu")
    for a, b in zip(old.predict(line / "test"), new.predict(line / "test"), strict=True):
        assert (a.score, a.label, a.threshold, a.p_value) == (b.score, b.label, b.threshold, None)
        assert a.cells()[1] == ""


def test_one_decision_everywhere(job, line, tmp_path, capsys):
    """Python, table, record, report and explorer; the table beside the camera is one of `test_one_decision_beside_the_camera`."""
    detector, files = Detector.load(job.folder, "cpu"), [i.image for i in job.category.test]
    ours = detector.predict(files)
    assert main(["predict", str(job.folder), str(line / "test"), "--out", str(tmp_path), "--maps=false", "--pictures=false"]) == 0
    table = {r["image"]: r for r in csv.DictReader((tmp_path / "predictions.csv").open())}
    record, page = read_record(job.folder / "record.json"), (job.folder / "report.html").read_text(encoding="utf-8")
    outcome = finish(raw := collect(Detector.load(job.folder, "cpu"), job.category), own_choice(detector))
    assert outcome.on_record and (outcome.threshold, outcome.held_out.tolist()) == (float(detector.threshold), detector.held_out)
    for k, (p, file, row) in enumerate(zip(ours, files, record["scores"], strict=True)):
        cells = table[file.relative_to(line / "test").as_posix()]
        assert [cells[n] for n in ("score", "p_value", "anomalous", "threshold")] == p.cells()[:4]
        assert (row["score"], row["p_value"], row["anomalous"]) == (p.score, p.p_value, p.label)
        assert f"score {p.score:.3g}, p-value {p.p_value:.3g}, threshold" in page
        assert (float(outcome.scores[k]), bool(outcome.scores[k] > outcome.threshold)) == (p.score, p.label)
    assert p_values(outcome.scores, outcome.held_out).tolist() == [p.p_value for p in ours] and len(raw.items) == len(ours)
    how = record["calibration"]
    assert how["asked"] == 0.2 and how["how"] == "rate" and how["apart"] and how["threshold"] == record["threshold"]
    assert "1 of 9 held-out scores lie above the threshold, so at most 20&#160;% of good parts" in page


@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the extra [export]")
def test_one_decision_beside_the_camera(job, line, capsys, tmp_path):
    """The exported file holds threshold and held-out scores to the last bit; every way to ask it gives one p-value."""
    from mudenet.line import main as beside
    from mudenet.runtime import Detector as Exported
    from mudenet.serve import said
    from mudenet.watch import watch
    file = tmp_path / "part.onnx"
    assert main(["export", str(job.folder), "--out", str(file)]) == 0
    capsys.readouterr()
    ours, theirs = Detector.load(job.folder, "cpu"), Exported.load(file)
    assert (theirs.threshold, theirs.held_out) == (float(ours.threshold), ours.held_out)
    predictions = theirs.predict(line / "test")
    assert decisions(predictions) == decisions(ours.predict(line / "test"))
    assert [p.p_value for p in predictions] == p_values([p.score for p in predictions], ours.held_out).tolist()
    assert beside(["predict", str(file), str(line / "test")]) == 0
    assert list(csv.reader(capsys.readouterr().out.splitlines()))[1:] == [[p.name, *p.cells()] for p in predictions]
    lines = {r["image"]: r["p_value"] for r in watch(theirs, line / "test", tmp_path / "out", settle=0, once=True)}
    assert lines == {p.name: p.p_value for p in predictions}
    table = {r["image"]: r["p_value"] for r in csv.DictReader((tmp_path / "out" / "results.csv").open())}
    assert table == {p.name: p.cells()[1] for p in predictions}
    assert [said(p, "part")["p_value"] for p in predictions] == [p.p_value for p in predictions]


def test_an_older_journal_is_read(job, line, tmp_path):
    """A line of before p-values were known is kept in journal and table."""
    from mudenet.watch import Journal
    journal = Journal(tmp_path)
    journal.add(("a.png", 1, 2), score=1.0, anomalous=False, threshold=2.0, loudest=["logical", 1], error=None)
    journal.close()
    assert "p_value" not in json.loads((tmp_path / "results.jsonl").read_text())
    Journal(tmp_path).close()
    row, = csv.DictReader((tmp_path / "results.csv").open())
    assert (row["score"], row["p_value"], row["loudest"]) == ("1", "", "logical 1")


def test_scores_that_are_not_finite_are_refused(job):
    detector = Detector.load(job.folder, "cpu")
    detector.maximum.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        detector.predict(np.zeros((64, 64, 3), np.uint8))
