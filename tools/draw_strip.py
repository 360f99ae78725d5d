"""Draw README.md's picture from a run of the demonstration.

python tools/draw_strip.py runs/synthetic/product_line/KEY-s0
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mudenet.config import load_config
from mudenet.core import atomic
from mudenet.data import load_masks
from mudenet.evaluation import score_images
from mudenet.job import open_job
from mudenet.inference import load_detector
from mudenet.pictures import colour_scale, draw_case

TARGET = Path(__file__).parent.parent / "nbs" / "results" / "demo_strip.png"
SHOWN = ("test/structural_anomalies/029.png", "test/logical_anomalies/007.png")


def strip(run: Path) -> Image.Image:
    """Two test images with their maps and parts, one above the other."""
    category, detector = (
        open_job(load_config(files=[run / "config.yaml"])).category,
        load_detector(run, "cpu"),
    )
    cases, threshold = score_images(detector, category.test), float(detector.threshold)
    scale = colour_scale(np.stack([c.map for c in cases]), np.stack([c.parts for c in cases]), threshold)
    chosen = [
        c for name in SHOWN for c in cases if c.item.image.relative_to(category.root).as_posix() == name
    ]
    rows = [draw_case(c, load_masks([c.item])[0], threshold, scale) for c in chosen]
    sheet = Image.new("RGB", (rows[0].width, sum(r.height for r in rows) + 8 * (len(rows) - 1)), "white")
    for k, row in enumerate(rows):
        sheet.paste(row, (0, k * (row.height + 8)))
    return sheet


if __name__ == "__main__":
    with atomic(TARGET) as f:
        strip(Path(sys.argv[1])).quantize(256).save(f, format="png", optimize=True)
    print(TARGET)
