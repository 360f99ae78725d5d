"""Measure how long the explorer takes for a change, on a run of the demonstration.

python tools/time_explorer.py runs/synthetic/product_line/KEY-s0
"""

import sys
import time
from pathlib import Path

from mudenet.core import new_record, write_json
from mudenet.explorer import Explorer, open_run

TARGET = Path(__file__).parent.parent / "nbs" / "results" / "bench_explorer.json"
CHANGES = {
    "smoothing": 2.0,
    "normalization": "zscore",
    "clamp": "zero_one",
    "join": "max",
    "level 1": False,
    "logical": False,
}


def seconds(explorer: Explorer) -> dict[str, float]:
    """Processor time of each change, from a control's new value to new figures; not the clock's, for others
    may be at work.
    """
    used = {}
    for name, value in CHANGES.items():
        start = time.process_time()
        explorer.controls[name].value = value
        used[name] = time.process_time() - start
    return used


if __name__ == "__main__":
    raw = open_run(sys.argv[1], device="cpu")
    print(
        write_json(
            TARGET,
            new_record(
                "bench_explorer",
                run=Path(sys.argv[1]).name,
                images=len(raw.items),
                pixels=raw.images.shape[-1],
                seconds=seconds(Explorer(raw)),
            ),
        )
    )
