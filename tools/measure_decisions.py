"""Whether promised false-alarm rates hold: a demonstration's detector on thousands of fresh nominal images;
runs on real images.

    python tools/measure_decisions.py RUN [RECORD …] [--images 6000] [--out FILE]

RUN: a run of `mudenet demo`; nominal images of its product line are drawn anew. RECORD: record.json of
other runs, with held-out scores that gave no statistics. Writes nbs/results/decisions.json. What is said of
found defects is read from labels of test images at thresholds that none of them chose."""

import argparse
from datetime import date
from pathlib import Path

import numpy as np
import torch
from measure_regions import RATES, RESULTS, promised
from scipy.stats import betabinom

from mudenet.core import generator, new_record, progress, read_record, rng, write_json
from mudenet.augmentation import augment
from mudenet.decisions import images_wanted, p_values, promise, rank_from_top, rate_bound, rate_threshold
from mudenet.inference import load_detector
from mudenet.drawing import draw_product
from mudenet.synthetic import make_sample

SIZES, TIMES = (10, 24, 50, 99, 199, 299), 10_000
COPIES, COPIED = 4, 600


def drawn(count):
    """Nominal images of a line with another seed than the demonstration's."""
    for k in progress(range(count), "fresh images", unit="image"):
        yield draw_product(make_sample(1, "train/good", k).product, 256)


def copies(pixels, k):
    """An image under other light, as the augmentation of training draws it."""
    x = torch.from_numpy(np.stack([pixels] * COPIES)).permute(0, 3, 1, 2) / 255
    x = augment(x, ["jitter"], generator(0, "copies", k))
    return list((255 * x).round().byte().permute(0, 2, 3, 1).numpy())


def scored(detector, count):
    """Scores of fresh images, (count,), and of copies of the first of them, (COPIED, COPIES)."""
    fresh, copied = [], []
    for k, pixels in enumerate(drawn(count)):
        images = [pixels, *(copies(pixels, k) if k < COPIED else [])]
        first, *others = (p.score for p in detector.stream(images))
        fresh.append(first)
        copied += [others] * bool(others)
    return np.array(fresh), np.array(copied)


def realised(pool, n, choose, name, times=TIMES):
    """The share of the other images above the threshold that `choose` takes from n of them, again
    and again.
    """
    stream, ordered, found = rng(0, "calibrations", name, n), np.sort(pool), np.empty(times)
    for t in range(times):
        chosen = stream.choice(ordered, n, replace=False)
        cut = choose(chosen)
        above = ordered.size - np.searchsorted(ordered, cut, "right")
        found[t] = (above - (chosen > cut).sum()) / (ordered.size - n)
    return found


def within(m, n, others):
    """The chance that the realised share among so many others is within the bound: a beta-binomial
    distribution's.
    """
    return float(betabinom(others, m, n + 1 - m).cdf(np.floor(rate_bound(m, n) * others)))


def promises(pool):
    """A row for each rate and number of held-out images: what is promised, and what comes of it."""

    def row(n, rate):
        m = rank_from_top(rate, n)
        share = realised(pool, n, lambda s: rate_threshold(s, rate), f"rate {rate}")
        held = share <= rate_bound(m, n)
        return dict(
            n=n,
            asked=rate,
            promised=m / (n + 1),
            bound=rate_bound(m, n),
            mean=share.mean(),
            within=held.mean(),
            theory=within(m, n, pool.size - n),
        )

    return [row(n, rate) for rate in RATES for n in SIZES if not images_wanted(rate, n)]


def quantiles(pool):
    """How the plain .99 quantile fares."""

    def row(n):
        share = realised(pool, n, lambda s: np.quantile(s, 0.99), "quantile")
        return dict(n=n, mean=share.mean(), worst=float(np.quantile(share, 0.95)))

    return [row(n) for n in SIZES]


def of_its_own(detector, pool):
    """What the detector's own held-out images promise, which gave its statistics too, and what comes
    of it.
    """
    held, rows = detector.held_out, []
    for rate in RATES:
        row = promised(held, rate)
        if not row.pop("wanted"):
            cut = row.pop("threshold")
            rows.append(row | dict(realised=float((pool > cut).mean())))
    cut = float(detector.threshold)
    return dict(
        n=len(held),
        apart=detector.calibrations[-1]["apart"],
        rates=rows,
        how=detector.calibrations[-1]["how"],
        threshold=dict(promise(held, cut), realised=float((pool > cut).mean())),
    )


def with_copies(pool, copied):
    """Copies counted as if they were other images: rates are then promised that do not hold."""
    groups, others = np.c_[pool[: len(copied)], copied], np.sort(pool[len(copied) :])

    def row(n, rate):
        stream, found = rng(0, "copies", n), []
        for _ in range(TIMES):
            cut = rate_threshold(groups[stream.choice(len(groups), n, replace=False)], rate)
            found.append((others > cut).mean())
        m, total = rank_from_top(rate, n * (1 + COPIES)), n * (1 + COPIES)
        return dict(
            n=n,
            copies=COPIES,
            asked=rate,
            promised=m / (total + 1),
            bound=rate_bound(m, total),
            mean=float(np.mean(found)),
            within=float(np.mean(np.array(found) <= rate_bound(m, total))),
        )

    return [row(n, rate) for n in (10, 24) for rate in RATES if not images_wanted(rate, n * (1 + COPIES))]


def on_real(path):
    """What a run promised and what its test images show, by kind of defect; a rate that cannot be promised
    has none.
    """
    record = read_record(path)
    held, rows = record["held_out"], []
    scores = {
        k: np.array([r["score"] for r in record["scores"] if r["defect"] == k])
        for k in dict.fromkeys(r["defect"] for r in record["scores"])
    }
    for rate in RATES:
        row = promised(held, rate)
        if not row["wanted"]:
            cut = row.pop("threshold")
            assert all(((v > cut) == (p_values(v, held) <= rate)).all() for v in scores.values())
            row["above"] = {k: int((v > cut).sum()) for k, v in scores.items()}
        rows.append(row)
    plain = {k: int((v > np.quantile(held, 0.99)).sum()) for k, v in scores.items()}
    return dict(
        dataset=record["dataset"],
        category=record["category"],
        run=record["run"],
        n=len(held),
        rates=rows,
        quantile=plain,
        images={k: v.size for k, v in scores.items()},
        apart=record["calibration"]["apart"],
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("records", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--out", type=Path, default=RESULTS / "decisions.json")
    args = parser.parse_args()
    real = [on_real(path) for path in args.records]
    detector = load_detector(args.run, "cpu")
    pool, copied = scored(detector, args.images)
    assert np.unique(pool).size > 0.999 * pool.size  # the theory of the bound wants no ties
    record = new_record(
        "decisions",
        made=dict(date=date.today().isoformat()),
        run=args.run.resolve().name,
        images=pool.size,
        times=TIMES,
        promises=promises(pool),
        quantiles=quantiles(pool),
        copies=with_copies(pool, copied),
        own=of_its_own(detector, pool),
        quartiles=np.quantile(pool, (0, 0.25, 0.5, 0.75, 1)).tolist(),
        real=real,
    )
    print(write_json(args.out, record))


if __name__ == "__main__":
    main()
