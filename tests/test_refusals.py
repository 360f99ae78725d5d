"""Bad input ends with 2 and a message that says the way out, and leaves nothing behind."""

import json
import shutil
import sys
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny import TINY

from mudenet.cli import main
from mudenet.synthetic import write_product_line

KINDS = dict(good=3, structural=6, logical=10)
SHORT = " ".join([*TINY, "--distill.steps=4", "--train.steps=6"])
TRAIN = f"train --root {{line}} --out {{bad}} {SHORT}"
BENCHMARK = f"benchmark --root {{line}} --out {{bad}} {SHORT}"

# a command line with names of places in braces, and what its message says; two bars part the words
REFUSED = [
    (f"{TRAIN} --category cabel", "cabel"),
    (f"{TRAIN} --train.epocs 3", "--train.epocs || Did you mean 'train.epochs'"),
    (f"{TRAIN} --train.lr -1", "train.lr=-1.0 must be above 0"),
    (f"{TRAIN} --data.image_size 100", "data.image_size=100 must be a multiple of 32"),
    (f"{TRAIN} --device cuda:7", "--device 'cuda:7' || --device auto"),
    (f"{TRAIN} --backbone.weights {{none}}", "none.pth || no such file"),
    (f"{TRAIN} --backbone.weights {{broken_weights}}", "broken.pth || cannot be read"),
    (
        f"{TRAIN} --model.width 16 --teacher {{teacher}}",
        "teacher.safetensors || model.width: 8 there, 16 here",
    ),
    (f"{TRAIN} --distill.steps 5 --teacher {{teacher}}", "distill.steps: 4 there, 5 here"),
    (f"{TRAIN} --inference.false_alarms 1", "inference.false_alarms=1.0 must lie between 0 and 1"),
    (
        "train --root {two} --out {bad} --train.steps 1",
        "holds 2 images, but at least three || validation/good",
    ),
    ("train --out {bad}", "--root"),
    ("benchmark --out {bad}", "--roots"),
    ("benchmark --roots {line} --categories lime --out {bad}", "--categories lime || Did you mean 'line'"),
    ("benchmark --roots {line} {nowhere} --out {bad}", "nowhere"),
    (f"{BENCHMARK} --backbone.weights {{none}}", "none.pth"),
    ("ablate A-2 --root {line} --out {bad}", "no assumption 'A-2'"),
    ("ablate A-016 --root {line} --out {bad} --values -1", "inference.smoothing"),
    ("ablate A-014 A-016 --root {line} --out {bad} --values 1", "--values"),
    ("bench train --rounds 0 --root {line} --out {bad}", "rounds || must be a whole number above 0"),
    ("benchmark --seeds 0 --root {line} --out {bad}", "seeds || must be a whole number above 0"),
    ("benchmark --threads -1 --root {line} --out {bad}", "threads || must be a whole number above 0"),
    ("ablate A-016 --seeds -4 --root {line} --out {bad}", "seeds || must be a whole number above 0"),
    (f"{TRAIN} --assume A-002=maximum", "A-002 can be A-002=avg, A-002=max"),
    (
        f"{TRAIN} --assume A-002=max --model.stem_pool max",
        "sets model.stem_pool, and so does --model.stem_pool",
    ),
    (f"{TRAIN} --assume A-002=max --assume A-002=avg", "model.stem_pool is set twice"),
    (f"{TRAIN} --assume A-010=no", "A-010 has no switch"),
    ("evaluate {run} --assume A-002=max", "here only inference and evaluation can change"),
    ("assumptions show", "show takes an entry"),
    ("assumptions show A-02", "Did you mean"),
    ("evaluate {junk}", "junk.safetensors is not a checkpoint"),
    ("predict {junk} {line} --out {bad}", "junk.safetensors is not a checkpoint"),
    ("predict {old} {line} --out {bad}", "old.safetensors has schema 0"),
    ("predict {torn} {line} --out {bad}", "torn.safetensors: its header is no JSON object"),
    ("predict {bare} {line} --out {bad}", "bare.safetensors: its header lacks config"),
    ("predict {teacher} {line} --out {bad}", "holds a 'teacher'"),
    ("predict {run} {empty} --out {bad}", "holds no image"),
    ("predict {run} {nowhere} --out {bad}", "nowhere: there is no such file"),
    ("data check {smaller}", "1 problem || 32"),
    (f"train --root {{smaller}} --out {{bad}} {SHORT}", "002 || 32"),
    (f"train --root {{other}} --out {{runs}} {SHORT}", "other images"),
    ("evaluate {run} --root {smaller} --out {bad}", "002 || 32"),
    ("evaluate {run} --model.width 8", "--model.width"),
    ("evaluate {run} --inference.smoothing 0", "inference.smoothing: 4.0 there, 0.0 here || --out"),
    ("evaluate {run} --evaluation.pro_limit 0.1", "evaluation.pro_limit || --out"),
    ("evaluate {run} --root {other}", "--out"),
    ("evaluate {run} --root {other} --inference.smoothing 0 --out {bad}", "may have been trained on"),
]


