"""PaDiM, PatchCore and the `fast` detector before training, on the same images: a record of each.

    python tools/measure_peers.py ROOT [--size S] [--backbone NAME] [--weights PATH] [--methods METHOD …]

ROOT: a category's folder. Writes nbs/results/peer_CATEGORY-METHOD-SIZE.json. METHOD: padim, patchcore,
start (the detector, whose teacher has its own backbone).
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from mudenet.config import load_config
from mudenet.core import write_json
from mudenet.data import normalize
from mudenet.distillation import Backbone
from mudenet.job import ensure_detector, open_job, with_teacher
from mudenet.peers import PaDiM, PatchCore, fit_and_look, look_through

RESULTS = Path(__file__).parent.parent / "nbs" / "results"
PEERS = dict(padim=PaDiM, patchcore=PatchCore)
METHODS = [*PEERS, "start"]
NOTE = "Seconds of the processor, one thread, on a machine that did other things too."


def keep(record, method):
    """Write a record under its category, method and size."""
    size = record["config"]["data"]["image_size"]
    file = RESULTS / f"peer_{record['category']}-{method}-{size}.json"
    write_json(file, record)
    found = {k: round(v["value"], 4) for k, v in record["results"]["all"]["metrics"].items()}
    print(file.name, found, record["peer"], flush=True)


def ours(said):
    """The `fast` detector at its start, as a record of a peer."""
    with tempfile.TemporaryDirectory() as out:
        job = open_job(with_teacher(load_config(None, [], dict(said, out=out, train=dict(steps=0))), {}))
        start = time.process_time()
        detector = ensure_detector(job)
        fitted = dict(
            seconds=round(time.process_time() - start, 1),
            images=len(job.category.train),
            bytes=sum(t.nbytes for t in detector.state_dict().values()),
            settings={},
        )
        return look_through(lambda x: detector(normalize(x)), job, "mudenet, 0 steps", fitted, NOTE)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="IMAGENET1K_V1")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    said = dict(preset="fast", root=args.root, data=dict(image_size=args.size))
    theirs = dict(said, teacher=None, backbone=dict(name=args.backbone, weights=args.weights))
    job = open_job(load_config(None, [], theirs))
    for method in args.methods:
        if method == "start":
            keep(ours(said), method)
        else:
            peer = PEERS[method](Backbone(args.backbone, args.weights))
            keep(fit_and_look(peer, job, NOTE), method)


if __name__ == "__main__":
    main()
