"""What lower precision does to a run's scores and decisions, and to its speed, with and without statistics
measured again.

    python tools/measure_export.py RUN [OUT]

RUN: a run's folder whose images are at hand. Writes OUT, by default nbs/results/export_precision.json. An
oracle study: the rows are compared by labels of test images; which of them the package uses is fixed in
notebook 15."""

import argparse
import statistics
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from mudenet.cli_options import job_to_measure, run_config
from mudenet.config import override
from mudenet.identity import portable
from mudenet.core import new_record, progress, write_json
from mudenet.data import load_images
from mudenet.export import (
    _quantised_openvino,
    _write_openvino,
    consequences,
    described,
    onnx_model,
    openvino_model,
    recalibrated,
)
from mudenet.inference import load_detector
from mudenet.runtime import Detector as Exported

RESULTS = Path(__file__).parent.parent / "nbs" / "results"
EVERY = "every convolution"


def cpu_seconds(look, pixels, times=7):
    """Processor seconds an image."""
    look(pixels)
    found = []
    for _ in range(times):
        begin = time.process_time()
        look(pixels)
        found.append((time.process_time() - begin) / len(pixels))
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, nargs="?", default=RESULTS / "export_precision.json")
    args = parser.parse_args()
    job, _ = job_to_measure(args.run, run_config(args.run), {})
    detector = load_detector(args.run, "cpu")
    detector.config = override(detector.config, {"compute.precision": "float32"})
    size, how = detector.config.data.image_size, detector.config.data.interpolation
    nominal = load_images(job.category.validation, size, interpolation=how)
    squares = nominal.permute(0, 2, 3, 1).contiguous().numpy()
    kernels = sorted(set(detector.config.model.kernels), reverse=True)
    chosen = [(f"{k}×{k} kernels" if k else EVERY, k) for k in (*kernels, None)]
    rows, base = [], None
    plans = [("float32", None, "float32"), ("bfloat16", None, "bfloat16")]
    plans += [
        (f"8 bits: {name}, {rest} elsewhere", k or 0, p)
        for name, k in chosen
        for rest, p in (("float32", "float32"), ("bfloat16", "int8"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.xml"

        def written(own, precision, kernel, raw=False):
            """The detector as an OpenVINO file, read again."""
            model = openvino_model(onnx_model(own, raw))
            if kernel is not None:
                model = _quantised_openvino(model, kernel or None, squares)
            _write_openvino(file, model, described(own, "openvino", precision))
            return Exported.load(file, threads=1)

        for name, kernel, precision in progress(plans, "variants"):
            again = recalibrated(detector, written(detector, precision, kernel, raw=True).run, nominal)
            for source, own in (("again", again), ("float32", detector)):
                exported = written(own, precision, kernel)
                found = consequences(detector, exported, job.category)
                seconds = cpu_seconds(exported.run, squares[:8])
                base = base or seconds
                rows.append(dict(variant=name, statistics=source, **found, ratio=seconds / base))
                print(rows[-1], flush=True)
    record = new_record(
        "export_precision",
        made=dict(date=date.today().isoformat()),
        config=portable(detector.config),
        run=args.run.resolve().name,
        dataset=job.config.dataset,
        category=job.category.name,
        images=dict(test=len(job.category.test), nominal=len(job.category.validation)),
        capability=torch.backends.cpu.get_cpu_capability(),
        rows=rows,
    )
    print(write_json(args.out, record))


if __name__ == "__main__":
    main()
