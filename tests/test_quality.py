"""The switches of `ComputeConfig` change how a detector is computed, not how well it detects: three of their
settings, three seeds.

    python tests/test_quality.py                 # the embedded product line, about a quarter of an hour
    python tests/test_quality.py FOLDER          # a category's folder, the fast preset: float32 and bfloat16

writes the record that notebook 22 shows: nbs/results/compute_quality.json or compute_quality-CATEGORY.json.
"""

import copy
import json
import multiprocessing
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mudenet.config import load_config
from mudenet.identity import portable
from mudenet.core import new_record, write_json
from mudenet.evaluation import run_category
from mudenet.job import ensure_detector, open_job
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
RESULTS = Path(__file__).parents[1] / "nbs/results"
# How a category of real parts is trained: whitened maps and modes of places enlarge rounding
FAST = dict(preset="fast", data=dict(image_size=128), train=dict(steps=300))


def one(base, tree, out, variant, seed):
    """The configuration and the metrics of one variant with one seed, and what training it took."""
    import torch

    torch.set_num_threads(1)
    own = dict(out=str(out / variant), device="cpu", seed=seed, compute=VARIANTS[variant])
    config = load_config(base, tree=dict(tree, evaluation=dict(pictures=0), **own))
    began = time.process_time()
    ensure_detector(open_job(config))
    spent = time.process_time() - began
    _, record = run_category(config)
    found = {m: record["results"]["all"]["metrics"][m]["value"] for m in METRICS}
    about = dict(run=record["run"], compute=portable(config)["compute"])
    return dict(variant=variant, seed=seed, **about, seconds=round(spent, 1), metrics=found)


def quality_record(base, tree, top, variants=VARIANTS, workers=None):
    """Every variant with every seed on one category; `base` is a shipped configuration, or none."""
    jobs = [(base, tree, top, v, s) for s in SEEDS for v in variants]
    with ProcessPoolExecutor(
        workers or min(len(jobs), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        runs = list(pool.map(one, *zip(*jobs)))
    about = dict(steps=tree["train"]["steps"], seeds=list(SEEDS), variants={v: VARIANTS[v] for v in variants})
    return new_record("compute_quality", category=Path(tree["root"]).name, **about, runs=runs)


def quality_test(top, steps=900):
    """The record of the embedded product line, demonstration configuration with fewer steps."""
    line = write_product_line(top / "product_line")
    return quality_record("tiny", dict(root=str(line), train=dict(steps=steps)), top)


def check(record):
    """No variant's mean is further from the first one's than the first one's seeds are from each other, or
    than 0.01.
    """

    def values(variant, metric):
        return np.array([r["metrics"][metric] for r in record["runs"] if r["variant"] == variant])

    first = next(iter(record["variants"]))
    for metric in METRICS:
        plain = values(first, metric)
        assert len(plain) == len(SEEDS) and plain.mean() > 0.6, (metric, plain)  # something was learnt at all
        assert np.ptp(plain) < 0.05, (metric, plain)  # seeds further apart would excuse anything
        for variant in record["variants"]:
            other = values(variant, metric)
            assert len(other) == len(SEEDS), (metric, variant, other)
            far = abs(other.mean() - plain.mean())
            assert far <= max(np.ptp(plain), 0.01), (metric, variant, plain, other)


@pytest.fixture
def committed():
    return json.loads((RESULTS / "compute_quality.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", sorted(RESULTS.glob("compute_quality*.json")), ids=lambda f: f.stem)
def test_the_committed_records(file):
    check(json.loads(file.read_text(encoding="utf-8")))


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


def main(folder=None):
    with tempfile.TemporaryDirectory() as top:
        if folder is None:
            record, name = quality_test(Path(top)), "compute_quality"
        else:
            tree = dict(FAST, root=str(Path(folder).resolve()))
            record = quality_record(None, tree, Path(top), ("default", "bfloat16"), workers=1)
            name = f"compute_quality-{record['category']}"
    write_json(RESULTS / f"{name}.json", record)
    for r in record["runs"]:
        print(r["variant"], r["seed"], r["seconds"], r["metrics"])
    check(record)


if __name__ == "__main__":
    main(*sys.argv[1:])
