"""A sweep refuses what cannot be compared before anything runs, its files hold every setting in the
order given, and its command goes on where it was killed."""

import csv
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys

import pytest
from tiny import TINY

from mudenet.sweep import plan_sweep, sweep_csv, sweep_path, sweep_table, swept
from mudenet.cli import main
from mudenet.config import load_config
from mudenet.core import ConfigError
from mudenet.synthetic import write_product_line


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    top = tmp_path_factory.mktemp("sweep")
    line = write_product_line(top / "line", size=64, train=6, validation=2, good=2, structural=2, logical=2)
    few_steps = dict(distill=dict(steps=2), train=dict(steps=2))
    return load_config("tiny", tree=dict(few_steps, root=str(line), out=str(top / "runs"), device="cpu"))


@pytest.mark.parametrize(
    ("what", "values", "message"),
    [
        ("a field that does not exist", {"train.lrr": [1, 2]}, "Did you mean 'train.lr'"),
        ("a section", {"train": [1, 2]}, "there is no field 'train'"),
        ("an impossible value", {"data.image_size": [64, 50]}, "data.image_size=50 must be a multiple of 32"),
        ("a field of the whole sweep", {"out": ["a", "b"]}, "give --out once"),
        ("a field that is only noted", {"train.save_minutes": [1, 2]}, "nothing to compare"),
        ("epochs under steps", {"train.epochs": [1, 2]}, "train.epochs is ignored under train.steps=2"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_runs(config, what, values, message):
    with pytest.raises(ConfigError, match=message):
        swept(config, values)
    assert not config.out.exists()


def test_another_sweep_has_another_file_and_more_seeds_have_the_same(config):
    rates, more_rates = {"train.lr": [0.1, 0.2]}, {"train.lr": [0.1, 0.2, 0.3]}
    one = sweep_path(plan_sweep(config, rates, (0,)))
    assert one == sweep_path(plan_sweep(config, rates, (0, 1)))
    assert one != sweep_path(plan_sweep(config, more_rates, (0,)))


def test_tables_keep_the_order_given_and_say_what_is_missing():
    metrics = dict(image_auroc=dict(mean=0.5, low=0.25, high=0.75))
    rows = [
        dict(setting="lr=0.2", seeds=[0, 1], metrics=metrics, losses=dict(structural=0.125)),
        dict(setting="lr=0.1", seeds=[], metrics={}, losses={}),
    ]
    runs = [
        dict(variant="lr=0.1", seed=0, error="DataError:\n  why"),
        dict(variant="lr=0.2", seed=0, error=""),
    ]
    record = dict(values={"train.lr": [0.2, 0.1]}, rows=rows, runs=runs, seeds=[0, 1], note="Oracle.")
    table = sweep_table(record).splitlines()
    assert table[2] == "| lr=0.2 | 2 | 0.5000 [0.2500, 0.7500] | 0.125 |"
    assert table[3] == "| lr=0.1 | 0 | – | – |"
    assert "- lr=0.1 seed 0: DataError: why" in table
    lines = list(csv.DictReader(io.StringIO(sweep_csv(record))))
    assert [(line["train.lr"], line["what"], line["mean"]) for line in lines] == [
        ("0.2", "image_auroc", "0.5"),
        ("0.2", "loss_structural", "0.125"),
    ]


SHORT = [
    *TINY,
    "--distill.steps=4",
    "--train.steps=6",
    "--train.save_minutes=0.0001",  # a state after every step
    "--seeds=1",
    "--threads=1",
]
# A process that sends itself SIGKILL once the first state of stage 2 is in its place.
KILLED = """
import os, signal, sys
from mudenet.cli import main
replace = os.replace
def replacing(part, path):
    replace(part, path)
    here = os.environ["OUT"] in str(path)  # and not in the folder where a step is measured
    if here and str(path).endswith("train.state.safetensors"): os.kill(os.getpid(), signal.SIGKILL)
os.replace = replacing
sys.exit(main())
"""
PLAIN = "import sys; from mudenet.cli import main; sys.exit(main())"


def command(config, out, *words):
    """The words of a sweep on the fixture's line."""
    return ["sweep", *words, "--root", str(config.root), "--out", str(out), *SHORT]


def process(code, words):
    """The same in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OUT": words[words.index("--out") + 1]}
    return subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True)


def record(out):
    """The only record of a sweep in a folder."""
    (path,) = out.glob("sweep-line-*.json")
    assert path.with_suffix(".md").read_text().startswith("| setting | seeds |")
    return json.loads(path.read_text())


def test_a_second_sweep_goes_on_from_the_first(config, tmp_path, capsys):
    assert main(command(config, tmp_path, "train.lr=0.001,0.002")) == 0
    first = record(tmp_path)
    capsys.readouterr()
    assert main(command(config, tmp_path, "train.lr=0.002,0.004")) == 0
    out = capsys.readouterr().out
    assert "| sweep | lr=0.002 | 0 | done | done | done |" in out
    assert (
        len(list(tmp_path.rglob("teacher.safetensors")))
        == len(list(tmp_path.rglob("detector.safetensors")))
        == 3
    )
    assert len(list(tmp_path.rglob("distill.csv"))) == 1
    records = [json.loads(p.read_text()) for p in tmp_path.glob("sweep-line-*.json")]
    (second,) = (r for r in records if r["values"] == {"train.lr": [0.002, 0.004]})
    assert second["rows"][0] == first["rows"][1]
    assert f"| {second['rows'][1]['setting']} | 1 |" in out


@pytest.mark.parametrize(
    "field, values, given", [("train.lr", "0.1,0.2", 0.5), ("seed", "0,1", 5), ("teacher", "a,b", "c")]
)
def test_a_field_is_swept_or_given_but_not_both(config, tmp_path, capsys, field, values, given):
    assert main(command(config, tmp_path, f"{field}={values}", f"--{field}={given}")) == 2
    assert f"--{field} is given, and the sweep takes several values of it" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX")
def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(config, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    values = ["train.lr=0.001,0.002", "inference.smoothing=0,2"]
    killed = process(KILLED, command(config, there, *values))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(there.rglob("detector.safetensors"))
    for out in (here, there):
        done = process(PLAIN, command(config, out, *values))
        assert done.returncode == 0, done.stderr
    assert "| sweep | lr=0.001, smoothing=0 | 0 | done | new | new |" in done.stdout  # stage 1 was kept
    assert record(there)["rows"] == record(here)["rows"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_the_command_line_makes_the_same_table_over_ray(config, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    values = ["train.lr=0.001,0.002", "inference.smoothing=0,2"]
    for out, more in ((here, []), (there, ["--ray", "local"])):
        done = process(PLAIN, command(config, out, *values) + more)
        assert done.returncode == 0, done.stderr
        assert "| lr=0.002, smoothing=2 | 1 |" in done.stdout
    assert (record(here)["where"]["ray"], record(there)["where"]["ray"]) == (False, True)
    assert record(there)["rows"] == record(here)["rows"]
