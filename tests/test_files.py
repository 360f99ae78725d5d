"""Files that are not ours stay, and files with foreign content are refused."""

import contextlib
import copy
import csv
import errno
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import TINY
from torch import nn
from torchvision.models import resnet18

from mudenet import cli_train
from mudenet.cli import main
from mudenet.core import DataError, load_tensors, remove_parts, save_tensors, storage_error
from mudenet.engine import fold
from mudenet.images import read_image
from mudenet.inference import load_detector
from mudenet.loop import RUN_FILES


def test_only_left_overs_of_a_run_are_removed(tmp_path):
    ours = [
        tmp_path / f".{n}.4711.part"
        for n in ("record.json", "detector.safetensors", "train.state.safetensors")
    ]
    theirs = [tmp_path / n for n in (".movie.mkv.part", ".notes.12.part", ".record.json.part")]
    for p in ours + theirs:
        p.write_text("x")
    folder = tmp_path / ".report.html.4711.part"
    folder.mkdir()
    remove_parts(tmp_path / n for n in RUN_FILES)
    assert sorted(tmp_path.iterdir()) == sorted([*theirs, folder])


def test_postscript_under_an_image_suffix_is_refused(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="x.png.*no known image format"):
        read_image(path)


@pytest.mark.parametrize(
    "make", [resnet18, lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())]
)
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


OPTIONS = [*TINY, "--distill.steps=1", "--train.steps=1", "--preset=paper"]


