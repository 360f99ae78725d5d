"""A promised false-alarm rate: the threshold of a detector is the order statistic, and what cannot be promised is refused early."""
import pytest
import torch

from mudenet.config import ConfigError, InferenceConfig, load_config
from mudenet.core import DataError
from mudenet.decisions import p_values
from mudenet.evaluation import ensure_detector, open_job
from mudenet.inference import label_threshold

PROMISED = InferenceConfig(false_alarms=0.1, statistics_images="train")


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
