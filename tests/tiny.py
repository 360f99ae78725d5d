"""Options and a job with which a detector is there in seconds."""

from mudenet.config import load_config, override
from mudenet.job import open_job
from mudenet.synthetic import write_product_line

TINY = [
    "--data.image_size=64",
    "--model.channels=8",
    "--model.width=8",
    "--backbone.name=resnet18",
    "--backbone.weights=random",
    "--distill.batch_size=4",
    "--train.batch_size=4",
    "--device=cpu",
]  # of both stages, without their steps


def tiny_job(folder, test_images, **fields):
    """A start on the product line at 64 pixels, with so many test images of each kind."""
    kinds = dict.fromkeys(("good", "structural", "logical"), test_images)
    line = write_product_line(folder / "line", size=64, train=8, validation=4, **kinds)
    tiny = {
        "dataset": "synthetic",
        "root": str(line),
        "out": str(folder / "runs"),
        "train.steps": 0,
        "data.image_size": 64,
        "device": "cpu",
    }
    return open_job(override(load_config("demo"), {**tiny, **fields}))
