"""Files that are not ours stay; files with foreign content are refused; folding gives the same and is safe in threads."""
import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from mudenet.core import DataError, remove_parts
from mudenet.engine import fold
from mudenet.images import read_image
from mudenet.loop import RUN_FILES

def test_only_left_overs_of_a_run_are_removed(tmp_path):
    ours = [tmp_path/f".{n}.4711.part" for n in ("record.json", "detector.safetensors", "train.state.safetensors")]
    theirs = [tmp_path/n for n in (".movie.mkv.part", ".notes.12.part", ".record.json.part")]
    for p in ours + theirs: p.write_text("x")
    folder = tmp_path/".report.html.4711.part"
    folder.mkdir()
    remove_parts(tmp_path/n for n in RUN_FILES)
    assert sorted(tmp_path.iterdir()) == sorted([*theirs, folder])

def test_postscript_under_an_image_suffix_is_refused(tmp_path):
    path = tmp_path/"x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="x.png.*no known image format"): read_image(path)

@pytest.mark.parametrize("make", [resnet18, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())])
def test_folded_gives_the_same_and_leaves_the_original(make):
    net = make().double().eval()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    before, x = copy.deepcopy(net.state_dict()), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    folded = fold(net)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    torch.testing.assert_close(folded(x), net(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
