"""What more training buys: the quality of the `fast` settings after some steps, and the processor's minutes
that these take.

    python tools/measure_curve.py RUN [RUN …]

RUN: the folder of a finished run (`mudenet train --preset fast --train.steps N --seed K`); all of one
category and of one configuration but for steps and seed. Each of them has its own schedule of the learning
rate. The start and a step are timed anew, on one thread. Writes nbs/results/curve_CATEGORY.json.
"""

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from mudenet.config import load_config, override
from mudenet.identity import differences, portable
from mudenet.core import fingerprint, new_record, write_json
from mudenet.evaluation import measure, metric_values, score_images
from mudenet.job import ensure_detector, open_job
from mudenet.inference import load_detector

RESULTS = Path(__file__).parent.parent / "nbs" / "results"
TIMED = 20  # steps


def same_but(config):
    """What all runs must have in common."""
    return portable(override(config, {"seed": 0, "train.steps": 0, "evaluation.pictures": 0}))


def seconds(config, steps):
    """What a run of so many steps takes of the processor, from images to threshold."""
    with tempfile.TemporaryDirectory() as out:
        job = open_job(override(config, {"train.steps": steps, "out": out}))
        start = time.process_time()
        ensure_detector(job)
        return time.process_time() - start


def point(folder):
    """A finished run: its configuration and what is drawn of it."""
    config = load_config(None, [folder / "config.yaml"])
    job, detector = open_job(config), load_detector(folder / "detector.safetensors")
    results = measure(score_images(detector, job.category.test), job.category, job.config)
    found = dict(steps=config.train.steps, seed=config.seed, health=detector.about.get("health"))
    print(found, metric_values(dict(results=results)), flush=True)
    return job, found | dict(results=results)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    torch.set_num_threads(1)
    jobs, points = zip(*map(point, parser.parse_args().runs))
    first = jobs[0].config
    for job in jobs[1:]:
        if found := differences(same_but(first), same_but(job.config)):
            raise SystemExit(
                f"{job.folder} differs from {jobs[0].folder} in more than steps and seed: {found}"
            )
    start = seconds(first, 0)
    step = (seconds(first, TIMED) - start) / TIMED
    write_json(
        RESULTS / f"curve_{first.category}.json",
        new_record(
            "curve",
            dataset=first.dataset,
            category=first.category,
            config=same_but(first),
            made=dict(date=date.today().isoformat(), threads=torch.get_num_threads()),
            data=fingerprint(jobs[0].category.files, jobs[0].category.root),
            seconds=dict(start=round(start, 1), step=round(step, 3)),
            points=sorted(points, key=lambda p: (p["steps"], p["seed"])),
        ),
    )


if __name__ == "__main__":
    main()
