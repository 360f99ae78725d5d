"""The drift test: its p-values are independent and uniform, its false alarms are bounded over the stream, a
shift is found.
"""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binom, kstest

from mudenet.core import ConfigError, DataError, rng
from mudenet.decisions import rate_threshold
from mudenet.drift import Drift
from mudenet.images import Prediction
from mudenet.watch import watch

STREAMS = 300


def opened(k, draw, n=40, delta=0.01):
    """A test with held-out scores and the threshold of a promised rate of 5 %, and the generator of what
    comes.
    """
    g = rng(0, "stream", k)
    held = draw(g, n)
    return Drift(held.tolist(), rate_threshold(held, 0.05), delta, seed=k), g


def normal(g, n):
    return g.standard_normal(n)


def coarse(g, n):
    """Scores with many ties."""
    return np.round(g.standard_normal(n) * 3)


@pytest.mark.parametrize("draw", [normal, coarse])
def test_p_values_of_accepted_parts_are_uniform_and_independent(draw):
    """With so few held-out scores it matters that the limit and what lies above it are left out."""
    pairs = []
    for k in range(2000):
        d, g = opened(k, draw, n=20)
        below = [s for s in draw(g, 60) if s < d.limit][:2]
        if len(below) == 2:
            pairs.append([d.bag.p_value(s) for s in below])
    first, second = np.array(pairs).T
    assert (
        len(first) > 1800 and min(kstest(first, "uniform").pvalue, kstest(second, "uniform").pvalue) > 0.001
    )
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / len(first) ** 0.5
    assert kstest(second[first < 0.2], "uniform").pvalue > 0.001


@pytest.mark.parametrize("draw", [normal, coarse])
@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_false_alarms_over_whole_streams(draw, delta):
    alarms = 0
    for k in range(STREAMS):
        d, g = opened(k, draw, delta=delta)
        alarms += any(d.add(s) for s in draw(g, 800))
    assert alarms <= binom.ppf(0.999, STREAMS, delta), alarms


@pytest.mark.parametrize("shift, says", [(1, "higher"), (-1, "lower")])
def test_a_shift_of_one_deviation_is_found(shift, says):
    found = []
    for k in range(STREAMS):
        d, g = opened(k, normal)
        if any(d.add(s) for s in normal(g, 200)):
            continue  # a false alarm
        found.append(any(d.add(s) for s in normal(g, 400) + shift))
        assert not found[-1] or says in d.advice()
    assert len(found) > 0.95 * STREAMS and np.mean(found) > 0.98


def test_a_late_shift_is_found_too():
    """Twenty thousand unchanged parts do not lull it."""
    d, g = opened(0, normal)
    assert not any(d.add(s) for s in normal(g, 20_000))
    assert any(d.add(s) for s in normal(g, 300) + 1)


def test_an_alarm_comes_once_and_a_replay_is_the_same_test():
    d, g = opened(1, normal)
    scores = [*normal(g, 300), *(normal(g, 300) + 2)]
    alarms = [k for k, s in enumerate(scores) if d.add(s)]
    assert len(alarms) == 1 and d.alarmed and d.stakes.bets <= alarms[0] + 1
    again, _ = opened(1, normal)
    assert [k for k, s in enumerate(scores) if again.add(s)] == alarms and again.evidence == d.evidence


def test_refusals():
    for delta in (0, 1, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="between 0 and 1"):
            Drift([1.0], 2.0, delta)
    for held in ([], [3.0]):
        with pytest.raises(DataError, match="mudenet calibrate"):
            Drift(held, 2.0)
    d = Drift([1.0], 2.0)  # nothing in the bag but the limit
    assert not any(d.add(s) for s in (1.0, 2.0, float("nan"), float("inf"))) and d.stakes.bets == 0
    assert not d.add(0.5) and d.stakes.bets == 1


class Grey:
    """A stand-in for a detector whose score is an image's mean."""

    meta, threshold, white = dict(detector="0" * 64), 150.0, None

    def __init__(self):
        self.held_out = sorted(100 + 10 * rng(0, "held").standard_normal(60))

    def stream(self, images):
        for a in images:
            yield Prediction(
                name="0",
                score=float(a.mean()),
                label=bool(a.mean() > 150),
                threshold=150.0,
                map=a[..., 0],
                parts=np.ones((2, 3, 4, 4)),
            )


def test_watch_reports_once_whatever_ends_it(tmp_path, caplog):
    """Stopped and started again after every twenty files, the journal has the same alarm at the same file as
    in one go.
    """
    (tmp_path / "in").mkdir()
    g, journals = rng(0, "camera"), []
    values = [*(100 + 10 * g.standard_normal(60)), *(112 + 10 * g.standard_normal(120)), 200.0]
    pixels = [
        np.clip(v + g.normal(0, 5, (8, 8, 1)), 0, 255).round().astype(np.uint8).repeat(3, 2) for v in values
    ]
    for out, step in (("whole", len(values)), ("parts", 20)):
        for f in (tmp_path / "in").iterdir():
            f.unlink()
        alarms = 0
        for k in range(0, len(values), step):
            for i in range(k, min(k + step, len(values))):
                Image.fromarray(pixels[i]).save(tmp_path / "in" / f"{i:03d}.png")
            caplog.clear()
            list(watch(Grey(), tmp_path / "in", tmp_path / out, settle=0, poll=0, once=True))
            alarms += sum(r.levelname == "WARNING" and "drift: after" in r.message for r in caplog.records)
        lines = [json.loads(line) for line in (tmp_path / out / "results.jsonl").read_text().splitlines()]
        journals.append([(d["image"], d["score"], d.get("drift")) for d in lines])
        assert alarms == 1 and len(lines) == len(values)
    assert journals[0] == journals[1]
    ((name, _, says),) = (j for j in journals[0] if j[2])
    assert "060.png" < name < "160.png" and "higher" in says and "mudenet calibrate" in says
