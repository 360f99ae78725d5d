"""`mudenet bench WHAT` measures at toy size, prints its table and writes a record that the notebooks can
read.
"""

import json
from statistics import median

import pytest
from tiny import TINY

from mudenet.cli import main
from mudenet.speed import speed_table

ONCE = [*TINY, "--rounds=1"]
STAGE = {"plain", "all"} | {
    f"without {name}" for name in ("channels_last", "fold", "fused_distance", "fused_adam", "keep_memory")
}
ROWS = dict(
    infer={f"{how}, batch {n}" for how in ("plain", "all") for n in (1, 2, 8, 16)},
    data={"read one by one", "read", "feed from files", "feed"},
    train=STAGE,
    distill=STAGE,
)
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "what", ["infer", "data", pytest.param("train", marks=slow), pytest.param("distill", marks=slow)]
)
def test_bench(what, tmp_path, capsys):
    assert main(["bench", what, "--out", str(tmp_path), *ONCE]) == 0
    record = json.loads((tmp_path / f"bench_{what}.json").read_text())
    assert record["kind"] == f"bench_{what}" and set(record["variants"]) == ROWS[what]
    for row in record["variants"].values():
        assert row["median"] > 0 and row["peak_bytes"] > 50e6
        # the ratio can be computed again
        again = [s / b for s, b in zip(row["seconds"], row["base_seconds"])]
        assert row.get("ratio", row.get("ratio_to_all")) == median(again) and ("share" in row) == (
            what != "data"
        )
    assert speed_table(record) in capsys.readouterr().out


def test_bench_metrics(tmp_path, capsys):
    assert main(["bench", "metrics", "--quick", "true", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "bench_metrics.json").read_text())["rows"]
    # every contender that has the metric computes the same
    for maps, size in {(r["maps"], r["size"]) for r in rows}:
        said = [r.get("values", {}) for r in rows if (r["maps"], r["size"]) == (maps, size)]
        values = [v["pixel_auroc"] for v in said if "pixel_auroc" in v]
        assert len(values) > 1 and max(values) - min(values) < 1e-6
