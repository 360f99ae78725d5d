"""A promised false-alarm rate, p-values, and one decision whoever asks: Python, command line, report,
explorer, exported file.
"""

import csv
import json
import re
import shutil
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from mudenet.cli import main
from mudenet.config import InferenceConfig, load_config
from mudenet.core import ConfigError, CheckpointError, DataError, load_tensors, read_record, save_tensors
from mudenet.decisions import p_values
from mudenet.evaluation import evaluate
from mudenet.explorer import collect, finish, image_html, own_choice
from mudenet.job import ensure_detector, open_job
from mudenet.inference import Detector, label_threshold
from mudenet.synthetic import write_product_line

PROMISED = InferenceConfig(false_alarms=0.1, statistics_images="train")


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    return write_product_line(
        folder / "line", size=64, train=6, validation=9, good=4, structural=5, logical=3
    )


@pytest.fixture(scope="module")
def job(line):
    """A detector of a few steps with a promised rate, its record and its report."""
    small = dict(
        backbone=dict(weights="random"),
        model=dict(channels=8, width=8),
        distill=dict(steps=2),
        train=dict(steps=2),
        inference=dict(false_alarms=0.2, statistics_images="train", batch_size=4),
    )
    found = open_job(
        load_config("tiny", tree=dict(root=str(line), out=str(line.parent / "runs"), device="cpu", **small))
    )
    evaluate(ensure_detector(found), found)
    return found


def decisions(predictions):
    """What must be the same everywhere, to the last bit, but the score, which an engine computes in its own
    order.
    """
    return [(p.label, p.threshold, p.p_value) for p in predictions]


def test_label_is_the_p_value():
    scores = torch.rand(60, generator=torch.Generator().manual_seed(0))
    new = torch.rand(200, generator=torch.Generator().manual_seed(1))
    called = new > label_threshold(scores, PROMISED)
    assert called.tolist() == (p_values(new.numpy(), scores.numpy()) <= 0.1).tolist()
    assert called.any() and not called.all()


def test_too_few_images_are_told_before_training(tmp_path):
    config = load_config(
        "tiny", tree=dict(out=str(tmp_path), inference=dict(false_alarms=0.01, statistics_images="train"))
    )
    with pytest.raises(
        DataError, match=r"false_alarms=0.01: \d+ held-out images promise .* at best; 0.01 takes \d+ more"
    ):
        ensure_detector(open_job(config))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_statistics_from_the_same_images_are_refused():
    with pytest.raises(ConfigError, match="statistics_images=train"):
        InferenceConfig(false_alarms=0.1)


def test_p_value_of_a_prediction_is_the_definition(job, line):
    detector = Detector.load(job.folder, "cpu")
    held = detector.held_out
    assert (
        held == sorted(p.score for p in detector.predict([i.image for i in job.category.validation]))
        and len(held) == 9
    )
    for p in detector.predict(line / "test"):
        assert p.p_value == (1 + sum(h >= p.score for h in held)) / 10
        assert p.label == (p.p_value <= 0.2)


def test_the_file_keeps_the_held_out_scores(job, tmp_path):
    path = job.folder / "detector.safetensors"
    tensors, meta = load_tensors(path, "detector")
    assert meta["held_out"] == Detector.load(job.folder, "cpu").held_out
    assert (
        Detector.load(Detector.load(path, "cpu").save(tmp_path / "again.safetensors"), "cpu").held_out
        == meta["held_out"]
    )
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    one = str(meta["held_out"][0])
    (tmp_path / "other.safetensors").write_bytes(
        path.read_bytes().replace(one.encode(), one[:-1].encode() + b"0", 1)
    )
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
    """Python, table, record, report and explorer; the table beside the camera is one of
    `test_one_decision_beside_the_camera`.
    """
    detector, files = Detector.load(job.folder, "cpu"), [i.image for i in job.category.test]
    ours = detector.predict(files)
    assert (
        main(
            [
                "predict",
                str(job.folder),
                str(line / "test"),
                "--out",
                str(tmp_path),
                "--maps=false",
                "--pictures=false",
            ]
        )
        == 0
    )
    table = {r["image"]: r for r in csv.DictReader((tmp_path / "predictions.csv").open())}
    record, page = (
        read_record(job.folder / "record.json"),
        (job.folder / "report.html").read_text(encoding="utf-8"),
    )
    outcome = finish(raw := collect(Detector.load(job.folder, "cpu"), job.category), own_choice(detector))
    assert outcome.on_record and (outcome.threshold, outcome.held_out.tolist()) == (
        float(detector.threshold),
        detector.held_out,
    )
    for k, (p, file, row) in enumerate(zip(ours, files, record["scores"], strict=True)):
        cells = table[file.relative_to(line / "test").as_posix()]
        assert [cells[n] for n in ("score", "p_value", "anomalous", "threshold")] == p.cells()[:4]
        assert (row["score"], row["p_value"], row["anomalous"]) == (p.score, p.p_value, p.label)
        assert f"score {p.score:.3g}, p-value {p.p_value:.3g}, threshold" in page
        assert (float(outcome.scores[k]), bool(outcome.scores[k] > outcome.threshold)) == (p.score, p.label)
    assert p_values(outcome.scores, outcome.held_out).tolist() == [p.p_value for p in ours] and len(
        raw.items
    ) == len(ours)
    how = record["calibration"]
    assert (
        how["asked"] == 0.2
        and how["how"] == "rate"
        and how["apart"]
        and how["threshold"] == record["threshold"]
    )
    assert "1 of 9 held-out scores lie above the threshold, so at most 20&#160;% of good parts" in page


