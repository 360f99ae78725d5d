"""What is marked on real parts: on how many good ones anything is, and how marked regions lie on defects.

    python tools/measure_regions.py RUN [RUN …]

RUN: the folder of a finished run whose held-out images gave no statistics (`--inference.statistics_images
train`). Pixel thresholds come from those held-out images; test images and their masks choose nothing. Writes
nbs/results/regions.json.
"""

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from mudenet.config import load_config
from mudenet.core import fingerprint, new_record, progress, write_json
from mudenet.data import read_mask
from mudenet.decisions import images_wanted, promise, rate_threshold
from mudenet.job import open_job
from mudenet.identity import portable
from mudenet.inference import load_detector
from mudenet.regions import components, find_regions, survival

RESULTS = Path(__file__).parent.parent / "nbs" / "results"
RATES = (0.1, 0.05, 0.01)


def survived(detector, items):
    """What the maps of held-out images survive, (N,)."""
    found = detector.stream([i.image for i in items])
    return np.array([survival(p.grid, detector.min_area) for p in found])


def promised(values, rate):
    """The pixel threshold for a rate and what is promised of it, or how many images it lacks."""
    if wanted := images_wanted(rate, len(values)):
        return dict(asked=rate, wanted=wanted)
    said = promise(values, threshold := rate_threshold(values, rate))
    return dict(asked=rate, wanted=0, threshold=threshold, promised=said["rate"], bound=said["bound"])


def overlap(mask, truth):
    """Of one image: marked regions and how many lie on a defect; pixels that are both, marked, defective."""
    labels, count = components(mask)
    on = np.unique(labels[truth & mask]).size
    return count, on, int((mask & truth).sum()), int(mask.sum()), int(truth.sum())


def of_kind(rows):
    """What the images of one kind come to. Areas are those of all images together, the IoU is a mean."""
    regions, on, both, marked, defective = np.array(rows).T
    drawn = defective > 0  # a few masks are empty
    iou = both / np.maximum(marked + defective - both, 1)
    return dict(
        images=len(rows),
        marked=int((marked > 0).sum()),
        drawn=int(drawn.sum()),
        hit=int((on > 0).sum()),
        regions=int(regions.sum()),
        on=int(on.sum()),
        iou=float(iou[drawn].mean()) if drawn.any() else None,
        precision=float(both.sum() / marked.sum()) if marked.any() and drawn.any() else None,
        recall=float(both.sum() / defective.sum()) if drawn.any() else None,
    )


def measured(run):
    """One run: for every rate that can be promised, what is marked by it on test images of every kind."""
    job = open_job(load_config(None, [run / "config.yaml"]))
    detector = load_detector(run, "cpu")
    assert detector.calibration["apart"], f"{run}: its held-out images gave the statistics"
    values = survived(detector, job.category.validation)
    rates = [promised(values, rate) for rate in RATES]
    kept = [r for r in rates if "threshold" in r]
    found = [dict[str, list]() for _ in kept]
    predictions = detector.stream([i.image for i in job.category.test])
    said = progress(zip(job.category.test, predictions), "test images", total=len(job.category.test))
    for item, p in said:
        truth = read_mask(item, p.map.shape)
        for rows, r in zip(found, kept):
            _, mask = find_regions(p, r["threshold"], detector.min_area)
            rows.setdefault(item.defect, []).append(overlap(mask, truth))
    for rows, r in zip(found, kept):
        r["kinds"] = {kind: of_kind(rows[kind]) for kind in sorted(rows, key=lambda k: (k != "good", k))}
    return dict(
        dataset=job.config.dataset,
        category=job.config.category,
        run=run.resolve().name,
        config=portable(job.config),
        data=fingerprint(job.category.files, job.category.root),
        n=len(values),
        rates=rates,
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    runs = [measured(run) for run in parser.parse_args().runs]
    record = new_record("regions", made=dict(date=date.today().isoformat()), runs=runs)
    print(write_json(RESULTS / "regions.json", record))


if __name__ == "__main__":
    main()
