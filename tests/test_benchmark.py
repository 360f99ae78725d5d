"""A benchmark on a local Ray cluster of two workers makes the sequential table, whatever is killed in the
middle of a run.
"""

import importlib.util
import logging
import os
import signal
import sys
import threading
import time
from dataclasses import fields

import pytest

from mudenet.ablations import ablate
from mudenet.sweep import plan_sweep, sweep
from mudenet.benchmark import benchmark, benchmark_table, choose_categories, plan
from mudenet.config import load_config, override
from mudenet.core import ConfigError, WeightsError
from mudenet.experiments import Here, Run
from mudenet.on_ray import OnRay
from mudenet.synthetic import write_product_line

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is POSIX"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two local workers of one CPU each."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    yield ray
    ray.shutdown()


def runs(top, out):
    """Two categories, two variants that share a teacher."""
    sizes = dict(size=64, train=10, validation=3, good=4, structural=4, logical=4)
    for name, seed in (("gears", 1), ("fuses", 2)):
        write_product_line(top / "plant" / name, seed=seed, **sizes)
    base = load_config(
        "tiny",
        tree=dict(
            dataset="mvtec_loco",
            category=None,
            out=str(top / out),
            device="cpu",
            data=dict(image_size=64),
            model=dict(channels=8, width=8),
            distill=dict(steps=20),
            train=dict(steps=60, save_minutes=1e-4),
            evaluation=dict(pictures=0),
        ),
    )
    configs = [override(base, {"root": str(r), "category": c}) for r, c in choose_categories([top / "plant"])]
    return plan(configs, 1, {"detached": {}, "joint": {"train.detach_autoencoder": False}})


def fragile(run):
    """The same run, whose first worker dies of SIGKILL once stage 2 has saved a state."""

    class Fragile(Run):  # a local class travels to the workers by value
        def perform(self, job, kept):
            mark, state = self.folder / "killed", self.folder / "train.state.safetensors"

            def die():
                while not state.exists():
                    time.sleep(0.01)
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

            if not mark.exists():
                threading.Thread(target=die, daemon=True).start()
            return Run.perform(self, job, kept)

    return Fragile(**{f.name: getattr(run, f.name) for f in fields(run)})


def test_a_killed_worker_costs_a_retry_and_not_the_table(cluster, tmp_path):
    alone = benchmark(runs(tmp_path, "alone"), tmp_path / "alone", Here(threads=1))
    first, *others = runs(tmp_path, "ray")
    planned = [fragile(first), *others]
    pool = OnRay("local", "cpu", threads=1)
    assert pool.slots == 2
    there = benchmark(planned, tmp_path / "ray", pool)
    pool.close()
    assert (first.folder / "killed").exists()
    assert benchmark_table(there) == benchmark_table(alone)
    assert [r["detector"] for r in there["results"]] == [r["detector"] for r in alone["results"]]
    # stage 1 was shared
    assert not any((r.folder / "distill.csv").exists() for r in planned if r.variant == "joint")
    assert cluster.is_initialized()  # a cluster that was there is left alone


def test_a_run_that_is_lost_does_not_take_the_one_that_waits_for_its_teacher_with_it(cluster, tmp_path):
    first, second = runs(tmp_path, "ray")[:2]
    assert second.teacher == first.folder
    pool = OnRay("local", "cpu", threads=1, retries=0)
    lost, kept = benchmark([fragile(first), second], tmp_path / "ray", pool)["results"]
    assert (first.folder / "killed").exists()
    assert lost["error"].startswith("WorkerCrashedError")
    assert not kept["error"] and kept["metrics"]


def test_what_a_cluster_cannot_give(cluster):
    with pytest.raises(ConfigError, match="--threads 99: no machine"):
        OnRay("local", "cpu", threads=99)


def test_weights_that_cannot_be_had_end_the_benchmark_before_the_first_run(cluster, tmp_path):
    planned = [r for r in runs(tmp_path, "none") if r.variant == "joint"]
    config = override(planned[0].config, {"backbone.weights": str(tmp_path / "none.pth")})
    with pytest.raises(WeightsError, match="none.pth"):
        OnRay("local", "cpu", threads=1).measure(config)


def test_an_ablation_on_a_cluster_is_the_one_that_is_made_here(cluster, tmp_path):
    """Runs of one detector form one task, and a variant waits for the teacher of another."""
    config = runs(tmp_path, "none")[0].config
    choices = {
        "detached": {},
        "joint": {"train.detach_autoencoder": False},
        "smooth": {"inference.smoothing": 2.0},
    }
    here, there = [override(config, {"out": str(tmp_path / name)}) for name in ("here", "there")]
    alone = ablate(here, choices, (0,), resamples=100, pool=Here(threads=1))
    assert (
        ablate(there, choices, (0,), resamples=100, pool=OnRay("local", "cpu", threads=1))["runs"]
        == alone["runs"]
    )
    assert len(list((tmp_path / "there").rglob("distill.csv"))) == 1


def test_a_sweep_on_a_cluster_is_the_one_that_is_made_here(cluster, tmp_path):
    config = runs(tmp_path, "none")[0].config
    values = {"train.detach_autoencoder": [True, False], "inference.smoothing": [0.0, 2.0]}
    rows = []
    for name, pool in (("here", Here(threads=1)), ("there", OnRay("local", "cpu", threads=1))):
        planned = plan_sweep(override(config, {"out": str(tmp_path / name)}), values, (0,), resamples=100)
        rows.append(sweep(planned, values, pool, priced={})["rows"])
    assert rows[0] == rows[1]
