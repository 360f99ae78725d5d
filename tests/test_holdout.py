"""Images that a run holds out were never trained on, neither by the run nor by a teacher of another seed."""

import shutil

import pytest

from mudenet.config import load_config, override
from mudenet.core import CheckpointError, load_tensors, save_tensors
from mudenet.job import ensure_teacher, open_job
from mudenet.synthetic import write_product_line


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A tiny configuration on a folder without a validation split, so that images have to be held out."""
    tmp = tmp_path_factory.mktemp("holdout")
    line = write_product_line(tmp / "line", size=64, train=20, validation=1, good=2, structural=2, logical=2)
    own = tmp / "parts"
    for split in ("train", "test"):
        shutil.copytree(line / split, own / split)
    tree = dict(
        root=str(own),
        out=str(tmp / "runs"),
        dataset="folder",
        category=None,
        data=dict(image_size=64, holdout=0.2),
        backbone=dict(weights="random"),
        model=dict(channels=8, width=8),
        distill=dict(steps=1),
        train=dict(steps=1),
    )
    return load_config("tiny", tree=tree)


def images(items):
    return {i.image for i in items}


def test_all_seeds_share_one_split(config):
    first, second = (open_job(override(config, {"seed": s})).category for s in (1, 2))
    assert first.train == second.train
    assert first.validation == second.validation
    assert len(first.validation) == 4
    assert not images(first.train) & images(first.validation)


def test_another_split_is_a_field_and_another_run(config):
    first, other = open_job(config), open_job(override(config, {"data.holdout_seed": 1}))
    assert images(first.category.validation) != images(other.category.validation)
    assert first.folder != other.folder


def test_a_teacher_of_another_seed_never_saw_the_held_out_images(config):
    taught = open_job(override(config, {"seed": 1}))
    ensure_teacher(taught)
    given = open_job(override(config, {"seed": 2, "teacher": str(taught.folder / "teacher.safetensors")}))
    held_out = images(given.category.validation)
    assert held_out
    assert not images(taught.category.train) & held_out


def test_a_teacher_that_saw_them_is_refused(config):
    taught = open_job(override(config, {"seed": 1, "data.holdout_seed": 1}))
    ensure_teacher(taught)
    fields = {"seed": 2, "teacher": str(taught.folder / "teacher.safetensors")}
    with pytest.raises(CheckpointError, match=r"was distilled on \d of the 4 images that this run holds out"):
        open_job(override(config, fields))
    open_job(override(config, {**fields, "data.holdout_seed": 1}))


def test_a_teacher_from_before_the_field_held_out_what_its_seed_drew(config, tmp_path):
    taught = open_job(override(config, {"seed": 1, "data.holdout_seed": 1}))
    ensure_teacher(taught)
    tensors, meta = load_tensors(taught.folder / "teacher.safetensors", "teacher")
    del meta["config"]["data"]["holdout_seed"]
    own = {k: meta[k] for k in ("config", "about", "identity")}
    older = save_tensors(tmp_path / "older.safetensors", tensors, "teacher", own)
    with pytest.raises(CheckpointError, match=r"data\.holdout_seed: 1"):
        open_job(override(config, {"teacher": str(older)}))
