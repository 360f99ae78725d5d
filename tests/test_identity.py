"""What a configuration is compared by: every projection answers as it did before fields said what they
decide.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mudenet.config import LEVELS, field_names, from_saved, load_config, nest
from mudenet.identity import identity, portable, run_key, short_key
from mudenet.distillation import architecture_of_t, teacher_identity
from mudenet.evaluation import setting_key
from mudenet.loop import belonging
from mudenet.teachers import corpus_folder
from mudenet.training import train_identity

HERE = Path(__file__).parent
GOLDEN = HERE / "data" / "identity.json"

# One field at a time, on top of the paper's configuration for cable; every field is turned, and combinations
# that matter.
TABLE = {
    "paper": {},
    "loco": {"dataset": "mvtec_loco", "category": "breakfast_box"},
    "image_size": {"data.image_size": 128},
    "holdout": {"data.holdout": 0.2},
    "holdout_seed": {"data.holdout_seed": 1},
    "augment": {"data.augment": ["rotate"]},
    "augment, no table": {"data.augment": ["rotate"], "category": "my_part"},
    "augment_by_category": {"data.augment_by_category": {"cable": ["vflip"]}},
    "augment_by_category, another": {"data.augment_by_category": {"nut": ["vflip"]}},
    "augment_set": {"data.augment_set": "flips"},
    "data.interpolation": {"data.interpolation": "box"},
    "rotate_degrees": {"data.rotate_degrees": 100.0},
    "rotate_angles": {"data.rotate_angles": "quarter"},
    "rotate_fill": {"data.rotate_fill": "mean"},
    "jitter_strength": {"data.jitter_strength": 0.2},
    "jitter_properties": {"data.jitter_properties": "brightness"},
    "backbone.name": {"backbone.name": "resnet18"},
    "weights, a file": {"backbone.weights": "some/where/r18.pth"},
    "weights, random": {"backbone.weights": "random"},
    "channel_seed": {"backbone.channel_seed": 1},
    "zscore": {"backbone.zscore": "dataset"},
    "channels": {"model.channels": 64},
    "latent": {"model.latent": 16},
    "width": {"model.width": 32},
    "depths": {"model.depths": [1, 1, 1]},
    "kernels": {"model.kernels": [3, 3, 3]},
    "encoder_widths": {"model.encoder_widths": [16, 32]},
    "stem": {"model.stem": "bare"},
    "stem_pool": {"model.stem_pool": "max"},
    "block": {"model.block": "pre"},
    "projection": {"model.projection": "bn"},
    "padding": {"model.padding": "reflect"},
    "encoder_padding": {"model.encoder_padding": "after"},
    "autoencoder_norm": {"model.autoencoder_norm": "batch"},
    "autoencoder_size": {"model.autoencoder_size": "figure"},
    "decoder_last_relu": {"model.decoder_last_relu": True},
    "distill schedule": {
        "distill.epochs": 3,
        "distill.steps": 7,
        "distill.batch_size": 4,
        "distill.lr": 0.1,
        "distill.schedule": "cosine",
        "distill.weight_decay": 0.1,
        "distill.loss_reduction": "mean",
    },
    "distill.save_minutes": {"distill.save_minutes": 1.0},
    "images, dataset": {"distill.images": "dataset"},
    "images, folder": {"distill.images": "folder", "distill.folder": "some/imagenet"},
    "images, folder elsewhere": {"distill.images": "folder", "distill.folder": "other/imagenet"},
    "folder, all": {
        "distill.images": "folder",
        "distill.folder": "some/imagenet",
        "distill.folder_crop": 0.5,
        "distill.folder_augment": "all",
        "distill.folder_holdout": 5,
    },
    "batchnorm": {"distill.batchnorm": "category"},
    "distill.augment": {"distill.augment": False},
    "match": {"distill.match": "pool"},
    "distill.interpolation": {"distill.interpolation": "nearest"},
    "train schedule": {
        "train.epochs": 3,
        "train.steps": 7,
        "train.batch_size": 4,
        "train.lr": 0.1,
        "train.schedule": "cosine",
        "train.weight_decay": 0.1,
        "train.loss_reduction": "mean",
    },
    "train.save_minutes": {"train.save_minutes": 1.0},
    "detach_autoencoder": {"train.detach_autoencoder": False},
    "loss_weights": {"train.loss_weights": [1.0, 2.0, 3.0]},
    "inference": {
        "inference.normalization": "zscore",
        "inference.statistics_images": "train",
        "inference.statistics_per": "branch",
        "inference.clamp": "zero",
        "inference.upsampling": "nearest",
        "inference.smoothing": 1.0,
        "inference.image_score": "top_mean",
        "inference.top_fraction": 0.1,
        "inference.threshold_quantile": 0.9,
    },
    "inference.batch_size": {"inference.batch_size": 1},
    "resolution": {"evaluation.resolution": "image"},
    "pro_limit": {"evaluation.pro_limit": 0.1},
    "pictures": {"evaluation.pictures": 0},
    "compute": {
        "compute.precision": "float32",
        "compute.channels_last": False,
        "compute.fold": False,
        "compute.fused_adam": False,
        "compute.keep_memory": False,
        "compute.compile": "default",
        "compute.cache": "host",
    },
    "readers": {"compute.workers": 3, "compute.cache_mb": 5},
    "place": {"root": "x", "out": "y", "device": "cuda", "teacher": "t.safetensors"},
    "seed": {"seed": 3},
}
LATER = {
    "data.white": 4095,
    "backbone.reduction": "pca",
    "model.centre": "place",
    "model.teacher_trunk": "resnet18",
    "model.teacher_patch": 3,
    "train.whiten": True,
    "preset": "fast",
    "inference.false_alarms": None,
    "inference.part_weights": "learned",
    "inference.min_area": 1,
    "inference.standardise_places": True,
    "inference.place_modes": 4,
    "train.patience": 3,
    "distill.warmup": 5,
    "train.warmup": 5,
    "train.ema": 0.9,
    "train.autoencoder_first": 7,
    "track": ["mlflow"],
}  # newer than the golden values


def without_later(value):
    "The same nested values without the fields of `LATER`."
    if not isinstance(value, dict):
        return value
    names = {name.rpartition(".")[2] for name in LATER}
    return {k: without_later(v) for k, v in value.items() if k not in names}


def config_of(fields):
    "A row's configuration."
    tree = nest({"dataset": "mvtec_ad", "category": "cable", **fields})
    return load_config(tree["dataset"], tree=tree)


def projections(config):
    "Everything that a configuration is written or looked up as."
    teacher = torch.nn.Linear(1, 1)
    for p in teacher.parameters():
        torch.nn.init.zeros_(p)
    feed = SimpleNamespace(
        data=config.data,
        augmentation=config.data.augmentation(config.category),
        seed=config.seed,
        name="train",
        content="0" * 16,
    )
    trained = train_identity(config, teacher)
    key = short_key({k: v for k, v in without_later(identity(config, "detector")).items() if k != "seed"})
    found = dict(
        portable=portable(config),
        run_key=key,
        teacher=teacher_identity(config),
        other_teacher=teacher_identity(config, "bottle"),
        trained=trained,
        state=belonging(trained, feed, config.train, config.compute),
        t=architecture_of_t(config),
    )
    if config.distill.images == "folder":
        found["corpus_folder"] = corpus_folder(config).name
    return found


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


@pytest.mark.parametrize("row", TABLE)
def test_projections_are_those_of_before(row):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = projections(config_of(TABLE[row]))
    assert {name: digest(without_later(value)) for name, value in found.items()} == golden[row]


def test_every_field_has_a_row():
    without = {"compute.fused_distance", *LATER}  # the first has no effect
    assert {k for fields in TABLE.values() for k in fields} == set(field_names()) - without


def test_later_fields_name_another_run():
    plain = config_of({})
    trained = ("patience", "warmup", "ema", "autoencoder_first", "whiten")
    for name in ("backbone.reduction", "model.centre", *(f"train.{field}" for field in trained)):
        assert run_key(config_of({name: LATER[name]})) != run_key(plain), name
    components = config_of({"backbone.reduction": "pca"})
    assert teacher_identity(components) != teacher_identity(plain)
    assert teacher_identity(config_of({"distill.warmup": 5})) != teacher_identity(plain)
    r18 = {"backbone.name": "resnet18"}
    pretrained = config_of({**r18, "model.teacher_trunk": "resnet18"})
    assert teacher_identity(pretrained) != teacher_identity(config_of(r18))
    averaged = {"model.teacher_patch": 3}  # by a pretrained T only, and it stays the same T
    assert run_key(config_of(averaged)) == run_key(plain)
    whole = {**r18, "model.teacher_trunk": "resnet18"}
    assert run_key(config_of({**whole, **averaged})) != run_key(pretrained)
    assert teacher_identity(config_of({**whole, **averaged})) == teacher_identity(pretrained)
    same_teacher = {"data.white": None, "backbone.reduction": "draw", "distill.warmup": 0}
    same_teacher["model.teacher_trunk"] = "descriptor"
    aside = LATER | {"preset": "paper"} | same_teacher
    assert teacher_identity(config_of(aside)) == teacher_identity(plain)


# Rows that are the paper's run: they decide nothing, or list augmentations for other categories
NEVER = {
    "paper",
    "distill.save_minutes",
    "train.save_minutes",
    "inference.batch_size",
    "pictures",
    "readers",
    "place",
    "augment",
    "augment_by_category, another",
}
# Rows that differ from the paper's run from a level on. All others differ in what trains.
LATE = {"inference": "scores", "resolution": "measures", "pro_limit": "measures", "compute": "rounding"}


@pytest.mark.parametrize("row", TABLE)
def test_a_row_differs_from_its_level_on(row):
    paper, config = config_of({}), config_of(TABLE[row])
    same = [level for level in LEVELS if identity(config, level) == identity(paper, level)]
    if row in NEVER:
        assert same == list(LEVELS)
    elif row in LATE:
        assert same == list(LEVELS[: LEVELS.index(LATE[row])])
    else:
        assert not {"detector", "scores", "measures", "rounding"} & set(same)


def test_a_newer_field_at_its_default_is_not_compared():
    newer = {"patience", "warmup", "ema", "autoencoder_first"}
    assert not newer & set(identity(config_of({}), "rounding")["train"])
    assert not newer & set(projections(config_of({}))["state"]["train"])  # states on file go on
    assert identity(config_of({"train.patience": 3}), "detector")["train"]["patience"] == 3


def test_settings_have_a_key_of_their_own():
    paper = setting_key(config_of({}))
    others = {row for row in TABLE if setting_key(config_of(TABLE[row])) != paper}
    assert others == {"inference", "resolution", "pro_limit"}


RECORDS = sorted((HERE.parent / "nbs" / "results").glob("demo-s*.json"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda p: p.stem)
def test_a_record_on_file_has_its_key(record):
    found = json.loads(record.read_text(encoding="utf-8"))
    config = from_saved(found["config"])
    assert found["run"].startswith(run_key(config))
    assert found["run"].endswith(f"-s{config.seed}")


def test_a_field_that_does_not_say_what_it_decides_stops_the_import(tmp_path):
    source = (HERE.parent / "mudenet" / "config.py").read_text(encoding="utf-8")
    place = 'class DataConfig:\n    "What the networks see."\n'
    assert place in source
    code = source.replace(place, f"{place}    fresh: int = 3\n").replace("from .", "from mudenet.")
    (tmp_path / "careless.py").write_text(code, encoding="utf-8")
    words = [sys.executable, "-c", "import careless"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode
    assert "data.fresh does not say what it decides" in done.stderr