@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the extra [export]"
)
def test_one_decision_beside_the_camera(job, line, capsys, tmp_path):
    """The exported file holds threshold and held-out scores to the last bit; every way to ask it gives one
    p-value.
    """
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
    assert [p.p_value for p in predictions] == p_values(
        [p.score for p in predictions], ours.held_out
    ).tolist()
    assert beside(["predict", str(file), str(line / "test")]) == 0
    assert list(csv.reader(capsys.readouterr().out.splitlines()))[1:] == [
        [p.name, *p.cells()] for p in predictions
    ]
    lines = {
        r["image"]: r["p_value"] for r in watch(theirs, line / "test", tmp_path / "out", settle=0, once=True)
    }
    assert lines == {p.name: p.p_value for p in predictions}
    table = {r["image"]: r["p_value"] for r in csv.DictReader((tmp_path / "out" / "results.csv").open())}
    assert table == {p.name: p.cells()[1] for p in predictions}
    assert [said(p, "part")["p_value"] for p in predictions] == [p.p_value for p in predictions]


def of_table(path):
    """Label and p-value of each image in a table that `mudenet predict` wrote."""
    with path.open() as f:
        return {r["image"]: (r["anomalous"] == "1", float(r["p_value"])) for r in csv.DictReader(f)}


SHOWN = r"{}(?P<name>[^<>]+): (?P<verdict>found|false alarm|missed|rightly passed){}.*?p-value (?P<p>[\d.]+),"


def of_page(text, begin, end):
    """The same of each image whose pictures a page shows between such marks, by its verdict."""
    found = re.finditer(SHOWN.format(begin, end), text)
    return {m["name"]: (m["verdict"] in ("found", "false alarm"), float(m["p"])) for m in found}


@pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="needs the extra [export]"
)
def test_all_five_say_the_same(job, line, tmp_path, capsys):
    """Command line, Python, report, explorer and an exported file: label and p-value of every test image, to
    the last bit, and one threshold.
    """
    from mudenet.runtime import Detector as Exported

    detector, file = Detector.load(job.folder, "cpu"), tmp_path / "part.onnx"
    assert main(["export", str(job.folder), "--out", str(file)]) == 0
    for what, run in (("run", job.folder), ("exported", file)):
        argv = ["predict", str(run), str(line / "test"), "--out", str(tmp_path / what), "--maps=false"]
        assert main([*argv, "--pictures=false"]) == 0, capsys.readouterr().err
    outcome = finish(raw := collect(Detector.load(job.folder, "cpu"), job.category), own_choice(detector))
    shown = "".join(image_html(raw, outcome, k, outcome.threshold) for k in range(len(raw.items)))
    page = (job.folder / "report.html").read_text(encoding="utf-8")
    python = {p.name: (p.label, p.p_value) for p in detector.predict(line / "test")}
    assert {label for label, _ in python.values()} == {True, False} and len(python) == 12
    assert of_table(tmp_path / "run" / "predictions.csv") == python
    assert of_table(tmp_path / "exported" / "predictions.csv") == python
    assert of_page(page, "<h4>", "</h4>") == python
    assert of_page(shown, "<b>", "</b>") == python
    record = read_record(job.folder / "record.json")
    limits = {outcome.threshold, Exported.load(file).threshold, record["threshold"]}
    assert limits == {float(detector.threshold)}
    assert (
        str(np.float32(outcome.threshold)) + " *</th>" in page
    )  # the digits that tell it from its neighbours


