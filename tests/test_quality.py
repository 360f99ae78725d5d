"""The switches of `ComputeConfig` change how a detector is computed, not how well it detects: three of their settings, three seeds.

    python tests/test_quality.py nbs/results/compute_quality.json   # also writes the record that notebook 07a shows
"""
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mudenet.config import load_config, portable
from mudenet.core import new_record, write_json
from mudenet.evaluation import run_category
from mudenet.synthetic import write_product_line

PLAIN = dict(precision="float32", channels_last=False, fold=False, fused_distance=False, fused_adam=False, keep_memory=False)
VARIANTS = dict(plain=PLAIN, default={}, bfloat16=dict(precision="bfloat16"))
METRICS = ("image_auroc", "pixel_auroc", "au_pro")
SEEDS = (0, 1, 2)


def one(line, out, variant, seed, steps):
    """The configuration and the metrics of one variant with one seed."""
    import torch

    torch.set_num_threads(1)
    tree = dict(root=str(line), out=str(out / variant), device="cpu", seed=seed, backbone=dict(weights="random"),
                train=dict(steps=steps), evaluation=dict(pictures=0), compute=VARIANTS[variant])
    config = load_config("demo", tree=tree)
    _, record = run_category(config)
    found = {m: record["results"]["all"]["metrics"][m]["value"] for m in METRICS}
    return dict(variant=variant, seed=seed, run=record["run"], compute=portable(config)["compute"], metrics=found)


def quality_test(top, steps=900):
    """The record: every variant with every seed on the embedded product line, demonstration configuration with fewer steps."""
    line = write_product_line(top / "product_line")
    jobs = [(line, top, v, s, steps) for s in SEEDS for v in VARIANTS]
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")) as pool:
        runs = list(pool.map(one, *zip(*jobs)))
    return new_record("compute_quality", steps=steps, seeds=list(SEEDS), variants=VARIANTS, runs=runs)


def check(record):
    """No variant's mean is further from the plain loop's than the seeds are from each other."""
    def values(variant, metric):
        return np.array([r["metrics"][metric] for r in record["runs"] if r["variant"] == variant])

    for metric in METRICS:
        plain = values("plain", metric)
        assert len(plain) == len(SEEDS) and plain.mean() > 0.6, (metric, plain)  # something was learnt at all
        for variant in VARIANTS:
            other = values(variant, metric)
            spread = max(np.ptp(plain), np.ptp(other), 0.01)
            assert abs(other.mean() - plain.mean()) <= spread, (metric, variant, plain, other)


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
