"""A sweep refuses what cannot be compared before anything runs, and its files hold every setting in the
order given.
"""

import csv
import io

import pytest

from mudenet.ablations import plan_sweep, sweep_csv, sweep_path, sweep_table, swept
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
