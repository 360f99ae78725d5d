"""The switches of `ComputeConfig` change how a detector is computed, not how well it detects: three of their
settings, three seeds.

python tests/test_quality.py nbs/results/compute_quality.json   # also writes the record that notebook 07a
shows
"""

import copy
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mudenet.config import load_config
from mudenet.identity import portable
from mudenet.core import new_record, write_json
from mudenet.evaluation import run_category
from mudenet.synthetic import write_product_line

PLAIN = dict(
    precision="float32",
    channels_last=False,
    fold=False,
    fused_distance=False,
    fused_adam=False,
    keep_memory=False,
)
VARIANTS = dict(plain=PLAIN, default={}, bfloat16=dict(precision="bfloat16"))
METRICS = ("image_auroc", "pixel_auroc", "au_pro")
SEEDS = (0, 1, 2)


def one(line, out, variant, seed, steps):
    """The configuration and the metrics of one variant with one seed."""
    import torch

    torch.set_num_threads(1)
    tree = dict(
        root=str(line),
        out=str(out / variant),
        device="cpu",
        seed=seed,
        train=dict(steps=steps),
        evaluation=dict(pictures=0),
        compute=VARIANTS[variant],
    )
    config = load_config("tiny", tree=tree)
    _, record = run_category(config)
    found = {m: record["results"]["all"]["metrics"][m]["value"] for m in METRICS}
    return dict(
        variant=variant, seed=seed, run=record["run"], compute=portable(config)["compute"], metrics=found
    )


def quality_test(top, steps=900):
    """The record: every variant with every seed on the embedded product line, demonstration configuration
    with fewer steps.
    """
    line = write_product_line(top / "product_line")
    jobs = [(line, top, v, s, steps) for s in SEEDS for v in VARIANTS]
    with ProcessPoolExecutor(
        min(len(jobs), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        runs = list(pool.map(one, *zip(*jobs)))
    return new_record("compute_quality", steps=steps, seeds=list(SEEDS), variants=VARIANTS, runs=runs)


def check(record):
    """No variant's mean is further from the plain loop's than the plain loop's seeds are from each other, or
    than 0.01.
    """

    def values(variant, metric):
        return np.array([r["metrics"][metric] for r in record["runs"] if r["variant"] == variant])

    for metric in METRICS:
        plain = values("plain", metric)
        assert len(plain) == len(SEEDS) and plain.mean() > 0.6, (metric, plain)  # something was learnt at all
        assert np.ptp(plain) < 0.05, (metric, plain)  # seeds further apart would excuse anything
        for variant in VARIANTS:
            other = values(variant, metric)
            assert len(other) == len(SEEDS), (metric, variant, other)
            assert abs(other.mean() - plain.mean()) <= max(np.ptp(plain), 0.01), (
                metric,
                variant,
                plain,
                other,
            )


@pytest.fixture
def committed():
    return json.loads(
        (Path(__file__).parents[1] / "nbs/results/compute_quality.json").read_text(encoding="utf-8")
    )


def test_the_committed_record(committed):
    check(committed)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "bad", [lambda v: 0.0, lambda v: v - 0.1, lambda v: float("nan")], ids=["zero", "worse", "nan"]
)
def test_a_worse_variant_is_found(committed, variant, metric, bad):
    """Two of three seeds are spoiled, so that the variant's own spread is wide."""
    planted = copy.deepcopy(committed)
    for run in planted["runs"]:
        if run["variant"] == variant and run["seed"] != SEEDS[0]:
            run["metrics"][metric] = bad(run["metrics"][metric])
    with pytest.raises(AssertionError):
        check(planted)


@pytest.mark.slow
def test_switches_do_not_change_what_is_found(tmp_path):
    check(quality_test(tmp_path))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as top:
        record = quality_test(Path(top))
        write_json(sys.argv[1], record)
        for r in record["runs"]:
            print(r["variant"], r["seed"], r["metrics"])
        check(record)
