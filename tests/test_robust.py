"""Bad input and damaged files, each kind by its reproduction."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mudenet.core import CheckpointError, load_tensors, read_meta, save_tensors

META = dict(detector=dict(config={}, about={"threshold": 1.5}), teacher=dict(config={}), state=dict(step=3, log={}, identity={}))

def _tensors() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {"conv.weight": torch.randn(3, 2, generator=g), "bn.running_var": torch.rand(3, generator=g), "n": torch.tensor([7])}

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
        with pytest.raises(CheckpointError, match=r"x\.safetensors is damaged"): load_tensors(path, kind)

def test_changed_metadata_is_noticed(tmp_path):
    path = save_tensors(tmp_path / "x.safetensors", _tensors(), "detector", META["detector"])
    meta = read_meta(path, "detector") | {"about": {"threshold": 2.5}}
    save_file(load_file(path), path, {"mudenet": json.dumps(meta)})
    with pytest.raises(CheckpointError, match="is damaged"): load_tensors(path, "detector")

NO_NUMBERS = [("conv.weight", float("nan"), "NaN or infinite"), ("conv.weight", float("inf"), "NaN or infinite"),
              ("bn.running_var", -1.0, "negative variances")]

@pytest.mark.parametrize("name, value, text", NO_NUMBERS)
def test_numbers_that_cannot_be_computed_with_are_refused_without_a_digest_too(tmp_path, name, value, text):
    tensors = _tensors()
    tensors[name].view(-1)[0] = value
    header = dict(META["detector"], kind="detector", schema=1)
    save_file(tensors, tmp_path / "x.safetensors", {"mudenet": json.dumps(header)})
    with pytest.raises(CheckpointError, match=f"{name} holds {text}"): load_tensors(tmp_path / "x.safetensors", "detector")