def test_an_older_journal_is_read(job, line, tmp_path):
    """A line of before p-values were known is kept in journal and table."""
    from mudenet.watch import Journal

    journal = Journal(tmp_path)
    journal.add(
        ("a.png", 1, 2), score=1.0, anomalous=False, threshold=2.0, strongest=["logical", 1], error=None
    )
    journal.close()
    assert "p_value" not in json.loads((tmp_path / "results.jsonl").read_text())
    Journal(tmp_path).close()
    (row,) = csv.DictReader((tmp_path / "results.csv").open())
    assert (row["score"], row["p_value"], row["strongest"]) == ("1", "", "logical 1")


def test_scores_that_are_not_finite_are_refused(job):
    detector = Detector.load(job.folder, "cpu")
    detector.maximum.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        detector.predict(np.zeros((64, 64, 3), np.uint8))


def parts(folder, images, seed=5):
    """A folder of good parts of the same line, none of which any run has seen."""
    few = dict(validation=1, good=1, structural=1, logical=1)
    return (
        write_product_line(folder / f"line{seed}", seed=seed, size=64, train=images, **few) / "train" / "good"
    )


def copied(job, folder):
    """The run's folder again, to be changed."""
    shutil.copytree(job.folder, folder / "run")
    return folder / "run"


def test_calibrate_by_command_line(job, tmp_path, capsys):
    """New scores, threshold and p-values; networks and statistics as before; the history in the file."""
    run, good = copied(job, tmp_path), parts(tmp_path, 39)
    before, was = load_tensors(run / "detector.safetensors", "detector")
    assert main(["calibrate", str(run), str(good), "--false-alarms", "0.05"]) == 0
    said = capsys.readouterr().out
    after, now = load_tensors(run / "detector.safetensors", "detector")
    assert [k for k in before if not torch.equal(before[k], after[k])] == ["threshold"]
    assert (
        now["calibrations"][0] == was["calibrations"][0]
        and len(now["calibrations"]) == 2
        and now["about"] == was["about"]
    )
    entry, detector = now["calibrations"][1], Detector.load(run, "cpu")
    assert (
        now["held_out"] == sorted(p.score for p in detector.predict(good))
        and entry["threshold"] == now["held_out"][-2]
    )
    assert (
        (entry["n"], entry["rate"], entry["asked"]) == (39, 0.05, 0.05)
        and len(entry["source"]) == 16
        and entry["date"]
    )
    assert (
        f"{100 * entry['bound']:.3g} % at confidence 95 %" in said
        and "The least that 39 images can promise is 2.5 %" in said
    )
    assert sum(p.label for p in detector.predict(good)) == 1
    assert not list(run.glob(".*.part"))


def test_further_parts_give_statistics_by_command_line(job, tmp_path, capsys):
    """New minimum and maximum from one folder, threshold and scores from the other; none may be in both."""
    run, good = copied(job, tmp_path), parts(tmp_path, 30)
    further = tmp_path / "further"
    further.mkdir()
    for f in sorted(good.rglob("*.png"))[:10]:
        f.rename(further / f.name)
    before = load_tensors(run / "detector.safetensors", "detector")[0]
    assert main(["calibrate", str(run), str(good), "--statistics", str(further)]) == 0
    after, now = load_tensors(run / "detector.safetensors", "detector")
    assert {"minimum", "maximum", "mean"} <= {k for k in before if not torch.equal(before[k], after[k])}
    assert {k for k in before if k.startswith("model.") and not torch.equal(before[k], after[k])} == set()
    entry, detector = now["calibrations"][-1], Detector.load(run, "cpu")
    assert entry["n"] == 20 and entry["apart"] and len(entry["statistics"]) == 16
    assert now["held_out"] == sorted(p.score for p in detector.predict(good))
    kept = (run / "detector.safetensors").read_bytes()
    for argv, says in (
        ([further, "--statistics", further], "which gives the statistics"),
        (["--folds", 3, "--statistics", further], "--folds takes the run's own"),
    ):
        assert main(["calibrate", str(run), *map(str, argv)]) == 2
        assert says in capsys.readouterr().err and (run / "detector.safetensors").read_bytes() == kept


def test_calibrate_again_keeps_the_rate_and_the_whole_history(job, tmp_path, capsys):
    run, good = copied(job, tmp_path), parts(tmp_path, 20)
    assert main(["calibrate", str(run), str(good)]) == 0
    assert main(["calibrate", str(run), str(good), "--threshold", "1.5"]) == 0
    history = Detector.load(run, "cpu").calibrations
    assert [(c["n"], c["how"], c["asked"]) for c in history] == [
        (9, "rate", 0.2),
        (20, "rate", 0.2),
        (20, "given", None),
    ]
    assert float(Detector.load(run, "cpu").threshold) == 1.5 and history[1]["source"] == history[2]["source"]


