"""The fast preset and the start in closed form, from the command line's configuration to the scores."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from torchvision.models import resnet18

from mudenet.cli_options import configure
from mudenet.config import load_config
from mudenet.core import CheckpointError, ConfigError
from mudenet.data import load_images, normalize
from mudenet.distillation import load_teacher
from mudenet.job import ensure_detector, ensure_teacher, open_job
from mudenet.start import covariance_around, mean_map, whitening
from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent


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


def test_fast_takes_the_pretrained_teacher_and_another_brings_its_own_trunk(parts):
    given = dict(root=str(parts), device="cpu", dataset="folder", preset="fast")
    own = configure(given)
    assert (own.model.teacher_trunk, own.teacher.endswith("resnet18.safetensors")) == ("resnet18", True)
    for teacher in ("small", "general"):
        assert configure(dict(given, teacher=teacher)).model.teacher_trunk == "descriptor"
    with pytest.raises(CheckpointError, match="model.teacher_trunk"):
        ensure_teacher(
            open_job(configure(dict(given, teacher="small", model=dict(teacher_trunk="resnet18"))))
        )


def test_the_shipped_teacher_is_its_resnet(parts):
    """Its trunk's layers are torchvision's, to 16 bits, and its maps the components of their features."""
    weights = ROOT.parent / "shared" / "weights" / "resnet18_imagenet.safetensors"
    if not weights.is_file():
        pytest.skip("needs shared/weights")
    place_by_place = dict(teacher_patch=1)
    config = configure(
        dict(root=str(parts), device="cpu", dataset="folder", preset="fast", model=place_by_place)
    )
    teacher, net = load_teacher(config.teacher, config), resnet18().eval()
    net.load_state_dict(load_file(weights), strict=False)  # without layer4 and the classifier
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(images))))
        layers, maps = (net.layer1, net.layer2, net.layer3), teacher(images)
        for layer, ours, said, projection in zip(
            layers, teacher.trunk.each(images), maps, teacher.projections
        ):
            x = layer(x)
            torch.testing.assert_close(ours, x, rtol=0.02, atol=0.02)
            components = projection(x)
            expected = interpolate(components, size=(32, 32), mode="bilinear")
            torch.testing.assert_close(said, expected, rtol=0.02, atol=0.05)


def test_importing_inference_does_not_import_torchvision():
    """It brings torch's compiler, which takes as long as torch; a detector without a ResNet does without."""
    code = "import sys, mudenet.inference\nassert not {'torchvision', 'torch._dynamo'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
