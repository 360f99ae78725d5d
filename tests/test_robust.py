"""Bad input and damaged files, each kind by its reproduction."""

import copy
import json
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

from mudenet.architecture import MuDeNet
from mudenet.config import Config, field_names, from_dict, load_config, nest, override, to_dict
from mudenet.core import CheckpointError, ConfigError, WeightsError, load_tensors, read_meta, save_tensors
from mudenet.distillation import Backbone
from mudenet.inference import Detector, load_detector

META = dict(
    detector=dict(config={}, about={"threshold": 1.5}),
    teacher=dict(config={}),
    state=dict(step=3, log={}, identity={}),
)


def _tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {
        "conv.weight": torch.randn(3, 2, generator=g),
        "bn.running_var": torch.rand(3, generator=g),
        "n": torch.tensor([7]),
    }


@pytest.mark.parametrize("kind", META)
def test_every_flipped_bit_of_a_tensor_is_noticed(tmp_path, kind):
    path = save_tensors(tmp_path / "x.safetensors", _tensors(), kind, META[kind])
    whole = path.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    back, _ = load_tensors(path, kind)
    assert all(torch.equal(v, back[k]) for k, v in _tensors().items())
    for bit in range(8 * begin, 8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"):
            load_tensors(path, kind)


def test_changed_metadata_is_noticed(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", _tensors(), "detector", META["detector"])
    meta = read_meta(path, "detector") | {"about": {"threshold": 2.5}}
    save_file(load_file(path), path, {"mudenet": json.dumps(meta)})
    with pytest.raises(CheckpointError, match="is damaged"):
        load_tensors(path, "detector")


NO_NUMBERS = [
    ("conv.weight", float("nan"), "NaN or infinite"),
    ("conv.weight", float("inf"), "NaN or infinite"),
    ("bn.running_var", -1.0, "negative variances"),
]


@pytest.mark.parametrize("name, value, text", NO_NUMBERS)
def test_numbers_that_cannot_be_computed_with_are_refused_without_a_digest_too(tmp_path, name, value, text):
    tensors = _tensors()
    tensors[name].view(-1)[0] = value
    header = dict(META["detector"], kind="detector", schema=1)
    save_file(tensors, tmp_path / "x.safetensors", {"mudenet": json.dumps(header)})
    with pytest.raises(CheckpointError, match=f"{name} holds {text}"):
        load_tensors(tmp_path / "x.safetensors", "detector")


ODD = [
    None,
    "",
    " ",
    [],
    {},
    [[1]],
    {"a": {"b": 1}},
    [None],
    "eleven",
    True,
    10**400,
    -(10**400),
    1e300,
    float("nan"),
    float("inf"),
    -1,
    -1.5,
    "x\0y",
    b"x",
    "x" * 10_000,
    ["x"] * 1000,
]


@pytest.mark.parametrize("name", field_names())
def test_a_field_takes_a_value_or_is_named(name):
    """Every field × every odd value, nested and with its dotted name: a configuration, or one line that names
    the field.
    """
    for value in ODD:
        try:
            config = from_dict(nest({name: value}))
        except ConfigError as e:
            assert name in str(e) and "\n" not in str(e) and len(str(e)) < 600, e
        else:
            assert from_dict(json.loads(json.dumps(to_dict(config)))) == config
            kept = reduce(getattr, name.split("."), config)
            assert value not in ("", None) or kept is value, f"{value!r} became {kept!r}"
    with pytest.raises(ConfigError, match=name):
        from_dict({name: ""})


def test_an_empty_value_in_a_file_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    for name in field_names():
        section, _, leaf = name.rpartition(".")
        file.write_text(f"{section}:\n  {leaf}:\n" if section else f"{leaf}:\n")
        with pytest.raises(
            ConfigError, match=rf"mine\.yaml: {name} is empty|mine\.yaml: Parser key \"{name}\""
        ):
            load_config(files=[file])
    file.write_text("distill: {steps: null}\n")
    assert load_config(files=[file]).distill.steps is None


YAML = {
    "x: &x {a: 1}\ny: *x\n": "line 2.*the alias",
    "data: &d {a: *d}\n": "line 1.*the alias",
    "seed: 1\nseed: 2\n": "seed twice",
    "data: " + "[" * 5000 + "]" * 5000: "more than 20 levels",
    "#" * 10**6 + "\nseed: 1\n": "longer than a megabyte",
    "seed: 2001-99-99\n": "line 1.*month",
    "seed: " + "9" * 5000: "line 1",
    "\0": "special characters",
    "train: [": "line 1",
    "seed: !!python/object/apply:os.getcwd []\n": "constructor",
    "seed: !!int x\n": "line 1",
    "? [1, 2]\n: 3\n": "unhashable",
    "- 1\n": "names and values",
    "1: 2\n": "names and values",
    "category: [a, b]\n": "category.*needs type str",
}


@pytest.mark.parametrize("text", YAML, ids=range(len(YAML)))
def test_yaml_that_cannot_be_a_configuration_is_refused_with_its_line(tmp_path, text):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=YAML[text]) as e:
        load_config(files=[file])
    assert "odd.yaml" in str(e.value) and "\n" not in str(e.value)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NAMES = st.sampled_from([*field_names(), "train", "data", "augment", "steps"]) | st.text(max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(NAMES, x, max_size=3)))
