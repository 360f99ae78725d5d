"""How far the teachers of the package come on other images than those they learned from, and what they see:
a record and a picture.

    python tools/measure_teachers.py --weights resnet18.safetensors --photographs FOLDER ROOT [ROOT …]

FOLDER: the photographs that the teachers were distilled on, for the statistics of E.
ROOT: a category's folder; its nominal test images are measured.
Writes nbs/results/teachers.json and nbs/results/teachers.png."""

import argparse
import io
import tempfile
from datetime import date
from importlib.resources import files
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from mudenet.config import override
from mudenet.core import atomic, new_record, read_meta, write_json
from mudenet.corpus import Corpus
from mudenet.data import load_images, normalize, open_category
from mudenet.distillation import explained, load_teacher, config_of, make_target
from mudenet.synthetic import write_product_line
from mudenet.teachers import checked, teachers

RESULTS = Path(__file__).parent.parent / "nbs" / "results"


def loaded(path, weights, photographs):
    """T, E and the configuration of one teacher."""
    places = {"backbone.weights": weights, "distill.folder": photographs}
    config = override(config_of(path, read_meta(path, "teacher")), places)
    learned, _ = Corpus.of(photographs).split(config.distill.folder_holdout)
    return load_teacher(path, config), make_target(config, learned), config


def draw(teacher, target, image):
    """One channel of E beside T's three levels, the channel that level 3 matches best, as PNG."""
    with torch.no_grad():
        x = normalize(image)
        maps = teacher(x)
        e = F.interpolate(target(x), size=maps[0].shape[-2:], mode="bilinear")
    lost = [(e - m).square().sum((0, 2, 3)) / e.square().sum((0, 2, 3)) for m in maps]
    c = int(lost[2].argmin())
    fig, axs = plt.subplots(1, 5, figsize=(10, 2.4), layout="constrained", dpi=110)
    axs[0].imshow(image[0].permute(1, 2, 0))
    axs[0].set_title("image")
    titles = ["E", *(f"level {k + 1}: {100 * (1 - float(v[c])):.0f} %" for k, v in enumerate(lost))]
    for ax, m, title in zip(axs[1:], (e, *maps), titles, strict=True):
        ax.imshow(m[0, c], vmin=-2, vmax=3, cmap="viridis")
        ax.set_title(title)
    for ax in axs:
        ax.set(xticks=[], yticks=[])
    out = io.BytesIO()
    fig.savefig(out, format="png")
    return out.getvalue()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", nargs="+")
    parser.add_argument("--weights", required=True, help="the backbone's weights")
    parser.add_argument("--photographs", required=True, help="what the teachers were distilled on")
    args = parser.parse_args()
    shipped = files("mudenet") / "weights"
    found, seen = {}, {}
    for name, path in teachers().items():
        if path.parent != shipped or "explained" not in checked(path).about:  # T that was not distilled
            continue
        teacher, target, config = seen[name] = loaded(path, args.weights, args.photographs)
        found[name] = {"photographs held out": checked(path).about["explained"]}
        for root in args.roots:
            category = open_category(root)
            good = [i for i in category.test if not i.label]
            images = load_images(good, config.data.image_size)
            found[name][category.name] = explained(teacher, target, images.split(8), config.distill)
        print(name, found[name], flush=True)
    digests = {name: checked(teachers()[name]).sha256 for name in found}
    made = dict(date=date.today().isoformat())
    write_json(
        RESULTS / "teachers.json", new_record("teachers", made=made, teachers=digests, explained=found)
    )
    with tempfile.TemporaryDirectory() as folder:
        line = write_product_line(
            Path(folder) / "line", size=256, train=1, validation=1, good=1, structural=1, logical=1
        )
        image = load_images([next((line / "test" / "good").glob("*.png"))], 256)
        with atomic(RESULTS / "teachers.png") as part:
            part.write_bytes(draw(*seen["general"][:2], image))


if __name__ == "__main__":
    main()
