"""Each tracker, offline, against its own reader; and what the command line says of early stopping."""

import csv
import importlib.util
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mudenet.cli import main
from mudenet.config import Config, from_dict
from mudenet.core import ConfigError, digest
from mudenet.job import ensure_detector, open_job
from mudenet.synthetic import write_product_line
from mudenet.tracking import trackers


def needs(module):
    """Skips where a tracker is not installed."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'mudenet[track]'")


def config(tmp_path, **fields):
    """Two epochs on a tiny product line."""
    line = tmp_path / "line"
    if not line.exists():
        write_product_line(line, size=64, train=8, validation=4, good=1, structural=1, logical=1)
    small = dict(image_size=64), dict(channels=8, width=8, latent=4, encoder_widths=[4, 8])
    train = dict(steps=4, batch_size=4) | fields.pop("train", {})
    return from_dict(
        dict(
            root=str(line),
            out=str(tmp_path / "runs"),
            device="cpu",
            data=small[0],
            model=small[1],
            train=train,
            backbone=dict(name="resnet18", weights="random"),
            distill=dict(steps=2, batch_size=4),
            **fields,
        )
    )


@pytest.fixture
def quiet(monkeypatch):
    """No setting of this machine."""
    for name in [k for k in os.environ if k.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def run(config):
    """Its folder, and the rows of its CSV files by stage."""
    job = open_job(config)
    detector = ensure_detector(job)
    rows = {s: list(csv.DictReader(open(job.folder / f"{s}.csv"))) for s in ("distill", "train")}
    return job.folder, rows, digest(detector.model.state_dict())


def test_tensorboard_reads_what_the_table_holds(tmp_path, quiet):
    needs("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, rows, _ = run(config(tmp_path, track=["tensorboard"]))
    for stage, loss in (("distill", "distillation"), ("train", "logical")):
        events = EventAccumulator(str(folder / "tensorboard" / stage)).Reload()
        said = events.Scalars(f"{stage}/epoch/{loss}")
        assert [s.step for s in said] == [int(r["step"]) for r in rows[stage]]
        assert [s.value for s in said] == pytest.approx([float(r[loss]) for r in rows[stage]], rel=1e-6)
    assert [s.step for s in events.Scalars("train/structural")] == [1, 2, 3, 4]


def test_mlflow_reads_what_the_table_holds(tmp_path, quiet):
    needs("mlflow")
    from mlflow.tracking import MlflowClient

    _, rows, _ = run(config(tmp_path, track=["mlflow"]))
    client = MlflowClient((tmp_path / "runs" / "mlruns").as_uri())
    # both stages are one run
    (found,) = client.search_runs([client.get_experiment_by_name("mudenet").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["train.batch_size"] == "4"
    for stage, loss in (("distill", "distillation"), ("train", "logical")):
        said = client.get_metric_history(found.info.run_id, f"{stage}/epoch/{loss}")
        assert [(m.step, m.value) for m in said] == [(int(r["step"]), float(r[loss])) for r in rows[stage]]


def test_wandb_offline_writes_a_run_that_can_be_sent_later(tmp_path, quiet):
    needs("wandb")
    folder, _, _ = run(config(tmp_path, track=["wandb"]))
    runs = sorted((folder / "wandb").glob("offline-run-*"))
    assert runs and all(list(r.glob("run-*.wandb")) for r in runs)
    written = b"".join(f.read_bytes() for r in runs for f in r.glob("run-*.wandb"))
    assert b"train/epoch/logical" in written and b"distill/epoch/distillation" in written


def test_a_tracker_changes_no_weight(tmp_path, quiet):
    needs("tensorboard")
    _, _, plain = run(config(tmp_path))
    folder, _, told = run(replace(config(tmp_path), track=("tensorboard",), out=tmp_path / "told"))
    assert plain == told and (folder / "tensorboard").is_dir()


def test_what_is_not_installed_is_said_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="track=wandb: wandb is not installed: pip install"):
        trackers(Config(track=("wandb",)), tmp_path)


def test_importing_the_package_imports_no_tracker():
    code = (
        "import sys, mudenet.cli, mudenet.evaluation, mudenet.tracking\n"
        "assert not {'tensorboard', 'mlflow', 'wandb'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_early_stopping_is_refused_beside_a_promise(tmp_path, capsys):
    assert (
        main(
            [
                "train",
                "--root",
                str(tmp_path),
                "--dataset",
                "folder",
                "--train.patience",
                "3",
                "--inference.false_alarms",
                "0.2",
                "--inference.statistics_images",
                "train",
            ]
        )
        == 2
    )
    assert "train.patience=3 lets the held-out images say" in capsys.readouterr().err


def test_early_stopping_from_the_configuration(tmp_path):
    found = config(tmp_path, train=dict(steps=400, lr=0.05, patience=1))
    folder, rows, _ = run(found)
    seen = [float(r["validation"]) for r in rows["train"]]
    assert len(seen) < 200 and seen.index(min(seen)) == len(seen) - 2
    assert "validation" not in rows["distill"][0] and torch.isfinite(torch.tensor(seen)).all()
    assert not list(folder.glob("*.state.safetensors"))