def test_a_bad_part_among_the_good_is_named(job, tmp_path, capsys):
    run, good = copied(job, tmp_path), parts(tmp_path, 30)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[::2] = 255
    Image.fromarray(pixels).save(good / "no part.png")
    assert main(["calibrate", str(run), str(good)]) == 0
    assert "look at no part.png" in capsys.readouterr().out


def test_calibrate_refuses_and_leaves_the_file(job, line, tmp_path, capsys):
    run, good = copied(job, tmp_path), parts(tmp_path, 9)
    (tmp_path / "empty").mkdir()
    shutil.copytree(good, tmp_path / "cut")
    (tmp_path / "cut" / "000.png").write_bytes(b"PNG")
    shutil.copytree(good, tmp_path / "twice")
    shutil.copy(good / "000.png", tmp_path / "twice" / "copy.png")
    before = (run / "detector.safetensors").read_bytes()
    for argv, says in (
        ([tmp_path / "empty"], "holds no image"),
        ([tmp_path / "none"], "no such folder"),
        ([good, "--false-alarms", "0"], "between 0 and 1, not 0"),
        ([good, "--false-alarms", "1"], "between 0 and 1, not 1"),
        ([good, "--false-alarms", "0.05"], "0.05 takes 10 more"),
        ([good, "--threshold", "nan"], "threshold"),
        ([good, "--false-alarms", "0.2", "--threshold", "1"], "one of the two"),
        ([tmp_path / "cut"], "000.png"),
        ([tmp_path / "twice"], "is a copy of"),
        ([line / "train"], "6 of 6 images were trained on"),
    ):
        assert main(["calibrate", str(run), *map(str, argv)]) == 2, argv
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1, err
        assert (run / "detector.safetensors").read_bytes() == before


@pytest.mark.parametrize("size, mode", [((90, 70), "RGB"), ((64, 64), "L"), ((64, 64), "I;16")])
def test_another_camera_is_refused_unless_it_is_meant(size, mode, job, tmp_path, capsys):
    """Calibration images of another size, with other channels or another bit depth."""
    run, good = copied(job, tmp_path), parts(tmp_path, 9)
    for f in good.glob("*.png"):
        pixels = Image.open(f).resize(size)
        if mode == "I;16":
            pixels = Image.fromarray(np.asarray(pixels.convert("L")).astype(np.uint16) * 257)
        pixels.convert(mode).save(f)
    before = (run / "detector.safetensors").read_bytes()
    assert main(["calibrate", str(run), str(good)]) == 2
    err = capsys.readouterr().err
    assert "9 of 9 images are unlike those trained on" in err and "--new-camera" in err
    assert f"000.png is {size[0]}×{size[1]} {mode}, and there" in err and err.count("\n") == 1
    assert (run / "detector.safetensors").read_bytes() == before
    assert main(["calibrate", str(run), str(good), "--new-camera"]) == 0
    detector = Detector.load(run, "cpu")
    assert detector.held_out == sorted(p.score for p in detector.predict(good))


def test_parts_that_gave_the_statistics_promise_roughly(line, job, tmp_path, capsys):
    """Recalibrating on the images behind minimum and maximum keeps the caveat."""
    shared = copied(job, tmp_path)
    detector = Detector.load(job.folder, "cpu", dict(statistics_images="validation", false_alarms=None))
    detector.save(shared / "detector.safetensors")
    text = (
        (shared / "config.yaml")
        .read_text()
        .replace("statistics_images: train", "statistics_images: validation")
    )
    (shared / "config.yaml").write_text(text.replace("false_alarms: 0.2", "false_alarms: null"))
    assert main(["calibrate", str(shared), str(line / "validation")]) == 0
    assert (
        "hold roughly only" in capsys.readouterr().out
        and not Detector.load(shared, "cpu").calibrations[-1]["apart"]
    )


