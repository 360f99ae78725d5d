"""How long `mudenet calibrate` takes for a few hundred good parts.

    python tools/time_calibrate.py RUN [--images 300] [--threads 1] [--rounds 1]

RUN: the folder of a run of `mudenet demo`. Good parts of its product line are drawn anew, and the run is
copied, so that it stays as it is. The whole program is timed, from its start to the new file. The load of the
machine stands beside the seconds, since others may be at work. Writes nbs/results/bench_calibrate.json.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from mudenet.config import load_config
from mudenet.core import new_record, write_json
from mudenet.synthetic import write_product_line

TARGET = Path(__file__).parent.parent / "nbs" / "results" / "bench_calibrate.json"
PROGRAM = "import sys; from mudenet.cli import main; sys.exit(main())"
RATE = 0.01  # that 99 images can promise


def processor():
    """Seconds of processor that programs which have ended used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def calibrated(run, parts, threads):
    """One calibration of a run: seconds by the clock, seconds of processor, load before and after."""
    argv = [sys.executable, "-c", PROGRAM, "calibrate", run, parts, "--false-alarms", RATE]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    load, begin, used = os.getloadavg()[0], time.perf_counter(), processor()
    subprocess.run([*map(str, argv), "--device", "cpu"], env=env, check=True)
    seconds, used = time.perf_counter() - begin, processor() - used
    loads = [round(x, 2) for x in (load, os.getloadavg()[0])]
    return dict(seconds=round(seconds, 2), processor=round(used, 2), load=loads)


def rounds(args):
    """The calibrations of a copy of the run, one after the other."""
    few = dict(validation=1, good=1, structural=1, logical=1)
    with tempfile.TemporaryDirectory() as top:
        line = write_product_line(Path(top, "line"), seed=1, train=args.images, **few)
        copy = shutil.copytree(args.run, Path(top, "run"))
        parts = line / "train" / "good"
        return [calibrated(copy, parts, args.threads) for _ in range(args.rounds)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    config = load_config(None, [args.run / "config.yaml"])
    record = new_record(
        "bench_calibrate",
        made=dict(date=date.today().isoformat(), threads=args.threads),
        preset=config.preset,
        image_size=config.data.image_size,
        images=args.images,
        rounds=rounds(args),
    )
    print(write_json(TARGET, record))


if __name__ == "__main__":
    main()
