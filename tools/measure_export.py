"""What lower precision does to a run's maps, scores and decisions, and to its speed.

    python tools/measure_export.py RUN [OUT] [--kernels]

RUN: a run's folder whose images are at hand. Writes OUT, by default nbs/results/export_precision.json: every
engine and precision with statistics measured again, against PyTorch in float32. With --kernels, which takes
three times as long, also every choice of kernels that 8 bits could have, with statistics measured again and
with those of float32: a study by labels of test images. What the package uses is fixed in notebook 30,
whatever comes out."""

import argparse
import copy
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch

from mudenet.cli_options import job_to_measure, run_config
from mudenet.config import override
from mudenet.identity import portable
from mudenet.core import new_record, progress, write_json
from mudenet.data import load_images, normalize
from mudenet.evaluation import measure
from mudenet.export import (
    PRECISIONS,
    SUFFIX,
    _quantised_openvino,
    described,
    graph_of,
    onnx_model,
    openvino_model,
    recalibrated,
    write_graph,
)
from mudenet.images import read_image
from mudenet.inference import calibrate, load_detector
from mudenet.pictures import Case
from mudenet.runtime import Detector as Exported

RESULTS = Path(__file__).parent.parent / "nbs" / "results"
ENGINES = dict(onnx="ONNX Runtime", openvino="OpenVINO")
METRICS = ("image_auroc", "pixel_auroc", "au_pro")


def cpu_seconds(look, squares, times=7):
    """Processor seconds an image, the median."""
    look(squares)
    found = []
    for _ in range(times):
        begin = time.process_time()
        look(squares)
        found.append((time.process_time() - begin) / len(squares))
    return statistics.median(found)


def torch_look(detector):
    """A PyTorch detector as an engine is called."""

    @torch.inference_mode()
    def look(squares):
        return detector(normalize(torch.from_numpy(squares).permute(0, 3, 1, 2))).score

    return look


class Study:
    """One run: its detector in float32, its images, and the answers that others are held against."""

    def __init__(self, run, folder):
        self.job, _ = job_to_measure(run, run_config(run), {})
        self.detector, self.file = load_detector(run, "cpu"), folder / "a"
        self.detector.config = self.set_to("float32")
        self.nominal = self.images(self.job.category.validation)
        self.trained = self.images(self.job.category.train) if self.needs_trained else None
        self.squares = self.nominal.permute(0, 2, 3, 1).contiguous().numpy()
        self.ours, self.base = self.answers(self.detector), None

    @property
    def needs_trained(self):
        return self.detector.config.inference.needs_trained

    def set_to(self, precision):
        return override(self.detector.config, {"compute.precision": precision})

    def images(self, items):
        c = self.detector.config.data
        return load_images(items, c.image_size, interpolation=c.interpolation, white=c.white)

    def answers(self, detector):
        """Predictions of test and of held-out nominal images."""
        parts, white = (self.job.category.test, self.job.category.validation), self.detector.white
        return [[detector.predict(read_image(i.image, white))[0] for i in items] for items in parts]

    def row(self, detector, look, **names):
        """What a detector of lower precision says, beside the one in float32."""
        theirs, seconds = self.answers(detector), cpu_seconds(look, self.squares[:8])
        self.base = self.base or seconds
        cases = [
            Case(item=i, score=p.score, map=p.grid, parts=p.parts)
            for i, p in zip(self.job.category.test, theirs[0])
        ]
        found = measure(cases, self.job.category, self.job.config)["all"]["metrics"]
        same = [np.mean([a.label == b.label for a, b in zip(*both)]) for both in zip(self.ours, theirs)]
        moved = np.median([abs(b.score / a.score - 1) for a, b in zip(self.ours[0], theirs[0])])
        row = dict(
            names,
            **{m: found[m]["value"] for m in METRICS if m in found},
            decisions=float(same[0]),
            nominal=float(same[1]),
            moved=float(moved),
            ratio=seconds / self.base,
        )
        print(row, flush=True)
        return row

    def written(self, own, to, precision, graph):
        """A graph as a file, read again."""
        file = self.file.with_suffix(SUFFIX[to])
        write_graph(file, graph, described(own, to, precision))
        return Exported.load(file, threads=1)

    def again(self, raw):
        """The detector with the statistics that an exported file's raw scores give."""
        return recalibrated(self.detector, raw.run, self.nominal, self.trained)

    def by_torch(self, precision):
        """A row of PyTorch itself."""
        own = copy.deepcopy(self.detector)
        own.config = self.set_to(precision)
        calibrate(own, self.nominal, self.trained)
        return self.row(own, torch_look(own), engine="PyTorch", precision=precision)

    def by_engine(self, to, precision):
        """A row of `mudenet export`, statistics measured again as it does."""

        def graph(own, raw=False):
            return self.written(own, to, precision, graph_of(own, to, precision, self.squares, raw))

        own = self.detector if precision == "float32" else self.again(graph(self.detector, raw=True))
        exported = graph(own)
        return self.row(exported, exported.run, engine=ENGINES[to], precision=precision)

    def by_kernels(self, kernel, rest):
        """Two rows of a choice that the package could have made, in OpenVINO."""

        def graph(own, raw=False):
            model = _quantised_openvino(openvino_model(onnx_model(own, raw)), kernel, self.squares)
            return self.written(own, "openvino", "int8" if rest == "bfloat16" else rest, model)

        name = f"{kernel}×{kernel}" if kernel else "every"
        for source, own in (
            ("again", self.again(graph(self.detector, raw=True))),
            ("float32", self.detector),
        ):
            exported = graph(own)
            yield self.row(exported, exported.run, kernels=name, rest=rest, statistics=source)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "export_precision.json")
    parser.add_argument("--kernels", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        study = Study(args.run, Path(folder))
        rows = [study.by_torch(p) for p in progress(("float32", "bfloat16"), "PyTorch")]
        plans = [(to, p) for to in ENGINES for p in PRECISIONS[to]]
        rows += [study.by_engine(*plan) for plan in progress(plans, "engines")]
        sides = sorted(set(study.detector.config.model.kernels), reverse=True)
        every = [(k, rest) for k in (*sides, None) for rest in ("float32", "bfloat16")]
        choices = every if args.kernels else []
        kernels = [row for choice in progress(choices, "kernels") for row in study.by_kernels(*choice)]
    category = study.job.category
    record = new_record(
        "export_precision",
        made=dict(date=date.today().isoformat()),
        config=portable(study.detector.config),
        run=args.run.resolve().name,
        dataset=study.job.config.dataset,
        category=category.name,
        images=dict(test=len(category.test), nominal=len(category.validation)),
        capability=torch.backends.cpu.get_cpu_capability(),
        precisions=rows,
        kernels=kernels,
    )
    print(write_json(args.out, record))


if __name__ == "__main__":
    main()
