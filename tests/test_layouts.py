"""Layouts of other data sets, each in a small copy, from the command line: recognised, read, or refused."""

import json

import pytest
from PIL import Image

from mudenet.cli import main


def write(root, marked=(), plain=()):
    """Images of 12×10 pixels: masks are white, all else is grey."""
    for names, value in ((plain, 120), (marked, 255)):
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (12, 10), value).save(root / name)


def mvtec_ad_2(root):
    write(
        root / "can",
        ["test_public/ground_truth/bad/000_regular_mask.png"],
        [
            *(f"train/good/{i}.png" for i in range(5)),
            "validation/good/0.png",
            "test_public/good/0.png",
            "test_public/bad/000_regular.png",
            "test_private/000.png",
            "test_private_mixed/000.png",
        ],
    )


def btad(root):
    write(
        root / "01",
        ["ground_truth/ko/7.png"],
        [*(f"train/ok/{i}.bmp" for i in range(6)), "test/ok/1.bmp", "test/ko/7.bmp"],
    )


def mpdd(root):
    write(
        root / "tubes",
        ["ground_truth/anomalous/000_mask.png"],
        [*(f"train/good/{i:03d}.png" for i in range(6)), "test/good/000.png", "test/anomalous/000.png"],
    )


def dagm(root):
    write(
        root / "Class1",
        ["Train/Label/0006_label.PNG", "Test/Label/0008_label.PNG"],
        [*(f"Train/000{i}.PNG" for i in range(1, 7)), "Test/0007.PNG", "Test/0008.PNG"],
    )


def kolektor_sdd2(root):
    write(
        root,
        ["train/10009_GT.png", "test/20001_GT.png"],
        [*(f"train/1000{i}.png" for i in (1, 2, 3, 4, 9)), "test/20000.png", "test/20001.png"],
    )
    for name in (*(f"train/1000{i}_GT.png" for i in (1, 2, 3, 4)), "test/20000_GT.png"):
        Image.new("L", (12, 10), 0).save(root / name)


def real_iad(root):
    good, bad = "OK/S000{0}/mint_000{0}_OK_C1.jpg", "NG/AK/S0009/mint_0009_NG_AK_C1"
    entry = dict(category="mint", anomaly_class="OK", mask_path=None)
    train = [dict(entry, image_path=good.format(i)) for i in range(5)]
    test = [
        dict(entry, image_path=good.format(5)),
        dict(entry, anomaly_class="AK", image_path=f"{bad}.jpg", mask_path=f"{bad}.png"),
    ]
    write(root / "mint", [f"{bad}.png"], [e["image_path"] for e in train + test])
    (root / "realiad_jsons").mkdir()
    lists = dict(meta=dict(prefix="mint/", normal_class="OK"), train=train, test=test)
    (root / "realiad_jsons" / "mint.json").write_text(json.dumps(lists))


def anomalib(root):
    write(
        root / "toy",
        ["mask/crack/5.png"],
        [*(f"good/{i}.png" for i in range(5)), "held/1.png", "crack/5.png"],
    )
    (root / "toy" / "anomalib.yaml").write_text(
        "data:\n  class_path: anomalib.data.Folder\n  init_args:\n    name: toy\n    normal_dir: good\n"
        "    abnormal_dir: crack\n    normal_test_dir: held\n    mask_dir: mask\n"
    )


COPIES = {
    "mvtec_ad_2": (mvtec_ad_2, "can: train 5, validation 1, test good 1, bad 1"),
    "btad": (btad, "01: train 5, validation 1, test good 1, ko 1"),
    "mvtec_ad": (mpdd, "tubes: train 5, validation 1, test good 1, anomalous 1"),
    "dagm": (dagm, "Class1: train 4, validation 1, test good 1, defect 1"),
    "kolektor_sdd2": (kolektor_sdd2, "train 3, validation 1, test good 1, defect 1"),
    "real_iad": (real_iad, "mint: train 4, validation 1, test good 1, AK 1"),
    "anomalib": (anomalib, "toy: train 4, validation 1, test good 1, crack 1"),
}


@pytest.mark.parametrize("layout", COPIES)
def test_a_copy_is_recognised_and_read(layout, tmp_path, capsys):
    make, says = COPIES[layout]
    make(tmp_path)
    assert main(["data", "check", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"layout {layout}\n" in out
    assert f"{says}; masks yes" in out
    assert "every file can be read and fits its image" in out


@pytest.mark.parametrize("layout", COPIES)
def test_a_mask_of_another_size_is_named(layout, tmp_path, capsys):
    COPIES[layout][0](tmp_path)
    files = [f for f in tmp_path.rglob("*.*") if f.suffix.lower() == ".png"]
    masks = [f for f in files if Image.open(f).getextrema() == (255, 255)]
    for mask in masks:
        Image.new("L", (9, 9), 255).save(mask)
    assert main(["data", "check", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert "1 problem" in err
    assert "9×9" in err
    assert any(str(mask) in err for mask in masks)


def test_a_folder_of_no_layout_is_told_what_was_looked_for(tmp_path, capsys):
    write(tmp_path, plain=["pictures/1.png"])
    assert main(["data", "show", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    looked_for = dict(
        anomalib="anomalib.yaml",
        mvtec_ad_2="test_public/ground_truth",
        btad="train/ok, test/ok",
        dagm="Train/Label",
        kolektor_sdd2="train/*_GT.png",
        real_iad="OK, ../realiad_jsons/",
        folder="train/good",
    )
    for layout, what in looked_for.items():
        assert f"  {layout}: missing" in err
        assert what in err
