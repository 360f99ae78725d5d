"""Intervals on pages: what a page calls them is what they are, and they come from the scores on record."""

import json
import re
import sys
from pathlib import Path
from statistics import NormalDist

import pytest

import mudenet.report
from mudenet.intervals import BOOTSTRAP

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import update_pages

NUMBER = r"(\d\.\d+)"
ROW = re.compile(
    rf"^\| all \| (\d+) \| (\d+) \| {NUMBER} \[{NUMBER}, {NUMBER}\] \| {NUMBER} \[{NUMBER}, {NUMBER}\] \|",
    re.M,
)


def excess(theta, seen, good, bad):
    """How far an AUROC lies from the observed one, in units of the 95 % limit, less 1: 0 at the ends of
    Newcombe's interval.
    """
    if not 0 < theta < 1:
        return float("inf")  # no AUROC lies there
    half = (good + bad) / 2 - 1
    variance = (
        theta
        * (1 - theta)
        / (good * bad)
        * (1 + half * (1 - theta) / (2 - theta) + half * theta / (1 + theta))
    )
    return abs(seen - theta) / (NormalDist().inv_cdf(0.975) * variance**0.5) - 1


def runs(page):
    """Record, and the row of its table for all test images, for each run of a page."""
    for part in page.split("\n### ")[1:]:
        record = json.loads((update_pages.RESULTS / f"{part.split()[0]}.json").read_text(encoding="utf-8"))
        yield record, ROW.search(part).groups()


def labels_hold(page):
    """What the page calls Newcombe's solves Newcombe's equation, and what it calls drawn is what was
    drawn.
    """
    note = re.search(r"Brackets: 95 % intervals over the test images \((.*)\)", page)[1]
    by = {method: names.split(", ") for names, method in (s.split(": ") for s in note.split("; "))}
    assert "image AUROC" in by["Newcombe's"] and "pixel AUROC" in by["bootstrap"]
    for record, (good, bad, seen, low, high, _, pixel_low, pixel_high) in runs(page):
        good, bad, seen = int(good), int(bad), float(seen)
        for end, inwards in ((float(low), 1), (float(high), -1)):
            outside, inside = (excess(end + s * inwards * 6e-4, seen, good, bad) for s in (-1, 1))
            assert inside < 0 < outside, (
                f"{record['run']}: {low} to {high} is not Newcombe's interval of {seen}"
            )
        drawn = record["intervals"]["pixel_auroc"]
        assert (pixel_low, pixel_high) == (f"{drawn['low']:.3f}", f"{drawn['high']:.3f}")


def test_the_page_on_file():
    page = (ROOT / "pages" / "results.md").read_text(encoding="utf-8")
    assert len(list(runs(page))) == len(update_pages.evaluations()) >= 6
    labels_hold(page)


def test_intervals_of_another_method_are_noticed(monkeypatch):
    """The fault that was: the records' own intervals, which some older code drew, under the name of today's
    method.
    """
    honest = mudenet.report.shown_intervals

    def stale(record):
        return {
            k: dict(i, method=honest(record).get(k, {}).get("method", BOOTSTRAP))
            for k, i in record["intervals"].items()
        }

    monkeypatch.setattr(mudenet.report, "shown_intervals", stale)
    with pytest.raises(AssertionError, match="is not Newcombe's interval"):
        labels_hold(update_pages.results_page())
