"""anomalib's engine runs the model on its own data module; the scores are mudenet's. Run with --slow where
anomalib is.
"""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from mudenet.config import override
from mudenet.data import load_images, normalize
from mudenet.distillation import load_teacher
from mudenet.job import with_teacher
from mudenet.inference import Detector, calibrate
from mudenet.interop import default_config
from mudenet.metrics import image_auroc
from mudenet.synthetic import write_product_line
from mudenet.training import train

here = importlib.util.find_spec("anomalib") is not None
needs = pytest.mark.skipif(not here, reason="anomalib is not installed: pip install 'mudenet[anomalib]'")


def test_importing_imports_no_anomalib():
    code = "import sys, mudenet.interop\nassert not {'anomalib', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Images of the network's own size, so that nobody resizes."""
    folder = tmp_path_factory.mktemp("line") / "line"
    return write_product_line(folder, size=64, train=12, validation=2, good=6, structural=6, logical=6)


FOLDER = dict(
    name="line",
    normal_dir="train/good",
    normal_test_dir="test/good",
    abnormal_dir=["test/structural_anomalies", "test/logical_anomalies"],
    num_workers=0,
    train_batch_size=4,
    eval_batch_size=4,
    val_split_mode="same_as_test",
)


def parts(line):
    """The line as anomalib reads it."""
    from anomalib.data import Folder

    return Folder(root=str(line), **FOLDER)


def ran(line, top, epochs, lr):
    """anomalib's predictions and metrics: (scores by file, metrics, detector, checkpoint)."""
    from anomalib.engine import Engine
    from mudenet.interop import MuDeNet

    torch.manual_seed(0)
    config = override(default_config(), {"data.image_size": 64, "train.lr": lr, "device": "cpu"})
    data = parts(line)
    model = MuDeNet(config)
    engine = Engine(max_epochs=epochs, accelerator="cpu", devices=1, default_root_dir=str(top), logger=False)
    engine.fit(model, datamodule=data)
    metrics = engine.test(model, datamodule=data)[0]
    return said(model, data), metrics, model.detector, engine.trainer.checkpoint_callback.best_model_path


def said(model, data):
    """What a model says about the test images: score by file."""
    scores = {}
    for batch in data.test_dataloader():
        with torch.inference_mode():
            out = model.model(model.pre_processor.transform(batch.image))
        scores |= dict(zip(batch.image_path, out.pred_score.tolist()))
    return scores


@needs
@pytest.mark.slow
def test_without_learning_the_scores_are_mudenet_s(line, tmp_path):
    scores, *_ = ran(line, tmp_path, 1, 1e-12)
    config = with_teacher(
        override(default_config(), {"data.image_size": 64, "train.steps": 0, "device": "cpu"})
    )
    images = load_images(sorted((line / "train" / "good").glob("*.png")), 64)
    own = Detector(train(config, images, load_teacher(config.teacher, config)), replace(config, teacher=None))
    calibrate(own, images, images)
    for path, score in scores.items():
        assert float(own(normalize(load_images([path], 64))).score) == pytest.approx(
            score, rel=2e-3, abs=2e-3
        )


@needs
@pytest.mark.slow
def test_it_learns_and_both_agree_on_auroc(line, tmp_path):
    scores, metrics, detector, checkpoint = ran(line, tmp_path, 3, 1e-3)
    assert len(scores) == 18 and np.isfinite(list(scores.values())).all()
    labels = np.array(["/good/" not in path for path in scores])
    assert image_auroc(np.array(list(scores.values())), labels) == pytest.approx(
        metrics["image_AUROC"], abs=1e-6
    )
    assert not detector.model.training and torch.isfinite(detector.threshold)


@needs
@pytest.mark.slow
def test_a_model_that_is_read_back_gives_the_scores_that_it_gave(line, tmp_path):
    """The learned shares of the branches (A-050) are in Lightning's checkpoint, beside the weights."""
    from anomalib.engine import Engine
    from mudenet.interop import MuDeNet

    scores, metrics, _, checkpoint = ran(line, tmp_path, 1, 1e-3)
    model = MuDeNet(fields={"data.image_size": 64, "device": "cpu"})
    engine = Engine(accelerator="cpu", devices=1, default_root_dir=str(tmp_path / "again"), logger=False)
    data = parts(line)
    assert engine.test(model, datamodule=data, ckpt_path=checkpoint)[0] == metrics
    assert said(model, data) == pytest.approx(scores, rel=1e-5)


@needs
@pytest.mark.slow
def test_anomalib_s_own_command_line_trains_and_tests_it(line, tmp_path):
    """One YAML file says where the images are, and options set fields of the configuration."""
    data = dict(class_path="anomalib.data.Folder", init_args=dict(FOLDER, root=str(line)))
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    model = ["--model", "mudenet.interop.MuDeNet", "--model.fields", '{"data.image_size": 64}']
    program = [sys.executable, "-c", "from anomalib.cli.cli import main; main()"]

    def anomalib(command, *options):
        argv = [*program, command, *model, "--data", "data.yaml", "--trainer.accelerator", "cpu", *options]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return re.search(r"image_AUROC\W+([\d.]+)", done.stdout).group(1)

    trained = anomalib("train", "--trainer.max_epochs", "1")
    checkpoint = next(tmp_path.rglob("*.ckpt"))
    assert anomalib("test", "--ckpt_path", str(checkpoint)) == trained
