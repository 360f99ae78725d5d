"""What more training buys: the quality of the `fast` settings after some steps, and the minutes that they took.

    python tools/measure_curve.py ROOT STEPS:SEED [STEPS:SEED …] [--size S] [--out FOLDER]

e.g. `0:0 100:0 100:1`. Each is a run of its own, with its own schedule of the learning rate. Writes nbs/results/curve_CATEGORY.json
after each run, and keeps what that file already holds of the same category and size.
"""

import argparse
import time
from datetime import date
from pathlib import Path

import torch

from mudenet.config import load_config
from mudenet.core import new_record, read_record, write_json
from mudenet.evaluation import ensure_detector, evaluate, metric_values, open_job, with_teacher

RESULTS = Path(__file__).parent.parent / "nbs" / "results"


def point(root, size, steps, seed, out):
    """One run: category, and what is drawn of it."""
    said = dict(
        preset="fast", root=root, out=out, seed=seed, data=dict(image_size=size), train=dict(steps=steps)
    )
    if (job := open_job(with_teacher(load_config(None, [], said), {}))).folder.exists():
        raise SystemExit(f"{job.folder} is there already: what it would take cannot be measured")
    start = time.perf_counter()
    detector = ensure_detector(job)
    seconds = time.perf_counter() - start
    record = evaluate(detector, job)
    trained = record["made"]["seconds"].get("train", 0.0)
    found = dict(
        steps=steps,
        seed=seed,
        seconds=round(seconds, 1),
        seconds_per_step=round(trained / steps, 3) if steps else None,
        threads=torch.get_num_threads(),
        health=record["health"],
        **metric_values(record),
    )
    return record, found


def keep(record, found, size):
    """Put a point into its category's file, beside those that are there."""
    file = RESULTS / f"curve_{record['category']}.json"
    before = read_record(file) if file.is_file() else {}
    same = before.get("data") == record["data"] and before.get("image_size") == size
    of = found["steps"], found["seed"]
    others = [p for p in before.get("points", []) if same and (p["steps"], p["seed"]) != of]
    write_json(
        file,
        new_record(
            "curve",
            dataset=record["dataset"],
            category=record["category"],
            image_size=size,
            made=dict(date=date.today().isoformat()),
            data=record["data"],
            config=record["config"],
            points=sorted([*others, found], key=lambda p: (p["steps"], p["seed"])),
        ),
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--out", default="runs/curve")
    args = parser.parse_args()
    for steps, seed in (map(int, r.split(":")) for r in args.runs):
        record, found = point(args.root, args.size, steps, seed, args.out)
        print(found, flush=True)
        keep(record, found, args.size)


if __name__ == "__main__":
    main()