def pixels(seed, shape=(40, 50, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def put(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(seed)).save(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A detector that has learned nothing, and its images."""
    top = tmp_path_factory.mktemp("files")
    for k in range(6):
        put(top / f"part/train/good/{k}.png", k)
    for k in range(2):
        put(top / f"part/test/good/{k}.png", 10 + k)
        put(top / f"part/test/bad/{k}.png", 20 + k)
    assert main(["train", "--root", str(top / "part"), "--out", str(top / "runs"), *OPTIONS]) == 0
    return next(top.rglob("detector.safetensors")).parent


def predict(run, images, out, *more):
    return main(["predict", str(run), str(images), "--out", str(out), "--device=cpu", *more])


def table(out):
    return {r["image"]: r for r in csv.DictReader((out / "predictions.csv").read_text().splitlines())}


def one_line(capsys, *says):
    """The error of a command: one line that says these things."""
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert err.startswith("mudenet: error: ") and all(s in err for s in says), err


def test_a_checkpoint_names_no_place(run, tmp_path, monkeypatch, capsys):
    """A stranger's detector that names folders reads and writes nowhere unless it is told so."""
    tensors, meta = load_tensors(run / "detector.safetensors", "detector")
    del meta["kind"], meta["schema"], meta["sha256"]
    away = tmp_path / "away"
    meta["config"] |= dict(
        dataset="synthetic", out=str(away), root=str(run.parents[3] / "part"), teacher="x.safetensors"
    )
    meta["config"]["backbone"]["weights"] = str(away / "r18.pth")
    save_tensors(tmp_path / "stranger.safetensors", tensors, "detector", meta)
    monkeypatch.chdir(tmp_path)
    config = load_detector(tmp_path / "stranger.safetensors", "cpu").config
    assert config.out == Path("runs")
    assert config.root is None
    assert config.teacher is None
    assert config.backbone.weights == "r18.pth"
    assert main(["evaluate", "stranger.safetensors", "--device=cpu"]) == 2
    one_line(capsys, "--root FOLDER")
    assert [p.name for p in tmp_path.iterdir()] == ["stranger.safetensors"]


@pytest.mark.parametrize("name", ["record.json", "report.html"])
def test_evaluate_overwrites_its_own_files_only(run, tmp_path, capsys, name):
    (tmp_path / name).write_text("somebody's")
    assert main(["evaluate", str(run), "--out", str(tmp_path)]) == 2
    one_line(capsys, name, "not written by this program")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "somebody's"
    (tmp_path / name).unlink()
    for _ in ("written", "overwritten"):
        assert main(["evaluate", str(run), "--out", str(tmp_path)]) == 0


def test_predict_overwrites_its_own_files_only(run, tmp_path, capsys):
    images = put(tmp_path / "images/a.png").parent
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "predictions.csv").write_text("date,price\n")
    put(tmp_path / "mixed/maps/a.png")
    for out, text in ((theirs, "not written by this program"), (tmp_path / "mixed", "maps is there")):
        assert predict(run, images, out) == 2
        one_line(capsys, text)
        assert len(list(out.rglob("*.*"))) == 1
    for _ in ("written", "overwritten"):
        assert predict(run, images, tmp_path / "ours") == 0


def test_results_do_not_become_images(run, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(run.parents[3] / "part", part)
    refused = {
        part / "test": "folder of the images",
        part / "test/bad/found": "a part of a data set",
        "": "--out is empty",
    }
    for out, text in refused.items():
        assert predict(run, part / "test", out) == 2
        one_line(capsys, text)
    images = put(tmp_path / "loose/a.png").parent
    for out in ("first", "second", "first"):  # inside the folder, which is asked for again
        assert predict(run, images, images / out) == 0
        assert list(table(images / out)) == ["a.png"]


def test_left_overs_of_a_killed_predict_are_removed(run, tmp_path):
    images, out = put(tmp_path / "images/a.png").parent, tmp_path / "out"
    assert predict(run, images, out) == 0
    ours = [out / "maps/.a.png.tiff.4711.part", out / "pictures/.a.png.png.4711.part"]
    theirs = [out / "maps/.b.png.tiff.4711.part", out / ".notes.1.part"]
    for p in ours + theirs:
        p.write_text("x")
    assert predict(run, images, out) == 0
    assert not any(p.exists() for p in ours)
    assert all(p.exists() for p in theirs)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, pipes, 255 bytes a name")
def test_files_of_any_name_and_kind(run, tmp_path, capsys):
    """Names of any bytes are read and shown. Pipes, sockets and links that lead nowhere are passed by."""
    images, out = tmp_path / "images", tmp_path / "out"
    no_text, escape, long = os.fsdecode(b"teil_\xe4.png"), "a\x1b[2Jb.png", "z" * 250 + ".png"
    for name in (no_text, escape, long):
        put(images / "a.png").rename(images / name)
    os.mkfifo(images / "pipe.png")
    socket.socket(socket.AF_UNIX).bind(os.path.relpath(images / "socket.png"))
    (images / "loop.png").symlink_to("loop.png")
    (images / "gone.png").symlink_to("nowhere.png")
    assert predict(run, images, out) == 0
    said = capsys.readouterr().out
    assert "2 broken links, 2 no regular files" in said
    assert "\x1b" not in said
    found = table(out)
    assert set(found) == {r"teil_\udce4.png", escape, long}
    assert not any(row["error"] for row in found.values())
    assert len(list((out / "maps").iterdir())) == 3
    assert len(list((out / "pictures").iterdir())) == 3

    (images / escape).write_text("no image")
    assert predict(run, images, out) == 2
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert r"a\x1b[2Jb.png cannot be read" in said

    assert predict(run, images / "pipe.png", out) == 2
    assert "pipe.png is no regular file" in capsys.readouterr().err
    assert predict(run, images, "a\0b") == 2
    one_line(capsys, "NUL")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_training_on_names_that_are_no_text(tmp_path):
    for k in range(4):
        put(tmp_path / "part/train/good" / os.fsdecode(b"\xe4%d.png" % k), k)
        put(tmp_path / "part/test/good" / os.fsdecode(b"\xe4%d.png" % k), k)
    assert main(["train", "--root", str(tmp_path / "part"), "--out", str(tmp_path / "runs"), *OPTIONS]) == 0
    folder = next(tmp_path.rglob("detector.safetensors")).parent
    assert main(["evaluate", str(folder)]) == 0
    record = json.loads((folder / "record.json").read_text())
    assert os.fsencode(record["scores"][0]["image"]) == b"test/good/\xe40.png"


def test_a_map_that_cannot_be_written_costs_that_map(run, tmp_path, monkeypatch, capsys):
    for k in range(3):
        put(tmp_path / f"images/{k}.png", k)
    real = cli_train._write_prediction

    def failing(p, *args):
        if p.name == "1.png":
            raise storage_error(Path("1.png.tiff"), OSError(errno.EACCES, "Permission denied"))
        real(p, *args)

    monkeypatch.setattr(cli_train, "_write_prediction", failing)
    assert predict(run, tmp_path / "images", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "1 of 3 images could not be scored or drawn" in err
    assert "Free some space" not in err
    rows = table(tmp_path / "out")
    assert all(row["score"] for row in rows.values())
    assert [name for name, row in rows.items() if row["error"]] == ["1.png"]


@pytest.mark.parametrize("page", ["cp437", "cp932", "latin-1", "ascii"])
def test_a_console_of_another_code_page(run, page, monkeypatch):
    for command in (["evaluate", str(run)], ["train", "--help"], ["assumptions"]):
        console = io.TextIOWrapper(io.BytesIO(), encoding=page, errors="strict")
        with monkeypatch.context() as m:
            m.setattr(sys, "stdout", console)
            with contextlib.suppress(SystemExit):
                assert main(command) == 0
            console.flush()
        assert len(console.buffer.getvalue().decode(page)) > 100


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_a_closed_pipe_is_no_fault():
    code = "import sys; from mudenet.cli import main; sys.exit(main(['assumptions']))"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.close()
    assert child.stderr.read() == b""
    assert child.wait() == 141


def holding(folder):
    """Another process that holds a folder until it is killed."""
    code = f"""
import time
from mudenet.core import locked
with locked({str(folder)!r}):
    print(flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    other.stdout.readline()
    return other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_second_run_is_told_of_the_first(run, tmp_path, capsys):
    """A folder in use is refused, with the process that uses it. One that is killed keeps nothing."""
    images = put(tmp_path / "images/a.png").parent
    other = holding(tmp_path / "out")
    assert predict(run, images, tmp_path / "out") == 2
    one_line(capsys, f"another run uses {tmp_path / 'out'} (process {other.pid}, since ")
    other.kill()
    other.wait()
    assert predict(run, images, tmp_path / "out") == 0


def test_an_image_of_more_pixels_than_usual(run, tmp_path, monkeypatch, capsys):
    put(tmp_path / "images/a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # 40 × 50 are more than twice as many
    assert predict(run, tmp_path / "images", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert "a.png: Image size" in err
    assert "set MUDENET_MEGAPIXELS" in err
    monkeypatch.setenv("MUDENET_MEGAPIXELS", "0.002")
    assert predict(run, tmp_path / "images", tmp_path / "out") == 0


def part_of(root, good=6, bad=2, mask=None):
    for k in range(good):
        put(root / f"train/good/{k}.png", k)
    for k in range(bad):
        put(root / f"test/good/{k}.png", 50 + k)
        put(root / f"test/hole/{k}.png", 60 + k)
    if mask is not None:
        (root / "ground_truth/hole").mkdir(parents=True)
        for k in range(bad):
            Image.fromarray(mask).save(root / f"ground_truth/hole/{k}_mask.png")
    return root


def checked(root, capsys, code=0):
    assert main(["data", "check", str(root)]) == code
    said = capsys.readouterr()
    return said.out + said.err


def test_data_check_says_what_is_left_out(tmp_path, capsys):
    root = part_of(tmp_path / "part")
    put(root / "train/good/lot/1.png")
    put(root / "test/@eaDir/x.png")
    (root / "train/good/a.jfif").write_text("")
    said = checked(root, capsys)
    left_out = "left out: 1 images in folders below it, 1 of another type (.jfif)"
    assert f"{root / 'train' / 'good'}: {left_out}" in said
    assert "1 held-out image gives the threshold: expect 50 % of good parts above it" in said


@pytest.mark.parametrize("good", [0, 1, 2])
def test_three_nominal_images_are_the_least(tmp_path, capsys, good):
    root = part_of(tmp_path / "part", good)
    (root / "train/good").mkdir(parents=True, exist_ok=True)
    says = "at least three are needed" if good else "holds no image"
    assert says in checked(root, capsys, 2)


ALPHA = np.dstack([np.full((40, 50, 3), 255, np.uint8), np.zeros((40, 50), np.uint8)])
MASKS = dict(
    inverted=(255 - 255 * np.eye(40, 50, dtype=np.uint8), "marks 98 % of its image: is it inverted?"),
    alpha=(ALPHA, "marks all of its image: its shape seems to be in its alpha channel"),
)


@pytest.mark.parametrize("kind", MASKS)
def test_masks_that_mark_most_of_their_image_are_noted(tmp_path, capsys, kind):
    mask, text = MASKS[kind]
    assert checked(part_of(tmp_path / "part", mask=mask), capsys).count(text) == 2


@pytest.mark.parametrize("new", ["train/ok", "Train", "train/Good", "train/normal"])
def test_names_that_people_use_are_named_with_the_rename(tmp_path, capsys, new):
    root = part_of(tmp_path / "part")
    (root / ("train/good" if "/" in new else "train")).rename(root / new)
    found = root / new if "/" in new else root / new / "good"
    assert f"{found}: rename it to train/good" in checked(root, capsys, 2)


@pytest.mark.parametrize("name", ["0_GT.png", "0_gt.png", "mask_0.png"])
def test_masks_of_other_names_are_named_with_the_rename(tmp_path, capsys, name):
    root = part_of(tmp_path / "part", bad=1, mask=np.eye(40, 50, dtype=np.uint8) * 255)
    (root / "ground_truth/hole/0_mask.png").rename(root / "ground_truth/hole" / name)
    assert f"There is {name}: rename it to 0_mask.png" in checked(root, capsys, 2)


def test_visa_names_an_image_once(tmp_path, capsys):
    rows = ["object,split,label,image,mask"]
    for k in (0, 1, 2, 3, 4, 0):
        image = f"candle/Data/Images/Normal/{k}.png"
        put(tmp_path / "visa" / image, k)
        rows.append(f"candle,{'test' if k == 4 else 'train'},normal,{image},")
    (tmp_path / "visa/split_csv").mkdir()
    (tmp_path / "visa/split_csv/1cls.csv").write_text("\n".join(rows))
    said = checked(tmp_path / "visa", capsys, 2)
    assert "1cls.csv, line 7: the image candle/Data/Images/Normal/0.png is in line 2 already" in said


def test_changed_images_are_said(run, tmp_path, capsys):
    shutil.copytree(run.parents[3] / "part", tmp_path / "part")
    put(tmp_path / "part/train/good/0.png", 99)
    command = ["evaluate", str(run), "--root", str(tmp_path / "part"), "--out", str(tmp_path / "out")]
    for _ in ("once", "again"):
        assert main(command) == 0
    note = json.loads((tmp_path / "out/record.json").read_text())["note"]
    assert note.count("not those that the detector was trained on") == 1  # it is not said twice


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="POSIX permissions")
def test_what_may_not_be_read_is_one_line(run, tmp_path):
    """As an ordinary user: a folder, a file and a configuration without permissions."""
    tmp_path.chmod(0o755)
    for p in tmp_path.parents:
        if p.is_relative_to(tempfile.gettempdir()) and p != Path(tempfile.gettempdir()):
            p.chmod(0o755)
    root = part_of(tmp_path / "part")
    (root / "train").chmod(0)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    (tmp_path / "mine.yaml").chmod(0)
    code = """
import os, sys
import mudenet.data, mudenet.evaluation, mudenet.inference  # before they cannot be read
from mudenet.cli import main, make_parser
make_parser("data").parse_args(["data", "show", "x"])
make_parser("train").parse_args(["train"])
if os.geteuid() == 0:
    os.setuid(65534)
sys.exit(main())
"""
    train = ["train", "--root", root, "--config", tmp_path / "mine.yaml"]
    for command, name in (["data", "check", root], "train"), (train, "mine.yaml"):
        words = [sys.executable, "-c", code, *map(str, command)]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert name in done.stderr
        assert "ermission" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) <= 2
    (root / "train").chmod(0o755)


WIDE = dict(
    twelve_bits=("png", np.uint16, 16, "hold no value above 4095"),
    eight_in_32=("tif", np.int32, 1, "hold no value above 255"),
    whole=("png", np.uint16, 257, ""),
)


@pytest.mark.parametrize("kind", WIDE)
def test_white_of_images_that_use_little_of_their_range_is_noted(tmp_path, capsys, kind):
    suffix, dtype, factor, text = WIDE[kind]
    root = part_of(tmp_path / "part", good=0)
    for k in range(4):
        (root / "train/good").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(k)[..., 0].astype(dtype) * factor).save(root / f"train/good/{k}.{suffix}")
    said = checked(root, capsys)
    noted = "that is taken for white" in said
    assert noted == bool(text)
    assert text in said


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_a_second_training_is_told_of_the_first(run, tmp_path, capsys):
    folder = tmp_path / "folder" / "part" / run.name
    other = holding(folder)
    command = ["train", "--root", str(run.parents[3] / "part"), "--out", str(tmp_path), *OPTIONS]
    assert main(command) == 2
    one_line(capsys, f"another run uses {folder} (process {other.pid}, since ")
    other.kill()
    other.wait()
    assert main(command) == 0
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("text", ["", "epoch,step", "epoch,seconds\n1,x\n", "\udce4"])
def test_a_log_that_was_edited_costs_no_record(run, tmp_path, text):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/train.csv").write_text(text, errors="surrogateescape")
    (tmp_path / "run/config.yaml").write_text("")
    assert main(["evaluate", str(tmp_path / "run"), "--root", str(run.parents[3] / "part")]) == 0
    assert (tmp_path / "run/record.json").exists()
