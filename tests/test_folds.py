"""`mudenet calibrate RUN --folds K`: detectors that have not seen the parts they judge, and a threshold from
all of them.
"""

import shutil

import pytest

from mudenet import job as jobs
from mudenet.cli import main
from mudenet.config import load_config
from mudenet.core import ConfigError, DataError, load_tensors
from mudenet.decisions import cross_bound, cross_p_values, promised
from mudenet.job import cross_calibrate, ensure_detector, fold_jobs, open_job
from mudenet.inference import Detector
from mudenet.synthetic import write_product_line

PARTS, FOLDS = 14, 3
SMALL = dict(
    backbone=dict(weights="random"),
    model=dict(channels=8, width=8),
    distill=dict(steps=2),
    train=dict(steps=2),
    inference=dict(batch_size=4),
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("folds")
    few = dict(validation=4, good=2, structural=2, logical=2)
    line = write_product_line(folder / "line", size=64, train=PARTS, **few)
    found = open_job(
        load_config("tiny", tree=dict(root=str(line), out=str(folder / "runs"), device="cpu", **SMALL))
    )
    ensure_detector(found)
    return found


@pytest.fixture(scope="module")
def crossed(job, tmp_path_factory):
    """A copy of the run's folder after the command."""
    run = tmp_path_factory.mktemp("crossed") / "run"
    shutil.copytree(job.folder, run)
    assert (
        main(["calibrate", str(run), "--folds", str(FOLDS), "--false-alarms", "0.2", "--device", "cpu"]) == 0
    )
    return run


def folds_of(run):
    return [Detector.load(f, "cpu") for f in sorted((run / f"folds-{FOLDS}").iterdir())]


def test_threshold_and_history_come_from_all_parts(job, crossed):
    before, was = load_tensors(job.folder / "detector.safetensors", "detector")
    after, now = load_tensors(crossed / "detector.safetensors", "detector")
    assert [k for k in before if not (before[k] == after[k]).all()] == ["threshold"]  # networks as they were
    assert now["calibrations"][:-1] == was["calibrations"]
    said = now["calibrations"][-1]
    assert (said["n"], said["folds"], said["asked"], said["how"]) == (PARTS, FOLDS, 0.2, "rate")
    assert said["threshold"] == now["held_out"][-3]  # ⌊0.2 (14 + 1)⌋ = 3
    assert said["bound"] == cross_bound(3 / 15, PARTS, FOLDS)
    assert said["confidence"] is None


def test_every_part_is_judged_by_the_detector_that_has_not_seen_it(job, crossed):
    scores = []
    for detector, (_, left_out) in zip(folds_of(crossed), fold_jobs(job, FOLDS), strict=True):
        judged = sorted(p.score for p in detector.predict([i.image for i in left_out]))
        assert detector.held_out == judged
        scores += judged
    assert Detector.load(crossed, "cpu").held_out == sorted(scores)


def test_all_folds_together_give_p_values(job, crossed):
    detectors, new = folds_of(crossed), [i.image for i in job.category.test]
    judged = [[p.score for p in d.predict(new)] for d in detectors]
    found = cross_p_values(judged, [d.held_out for d in detectors])
    for part, p in enumerate(found):
        larger = sum(h >= s[part] for s, d in zip(judged, detectors) for h in d.held_out)
        assert p == (1 + larger) / (PARTS + 1)


def test_it_goes_on_where_it_stopped(job, crossed, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(job.folder, run)
    again = ["calibrate", str(run), "--folds", str(FOLDS), "--false-alarms", "0.2", "--device", "cpu"]
    train, trained = jobs.train, []

    def stopped(config, images, *rest):
        trained.append(len(images))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(config, images, *rest)

    monkeypatch.setattr(jobs, "train", stopped)
    assert main(again) != 0
    assert (run / "detector.safetensors").read_bytes() == (job.folder / "detector.safetensors").read_bytes()
    assert main(again) == 0
    assert trained == [9, 9, 9, 10]  # the first fold once, the second twice, the third once
    one, other = (Detector.load(r, "cpu") for r in (run, crossed))
    assert one.held_out == other.held_out
    assert float(one.threshold) == float(other.threshold)


def test_what_it_costs_and_what_is_proven_are_said(job, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(job.folder, run)
    assert main(["calibrate", str(run), "--folds", "2", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert said.index("2 detectors are trained anew, each on 7 or more of 14") < said.index("threshold")
    assert promised(Detector.load(run, "cpu").calibration) in said
    assert "at confidence" not in said
    assert main(["threshold", str(run), "--set", "1.5"]) == 0
    assert "2 detectors of folds" in capsys.readouterr().out
    assert (
        Detector.load(run, "cpu").calibration["folds"] == 2
    )  # a number by hand does not make them other scores


REFUSED = {
    "neither images nor folds": ([], "one of the two"),
    "both": (["images", "--folds", "3"], "one of the two"),
    "a threshold too": (["--folds", "3", "--threshold", "1"], "one of the two"),
    "one fold": (["--folds", "1"], "2 to 14 folds"),
    "more folds than parts": (["--folds", "15"], "2 to 14 folds"),
    "too few parts for the rate": (["--folds", "3", "--false-alarms", "0.05"], "5 more"),
}


@pytest.mark.parametrize(("more", "says"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_trained(job, tmp_path, capsys, more, says):
    run = tmp_path / "run"
    shutil.copytree(job.folder, run)
    assert main(["calibrate", str(run), *more]) == 2
    assert says in capsys.readouterr().err
    assert not list(run.glob("folds-*"))


def test_a_teacher_that_knows_the_parts_is_refused(job, tmp_path):
    tree = dict(root=str(job.category.root), out=str(tmp_path), device="cpu", **SMALL)
    own = open_job(load_config("tiny", tree=dict(tree, teacher=str(job.folder / "teacher.safetensors"))))
    with pytest.raises(DataError, match="distilled on the parts"):
        fold_jobs(own, FOLDS)


def test_copies_are_refused(job, tmp_path):
    line = tmp_path / "line"
    shutil.copytree(job.category.root, line)
    first = sorted((line / "train" / "good").iterdir())[0]
    shutil.copy(first, first.with_name("copy.png"))
    tree = dict(root=str(line), out=str(tmp_path / "runs"), device="cpu", **SMALL)
    with pytest.raises(DataError, match="1 training images are copies"):
        fold_jobs(open_job(load_config("tiny", tree=tree)), FOLDS)


def test_other_images_are_refused(job, tmp_path):
    detector = Detector.load(job.folder, "cpu")
    detector.about["data"] = "others"
    with pytest.raises(DataError, match="does not hold the images"):
        cross_calibrate(detector, job, FOLDS)
    with pytest.raises(ConfigError, match="2 to 14 folds"):
        cross_calibrate(Detector.load(job.folder, "cpu"), job, 1)