def test_the_explorer_and_the_record_follow_a_calibration(job, tmp_path, capsys):
    run = copied(job, tmp_path)
    assert main(["calibrate", str(run), str(parts(tmp_path, 25)), "--false-alarms", "0.2"]) == 0
    detector = Detector.load(run, "cpu")
    assert main(["evaluate", str(run), "--evaluation.pictures", "0", "--out", str(tmp_path / "out")]) == 0
    record = read_record(tmp_path / "out" / "record.json")
    assert (
        record["threshold"] == float(detector.threshold)
        and record["calibration"] == detector.calibrations[-1]
    )
    outcome = finish(collect(detector, job.category), own_choice(detector))
    assert [r["score"] > record["threshold"] for r in record["scores"]] == (
        outcome.scores > outcome.threshold
    ).tolist()
    assert [r["p_value"] for r in record["scores"]] == p_values(outcome.scores, detector.held_out).tolist()


def faulty(line, folder, count):
    """A folder with so many of the defective test images."""
    folder.mkdir()
    for k, f in enumerate(sorted((line / "test").glob("*_anomalies/*.png"))[:count]):
        shutil.copy(f, folder / f"{k}.png")
    return folder


def rows(text):
    """The cells of a Markdown table."""
    return [
        [c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]


def test_threshold_counts_what_is_there(job, line, tmp_path, capsys):
    """The table against counts by hand, with eight bad parts; nothing is written but the picture."""
    run, bad = copied(job, tmp_path), faulty(line, tmp_path / "bad", 8)
    before = (run / "detector.safetensors").read_bytes()
    for picture in ("points.png", "points.svg"):
        assert main(["threshold", str(run), "--bad", str(bad), "--out", str(tmp_path / picture)]) == 0
    head, _, *table = rows(out := capsys.readouterr().out.split("picture:")[0])
    detector = Detector.load(run, "cpu")
    scores = [p.score for p in detector.predict(bad)]
    assert head[0] == "threshold" and "no longer label-free" in out and len(table) >= 4
    for cells in table:
        t = float(np.float32(cells[0].removesuffix(" *")))
        assert cells[1] == f"{sum(h > t for h in detector.held_out)} of 9"
        assert cells[4].startswith(f"{sum(s > t for s in scores)} of 8 (")
    (star,) = (c[0] for c in table if c[0].endswith("*"))
    assert np.float32(star.removesuffix(" *")) == np.float32(float(detector.threshold))
    assert any(c[4].startswith("8 of 8 (63 to 100 %)") for c in table)
    assert (
        Image.open(tmp_path / "points.png").size > (400, 200)
        and "<svg" in (tmp_path / "points.svg").read_text()
    )
    assert (run / "detector.safetensors").read_bytes() == before


def test_a_threshold_chosen_on_bad_parts_is_marked(job, line, tmp_path, capsys):
    run, bad = copied(job, tmp_path), faulty(line, tmp_path / "bad", 8)
    assert main(["threshold", str(run), "--bad", str(bad), "--set", "1.25"]) == 0
    detector = Detector.load(run, "cpu")
    last = detector.calibrations[-1]
    assert (
        float(detector.threshold) == 1.25
        and (last["how"], last["bad"]) == ("labelled", 8)
        and len(detector.calibrations) == 2
    )
    assert detector.held_out == Detector.load(job.folder, "cpu").held_out
    assert main(["evaluate", str(run), "--evaluation.pictures", "0", "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert read_record(tmp_path / "out" / "record.json")["calibration"]["how"] == "labelled"
    assert "chosen with bad parts in view and so no longer label-free" in page and "1.25 *</th>" in page
    assert main(["threshold", str(run), "--set", "1"]) == 0
    assert Detector.load(run, "cpu").calibrations[-1]["how"] == "given"


def test_threshold_refuses(job, line, tmp_path, capsys):
    run = copied(job, tmp_path)
    tensors, meta = load_tensors(run / "detector.safetensors", "detector")
    older = {k: v for k, v in meta.items() if k not in ("held_out", "calibrations", "sha256")}
    save_tensors(tmp_path / "old.safetensors", tensors, "detector", older)
    (tmp_path / "empty").mkdir()
    before = (run / "detector.safetensors").read_bytes()
    for argv, says in (
        ([run, "--bad", faulty(line, tmp_path / "seven", 7)], "7 bad parts say too little"),
        ([run, "--bad", tmp_path / "empty"], "holds no image"),
        ([run, "--bad", tmp_path / "none"], "no such folder"),
        ([run, "--out", tmp_path / "a.jpg"], "ends in .png or .svg"),
        ([run, "--set", "inf"], "set"),
        ([tmp_path / "old.safetensors"], "mudenet calibrate"),
    ):
        assert main(["threshold", *map(str, argv)]) == 2, argv
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1, err
    assert (run / "detector.safetensors").read_bytes() == before and not (tmp_path / "a.jpg").exists()
