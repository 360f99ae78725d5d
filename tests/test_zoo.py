"""The zoo from the command line: a benchmark packs what it made, it is listed, fetched and checked; what was
changed is named.
"""

import functools
import json
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mudenet.cli import main
from mudenet.core import read_record
from mudenet.inference import Detector

RESULTS = Path(__file__).parent.parent / "nbs" / "results"


class Quiet(SimpleHTTPRequestHandler):
    """Files of a folder, without a log."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """What a benchmark of two seeds packs."""
    folder = tmp_path_factory.mktemp("zoo")
    small = (
        "dataset: synthetic\n"
        "device: cpu\n"
        "teacher: small\n"
        "preset: fast\n"
        "train: {steps: 0}\n"
        "data: {image_size: 64}\n"
    )
    (folder / "small.yaml").write_text(small)
    assert (
        main(
            [
                "benchmark",
                "--config",
                str(folder / "small.yaml"),
                "--roots",
                "synthetic",
                "--seeds",
                "2",
                "--out",
                str(folder / "runs"),
                "--zoo",
                str(folder / "zoo"),
            ]
        )
        == 0
    )
    return folder / "zoo"


def test_a_benchmark_packs_what_it_made(zoo, capsys):
    assert main(["zoo", "list", "--zoo", str(zoo)]) == 0
    out = capsys.readouterr().out
    for seed in (0, 1):
        record = read_record(zoo / f"synthetic-product_line-s{seed}" / "record.json")
        assert f"synthetic-product_line-s{seed} | synthetic | product_line | {seed} |" in out
        assert f"{record['results']['all']['metrics']['image_auroc']['value']:.4f}" in out
    assert main(["zoo", "verify", "--zoo", str(zoo)]) == 0


def test_pulled_over_http_it_predicts_the_same(zoo, tmp_path, capsys):
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(zoo)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        place = ["--zoo", f"http://127.0.0.1:{server.server_port}/", "--out", str(tmp_path)]
        assert main(["zoo", "pull", "synthetic-product_line-s1", *place]) == 0
        assert main(["zoo", "pull", "synthetic-product_line-s7", *place]) == 2
    finally:
        server.shutdown()
        server.server_close()
    assert "Did you mean 'synthetic-product_line-s" in capsys.readouterr().err
    there, here = (Detector.load(p / "synthetic-product_line-s1", "cpu") for p in (zoo, tmp_path))
    pictures = sorted((zoo.parent / "runs" / "data" / "product_line" / "test" / "good").glob("*.png"))[:3]
    assert [p.score for p in here.predict(pictures)] == [p.score for p in there.predict(pictures)]


def test_what_was_changed_is_named(zoo, tmp_path, capsys):
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    card = copy / "synthetic-product_line-s0" / "README.md"
    card.write_text(card.read_text().replace("good parts", "poor parts"))
    assert main(["zoo", "verify", "--zoo", str(copy)]) == 2
    assert f"1 files are not those of the manifest:\n{card} was changed" in capsys.readouterr().err
    assert (
        main(["zoo", "pull", "synthetic-product_line-s0", "--zoo", str(copy), "--out", str(tmp_path / "out")])
        == 2
    )
    assert not (tmp_path / "out" / "synthetic-product_line-s0").exists()


def test_what_the_package_lists_was_really_trained(capsys):
    assert main(["zoo"]) == 0
    listed = capsys.readouterr().out
    entries = json.loads((Path(__file__).parent.parent / "mudenet" / "zoo.json").read_text(encoding="utf-8"))[
        "detectors"
    ]
    records = {
        (r["run"], r["category"]): r
        for r in map(read_record, RESULTS.glob("*.json"))
        if r.get("kind") == "evaluation"
    }
    assert len(entries) >= 3
    for name, e in entries.items():
        record = records[e["run"], e["category"]]
        found = {k: v["value"] for k, v in record["results"]["all"]["metrics"].items()}
        assert (
            {k: v["value"] for k, v in e["metrics"].items()} == found
            and name in listed
            and e["command"].startswith("mudenet ")
        )


def test_options_that_are_missing_are_named(tmp_path, capsys):
    assert main(["zoo", "add", "x"]) == 2 and main(["zoo", "pull"]) == 2 and main(["zoo", "verify"]) == 2
    err = capsys.readouterr().err
    for text in (
        "mudenet zoo add: run, zoo missing",
        "mudenet zoo pull: name missing",
        "--zoo FOLDER: which folder?",
    ):
        assert text in err
    assert main(["zoo", "pull", "synthetic-product_line-s0", "--out", str(tmp_path)]) == 2
    assert "This makes it: mudenet demo --seed 0" in capsys.readouterr().err