def test_any_tree_is_a_configuration_or_an_error(tree):
    try:
        from_dict(tree if isinstance(tree, dict) else {"data": tree})
    except ConfigError as e:
        assert "\n" not in str(e)


NAN = float("nan")
SPOILED = dict(
    nan=(lambda w: w | {"conv1.weight": w["conv1.weight"] * NAN}, "conv1.weight holds NaN"),
    infinite=(lambda w: w | {"bn1.bias": w["bn1.bias"] + float("inf")}, "bn1.bias holds NaN or infinite"),
    negative=(
        lambda w: w | {"bn1.running_var": w["bn1.running_var"] - 2},
        "bn1.running_var holds negative variances",
    ),
    complex=(
        lambda w: w | {"conv1.weight": w["conv1.weight"].to(torch.complex64)},
        "conv1.weight is of type torch.complex64",
    ),
    whole=(
        lambda w: w | {"conv1.weight": w["conv1.weight"].to(torch.int8)},
        "conv1.weight is of type torch.int8",
    ),
    sparse=(
        lambda w: w | {"conv1.weight": w["conv1.weight"].flatten(1).to_sparse()},
        "conv1.weight holds no plain numbers",
    ),
    meta=(
        lambda w: w | {"conv1.weight": w["conv1.weight"].to("meta")},
        "conv1.weight holds no plain numbers",
    ),
    shape=(
        lambda w: w | {"conv1.weight": w["conv1.weight"][:3]},
        "conv1.weight has the shape (3, 3, 7, 7), not (64, 3, 7, 7)",
    ),
    missing=(
        lambda w: {k: v for k, v in w.items() if k != "layer2.0.bn1.bias"},
        "1 tensors are missing (layer2.0.bn1.bias)",
    ),
    half=(
        lambda w: w | {"conv1.weight": w["conv1.weight"].half()},
        "conv1.weight is of type torch.float16, not torch.float32",
    ),
    unknown=(lambda w: w | {"layer2.9.weight": w["conv1.weight"]}, "1 are unknown (layer2.9.weight)"),
    numbers=(lambda w: dict(enumerate(w.values())), "holds no state dict"),
    words=(lambda w: w | {"conv1.weight": "eleven"}, "holds no state dict"),
    list=(lambda w: list(w.values()), "holds no state dict"),
)


@pytest.mark.parametrize("what", SPOILED)
def test_weights_of_a_backbone_that_torchvision_could_not_use(tmp_path, what):
    spoil, text = SPOILED[what]
    torch.save(spoil(resnet18().state_dict()), tmp_path / "r18.pth")
    with pytest.raises(WeightsError) as e:
        Backbone("resnet18", str(tmp_path / "r18.pth"))
    assert "r18.pth" in str(e.value) and text in str(e.value) and "\n" not in str(e.value)


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    config = override(Config(), {"data.image_size": 64, "model.channels": 4, "model.width": 4})
    made = Detector(MuDeNet(config.model, 64), config, dict(teacher=dict(name="x"), identity={}, versions={}))
    made.threshold.fill_(1.0)
    return made.save(tmp_path_factory.mktemp("detector") / "d.safetensors")


ANYTHING = [None, 1, 1.5, True, "text", [], [1], {}, {"a": 1}, {"a": {"b": [None]}}]


def test_metadata_of_wrong_types_are_one_line(detector, tmp_path):
    """Every name of a detector's metadata × every type, with the digest made anew: it loads, or a line names
    the file.
    """
    tensors, meta = load_tensors(detector, "detector")
    own = {k: v for k, v in meta.items() if k not in ("kind", "schema", "sha256")}
    places = [(k,) for k in own] + [(k, n) for k in own for n in own[k]]
    for place in places:
        for value in ANYTHING:
            changed = copy.deepcopy(own)
            part = reduce(lambda d, k: d[k], place[:-1], changed)
            part[place[-1]] = value
            save_tensors(tmp_path / "x.safetensors", tensors, "detector", changed)
            try:
                load_detector(tmp_path / "x.safetensors", "cpu")
            except CheckpointError as e:
                assert "x.safetensors" in str(e) and "\n" not in str(e)
