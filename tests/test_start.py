"""The fast preset and the start in closed form, from the command line's configuration to the scores."""

import pytest
import torch

from mudenet.cli_options import configure
from mudenet.config import load_config
from mudenet.core import ConfigError
from mudenet.data import load_images, normalize
from mudenet.distillation import load_teacher
from mudenet.job import ensure_detector, open_job
from mudenet.start import covariance_around, mean_map, whitening
from mudenet.synthetic import write_product_line


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts") / "line"
    return write_product_line(root, size=64, train=12, validation=4, good=2, structural=2, logical=2)


def test_a_folder_of_ones_own_begins_with_fast_on_a_cpu(parts):
    own = configure(dict(root=str(parts), device="cpu", dataset="folder"))
    assert (own.preset, own.model.centre, own.train.whiten, own.model.width) == ("fast", "place", True, 32)
    paper = configure(dict(root=str(parts), device="cpu", dataset="folder", preset="paper"))
    assert (paper.preset, paper.model.centre, paper.train.whiten, paper.model.width) == (
        "paper",
        "none",
        False,
        64,
    )
    assert load_config("mvtec_ad").preset == "paper"


def test_another_teacher_brings_its_widths(parts):
    given = dict(root=str(parts), device="cpu", dataset="folder", preset="fast", teacher="general")
    assert (configure(given).model.width, configure(given).model.channels) == (64, 128)


def test_no_step_needs_a_start():
    with pytest.raises(ConfigError, match="train.steps=0 leaves students that know nothing"):
        load_config(tree=dict(train=dict(steps=0)))


def test_without_a_step_the_score_is_the_mahalanobis_distance(parts, tmp_path):
    given = dict(root=str(parts), dataset="folder", device="cpu", out=str(tmp_path))
    plain = dict(place_modes=0)  # equation 9 as it is
    job = open_job(configure(dict(given, train=dict(steps=0), data=dict(image_size=64), inference=plain)))
    detector = ensure_detector(job)
    train, test = (load_images(items, 64) for items in (job.category.train, job.category.test))
    teacher = load_teacher(job.config.teacher, job.config)
    mean = mean_map(teacher, train)
    covariance = covariance_around(mean, teacher, train)
    inverse = whitening(covariance) @ whitening(covariance)
    with torch.no_grad():
        away = (
            torch.stack(teacher(normalize(test)))[:, :, :, 9, 20].double() - mean[:, None, :, 9, 20].double()
        )
    distance = torch.einsum("lnc,lcd,lnd->nl", away, inverse, away)
    raw = detector.raw(normalize(test))
    torch.testing.assert_close(raw[:, 0, :, 9, 20].double(), distance, rtol=1e-2, atol=1e-2)
    # A has learned nothing, so its branch counts for nothing
    assert not detector.parts(raw)[:, 1].any()