def header(path, text):
    """A safetensors file with some header of ours."""
    save_file({"x": torch.zeros(1)}, path, {"mudenet": text})
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Every place that the command lines above name."""
    top = tmp_path_factory.mktemp("refusals")
    line = write_product_line(top / "line", size=64, train=10, validation=3, **KINDS)
    other = write_product_line(top / "b" / "line", seed=3, size=64, train=10, validation=3, **KINDS)
    smaller = shutil.copytree(line, top / "smaller")
    mask = smaller / "ground_truth" / "logical_anomalies" / "002" / "000.png"
    Image.open(mask).resize((32, 32)).save(mask)
    (top / "empty").mkdir()
    (top / "two" / "train" / "good").mkdir(parents=True)  # none to hold out
    for f in sorted((line / "train" / "good").glob("*.png"))[:2]:
        shutil.copy(f, top / "two" / "train" / "good")
    (top / "broken.pth").write_bytes(b"no weights")
    (top / "junk.safetensors").write_text("no checkpoint")
    assert main(f"train --root {line} --out {top / 'runs'} {SHORT}".split()) == 0
    (run,) = (p.parent for p in (top / "runs").rglob("detector.safetensors"))
    return dict(
        line=line,
        other=other,
        smaller=smaller,
        runs=top / "runs",
        run=run,
        teacher=run / "teacher.safetensors",
        bad=top / "bad",
        none=top / "none.pth",
        nowhere=top / "nowhere",
        empty=top / "empty",
        two=top / "two",
        broken_weights=top / "broken.pth",
        junk=top / "junk.safetensors",
        old=header(top / "old.safetensors", json.dumps({"kind": "detector", "schema": 0})),
        torn=header(top / "torn.safetensors", '{"kind": "dete'),
        bare=header(top / "bare.safetensors", json.dumps({"kind": "detector", "schema": 1})),
    )


def refuses(places, capsys, command, says):
    """A command ends with 2, says what it should without a traceback, and leaves nothing and the run as it
    was.
    """
    before = {p: p.read_bytes() for p in places["runs"].rglob("*") if p.is_file()}
    try:
        code = main(command.format(**places).split())
    except SystemExit as e:
        code = e.code
    err = capsys.readouterr().err
    assert code == 2, err
    for words in says.split(" || "):
        assert words in err
    assert "Traceback" not in err
    assert not [p for p in places["bad"].rglob("*") if p.is_file()]
    assert {p: p.read_bytes() for p in places["runs"].rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("command, says", REFUSED, ids=lambda s: s.replace(SHORT, "…")[:70])
def test_bad_input_is_refused(places, capsys, command, says):
    refuses(places, capsys, command, says)


def test_a_cluster_without_its_extra(places, capsys):
    with mock.patch.dict(sys.modules, {"ray": None}):
        refuses(places, capsys, f"{BENCHMARK} --ray local", "mudenet[ray]")


def test_a_category_of_two_runs(places, capsys):
    twin = shutil.copytree(places["run"], places["run"].parent / "twin")
    refuses(places, capsys, f"evaluate {twin.parent}", f"holds 2 runs || {places['run'].name} || twin")
    shutil.rmtree(twin)
