"""Regions: the pixel threshold keeps its promise exactly, and masks, polygons and the file for other tools
say the same.
"""

import json

import numpy as np
import pytest
from PIL import Image

from mudenet.architecture import MuDeNet
from mudenet.cli import main
from mudenet.config import Config, override
from mudenet.core import DataError, read_meta, rng, save_tensors
from mudenet.decisions import rank_from_top
from mudenet.images import Prediction
from mudenet.inference import Detector, calibrate
from mudenet.regions import find_regions, label_regions, polygon_area, polygons, survival


def grown(grid, min_area):
    """`survival` the slow way: pixels join from the highest down, until a component is large enough."""
    parent, area = {}, {}

    def root(a):
        while parent[a] != a:
            a = parent[a]
        return a

    for flat in np.argsort(-grid, axis=None, kind="stable"):
        y, x = divmod(int(flat), grid.shape[1])
        parent[y, x], area[y, x] = (y, x), 1
        for near in ((y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if near in parent and root(near) != root((y, x)):
                area[root(near)] += area[root((y, x))]
                parent[root((y, x))] = root(near)
        if area[root((y, x))] >= min_area:
            return grid[y, x]


@pytest.mark.parametrize("min_area", [1, 2, 9, 40, 7 * 11])
def test_survival_is_what_growing_regions_gives(min_area):
    for k in range(15):
        grid = rng(0, "map", k).integers(0, 30, (7, 11)).astype(np.float32)  # with ties
        assert survival(grid, min_area) == grown(grid, min_area)


def inside(corners, points):
    """Which points (N, 2) a polygon holds: crossings of a ray are odd; on an edge, the pixel to its right and
    below.
    """
    x, y = points.T[:, :, None]
    (x0, y0), (x1, y1) = corners.T, np.roll(corners, -1, 0).T
    slanted = y0 != y1
    at = np.where(slanted, x0 + (y - y0) * (x1 - x0) / np.where(slanted, y1 - y0, 1), 0)
    return (((y0 <= y) != (y1 <= y)) & (x >= at)).sum(1) % 2 == 1


def drawn(many, size):
    """The pixels of an image (H, W) whose centres lie in one of the polygons."""
    centres = np.stack(np.meshgrid(np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5), -1).reshape(-1, 2)
    return np.any(
        [inside(np.asarray(q), centres) for q in many] or [np.zeros(len(centres), bool)], 0
    ).reshape(size)


MASKS = dict(
    all=np.ones((9, 13), bool),
    one=np.eye(9, 13, 4) * (np.arange(9) == 2)[:, None] > 0,
    corners=np.eye(9, 13) > 0,
    frame=np.pad(np.zeros((7, 11), bool), 1, constant_values=True),
    board=np.indices((9, 13)).sum(0) % 2 > 0,
    **{f"random{k}": rng(0, "mask", k).random((9, 13)) < k / 8 for k in range(1, 8)},
)


@pytest.mark.parametrize("name", MASKS)
def test_polygons_are_the_mask(name):
    mask = MASKS[name]
    found = polygons(mask)
    assert sum(map(polygon_area, found)) == mask.sum()
    assert (drawn(found, mask.shape) == mask).all()
    assert (sum(drawn([q], mask.shape).astype(int) for q in found) <= 1).all()  # none twice


def prediction(grid, size, levels=3):
    parts = rng(0, "parts").random((2, levels, grid.shape[0] // 2, grid.shape[1] // 2))
    return Prediction(
        name="a.png",
        score=float(grid.max()),
        label=True,
        threshold=0.0,
        map=np.zeros(size, np.float32),
        parts=parts,
        grid=grid,
    )


@pytest.mark.parametrize("size", [(32, 32), (50, 77), (96, 64), (31, 200), (150, 210), (20, 9), (1, 1)])
@pytest.mark.parametrize("level", [-9.0, 0.2, 0.9, 1.6, 9.0])
def test_regions_in_the_pixels_of_the_image(size, level):
    """Marked are the pixels that the polygons hold, in larger and smaller images; a region without a centre
    has a pixel.
    """
    from scipy.ndimage import gaussian_filter

    grid = (gaussian_filter(rng(0, "smooth").standard_normal((32, 32)), 1.5) * 5).astype(np.float32)
    p = prediction(grid, size)
    regions, mask = find_regions(p, level)
    assert (
        len(regions) == label_regions(grid, level).max()
        and mask.shape == size
        and mask.any() == bool(regions)
    )
    assert (drawn([q for r in regions for q in r.polygons], size) == mask).all()
    for r in regions:
        corners, (x, y, w, h) = np.concatenate(r.polygons), r.box
        assert [*corners.min(0), *np.ptp(corners, 0)] == [x, y, w, h] and w > 0 and h > 0
        assert x >= 0 and y >= 0 and x + w <= size[1] and y + h <= size[0]
        assert sum(map(polygon_area, r.polygons)) == r.area == drawn(r.polygons, size).sum()
        assert x < r.centroid[0] < x + w and y < r.centroid[1] < y + h and level < r.mean <= r.peak
        assert np.allclose(r.centroid, np.argwhere(drawn(r.polygons, size)).mean(0)[::-1] + 0.5)
    assert [r.peak for r in regions] == sorted((r.peak for r in regions), reverse=True)
    if level == -9.0:
        assert mask.all() and len(regions) == 1 and regions[0].box == (0, 0, *size[::-1])
    if level == 9.0:
        assert not regions


def test_the_branch_that_spoke_inside():
    grid = np.zeros((8, 8), np.float32)
    grid[5, 1] = grid[0, 7] = 1
    p = prediction(grid, (8, 8))
    p.parts[:] = 0
    # the strongest of all lies in no region
    p.parts[1, 1, 2, 0], p.parts[0, 2, 0, 3], p.parts[0, 0, 3, 3] = 1, 2, 9
    found = {r.box[:2]: (r.branch, r.level) for r in find_regions(p, 0.5)[0]}
    assert found == {(1, 5): ("logical", 2), (7, 0): ("structural", 3)}


PLAIN = {
    "data.image_size": 64,
    "model.channels": 4,
    "model.width": 4,
    "inference.smoothing": 1.0,
    "device": "cpu",
}


def picture(k, size=(64, 64)):
    small = Image.fromarray(rng(0, "picture", k).integers(90, 130, (4, 4, 3)).astype(np.uint8))
    return np.array(small.resize(size, Image.Resampling.BICUBIC))


def made(count=24, **fields):
    """A calibrated detector with tiny random networks, and its held-out images."""
    import torch

    config = override(Config(), {**PLAIN, **{f"inference.{k}": v for k, v in fields.items()}})
    detector, pixels = (
        Detector(MuDeNet(config.model, 64), config).to("cpu"),
        [picture(k) for k in range(count)],
    )
    held = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    calibrate(detector, held, held)
    return detector, pixels


@pytest.mark.parametrize("min_area", [1, 25])
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_held_out_images_keep_the_promise(min_area, rate):
    """As many of them are marked as have a larger value than the order statistic."""
    detector, pixels = made(min_area=min_area, false_alarms=rate, statistics_images="train")
    marked = [bool(detector.regions(p)[0]) for p in detector.predict(pixels)]
    assert sum(marked) == rank_from_top(rate, len(pixels)) - 1
    assert (detector.pixel_threshold == float(detector.threshold)) == (min_area == 1)


@pytest.mark.parametrize("min_area", [1, 25])
def test_new_good_parts_give_both_thresholds(min_area):
    detector, _ = made(min_area=min_area)
    fresh = [picture(1000 + k, (80, 60)) for k in range(30)]
    detector.recalibrate(fresh, false_alarms=0.1)
    marked = [bool(detector.regions(p)[0]) for p in detector.predict(fresh)]
    assert sum(marked) == rank_from_top(0.1, len(fresh)) - 1 == 2
    detector.recalibrate(fresh, threshold=0.75)  # a number that is insisted on holds for pixels too
    assert detector.pixel_threshold == float(detector.threshold) == 0.75


def test_by_command_line(tmp_path, capsys):
    detector, _ = made(min_area=8)
    file = detector.save(tmp_path / "d.safetensors")
    assert Detector.load(file).pixel_threshold == detector.pixel_threshold != float(detector.threshold)
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for k, name in enumerate(("a.png", "sub/b.jpg", "c.png")):
        pixels = picture(100 + k, (90, 70))
        if k != 2:
            pixels[20:40, 30:60] = (255, 0, 0)
        Image.fromarray(pixels).save(tmp_path / "in" / name, quality=95)
    argv = [
        "predict",
        str(file),
        str(tmp_path / "in"),
        "--out",
        str(tmp_path / "in" / "out"),
        "--device",
        "cpu",
        "--regions",
    ]
    for _ in range(2):  # what was written is not taken for images
        assert main(argv) == 0, capsys.readouterr().err
    out = tmp_path / "in" / "out"
    said = json.loads((out / "regions.json").read_text())
    assert (
        said["categories"] == [dict(id=1, name="anomaly")]
        and said["info"]["threshold"] == detector.pixel_threshold
    )
    assert [i["file_name"] for i in said["images"]] == ["a.png", "c.png", "sub/b.jpg"]
    assert f"{len(said['annotations'])} regions" in capsys.readouterr().out
    assert [a["id"] for a in said["annotations"]] == list(range(1, len(said["annotations"]) + 1))
    for i in said["images"]:
        mask = np.array(Image.open(out / "masks" / f"{i['file_name']}.png"))
        own = [a for a in said["annotations"] if a["image_id"] == i["id"]]
        assert mask.shape == (i["height"], i["width"]) == (70, 90) and mask.any() == bool(own)
        rings = [np.array(s).reshape(-1, 2) for a in own for s in a["segmentation"]]
        assert (drawn(rings, mask.shape) == (mask > 0)).all() and sum(a["area"] for a in own) == (
            mask > 0
        ).sum()
        for a in own:
            assert a["attributes"]["branch"] in ("structural", "logical") and a["attributes"]["level"] in (
                1,
                2,
                3,
            )
            assert a["score"] > said["info"]["threshold"] and a["category_id"] == 1 and a["iscrowd"] == 0
    assert {a["image_id"] for a in said["annotations"]} >= {1, 3}


def test_files_of_before(tmp_path, capsys):
    """They open and predict; regions are refused with the way out, and nothing is written."""
    detector, pixels = made()
    file = tmp_path / "old.safetensors"
    save_tensors(
        file,
        detector.state_dict(),
        "detector",
        {k: v for k, v in read_meta(detector.save(file), "detector").items() if k in ("config", "about")},
    )
    old = Detector.load(file)
    assert old.predict(pixels[0])[0].label == detector.predict(pixels[0])[0].label
    with pytest.raises(DataError, match="mudenet calibrate RUN IMAGES"):
        old.regions(old.predict(pixels[0])[0])
    Image.fromarray(pixels[0]).save(tmp_path / "a.png")
    assert (
        main(["predict", str(file), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--regions"])
        == 2
    )
    assert "mudenet calibrate RUN IMAGES" in capsys.readouterr().err and not (tmp_path / "out").exists()
