"""The container's steps in a clean environment, and the workflow's commands on a small line: the files are
read and run.
"""

import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml

from mudenet.synthetic import write_product_line

ROOT = Path(__file__).parent.parent
FILE = ROOT / "examples" / "serve" / "Dockerfile"
GATE = ROOT / "examples" / "ci" / "auroc_must_not_fall.py"
PROGRAM = [sys.executable, "-c", "import sys; from mudenet.cli import main; sys.exit(main())"]
WORKFLOW = ROOT / "examples" / "ci" / "detector.yaml"


def instructions():
    """(Instruction, rest) of the Dockerfile, without comments."""
    lines = [x for x in FILE.read_text(encoding="utf-8").splitlines() if x and not x.startswith("#")]
    return [tuple(line.split(" ", 1)) for line in lines]


def let_through(name):
    """Whether .dockerignore leaves a file in the context: the last pattern that fits decides."""
    kept = True
    for pattern in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        plain = pattern.lstrip("!").removeprefix("**/")
        parts = [name, *map(str, Path(name).parents)][:-1]
        fits = any(
            fnmatch.fnmatch(p, plain) or pattern.startswith("**/") and fnmatch.fnmatch(Path(p).name, plain)
            for p in parts
        )
        if fits:
            kept = pattern.startswith("!")
    return kept


def tracked():
    """Files that git holds."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [n for n in listed.stdout.split("\0") if n]


def test_the_context_is_what_the_file_copies():
    context = [n for n in tracked() if let_through(n)]
    copied = [rest.split()[0] for what, rest in instructions() if what == "COPY" and "--from" not in rest]
    assert all(any(n == c or n.startswith(f"{c}/") for c in copied) for n in context)
    assert "mudenet/serve.py" in context and "mudenet/serve.html" in context and "runtime/setup.py" in context
    assert not [n for n in context if "weights" in n or n.startswith(("nbs/", "tests/", ".git"))]


def test_the_container_listens_without_rights():
    found = dict(instructions()[::-1])
    assert found["USER"] == "10001:10001"
    command = json.loads(found["ENTRYPOINT"])
    assert (
        command[:2] == ["/opt/mudenet/bin/mudenet", "serve"]
        and command[command.index("--host") + 1] == "0.0.0.0"
    )
    assert (
        f"127.0.0.1:{found['EXPOSE']}/health" in found["HEALTHCHECK"]
        and command[command.index("--port") + 1] == found["EXPOSE"]
    )


@pytest.mark.slow
def test_the_steps_in_a_clean_environment(tmp_path):
    pytest.importorskip("onnx")
    from tiny import tiny_job

    from mudenet.job import ensure_detector
    from mudenet.export import export_detector

    source, home = tmp_path / "src", tmp_path / "opt"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    for what, rest in instructions():
        if what == "COPY" and "--from" not in rest:
            begin, to = rest.split()
            for name in tracked():
                if not (name == begin or name.startswith(f"{begin}/")) or not let_through(name):
                    continue
                place = source / to / name[len(begin) :].lstrip("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, place)
        elif what == "RUN":
            step = rest.replace("/opt/mudenet", str(home)).replace(
                "python -m venv", f"{shlex.quote(sys.executable)} -m venv"
            )
            subprocess.run(["sh", "-ec", step], cwd=source, env=clean, check=True)
    python = home / "bin" / "python"
    heavy = subprocess.run(
        [python, "-c", "import mudenet.serve, torch"], env=clean, capture_output=True, text=True
    )
    assert "No module named 'torch'" in heavy.stderr
    job = tiny_job(tmp_path, 1)
    detector = ensure_detector(job)
    export_detector(detector, tmp_path / "detectors" / "detector.onnx")
    found = dict(instructions()[::-1])
    argv = [*json.loads(found["ENTRYPOINT"]), *json.loads(found["CMD"])]
    argv = [
        a.replace("/opt/mudenet", str(home)).replace("/detectors", str(tmp_path / "detectors")) for a in argv
    ]
    argv[argv.index("--port") + 1] = "0"
    process = subprocess.Popen(argv, env=clean, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = iter(process.stdout.readline, "")
        port = next(m[1] for m in (re.search(r"http://[\w.]+:(\d+)", text) for text in said) if m)
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10).status == 200
        picture = next((tmp_path / "line" / "test" / "good").glob("*.png"))
        ask = urllib.request.Request(f"http://127.0.0.1:{port}/predict", data=picture.read_bytes())
        answer = json.loads(urllib.request.urlopen(ask, timeout=60).read())
        assert answer["score"] == pytest.approx(detector.predict(picture)[0].score, abs=1e-3)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def record(path, value):
    path.write_text(
        json.dumps(dict(results=dict(all=dict(metrics=dict(image_auroc=dict(value=value, version=1))))))
    )
    return str(path)


def gate(*argv):
    return subprocess.run([sys.executable, GATE, *argv], capture_output=True, text=True)


@pytest.mark.parametrize(
    "now, allowance, code", [(0.95, "0.01", 0), (0.945, "0.01", 0), (0.9399, "0.01", 1), (0.9399, "0.02", 0)]
)
def test_the_comparison(now, allowance, code, tmp_path):
    done = gate(record(tmp_path / "a.json", 0.95), record(tmp_path / "b.json", now), allowance)
    assert done.returncode == code and f"0.9500 before, {now:.4f} now" in done.stdout


def test_a_record_without_auroc_fails_the_build(tmp_path):
    (tmp_path / "b.json").write_text('{"results": {"all": {"metrics": {}}}}')
    done = gate(record(tmp_path / "a.json", 0.95), str(tmp_path / "b.json"))
    assert done.returncode == 1 and "b.json holds no image AUROC" in done.stderr


def test_the_workflow_passes_and_fails(tmp_path):
    """Its own commands, all but the installation."""
    flow = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    steps = {
        s["name"]: s["run"] for s in flow["jobs"]["auroc"]["steps"] if "run" in s and s["name"] != "install"
    }
    assert list(steps) == ["check the images", "train", "evaluate", "AUROC must not fall"]
    write_product_line(tmp_path / "parts", size=64, train=8, validation=4, good=4, structural=4, logical=1)
    (tmp_path / "parts" / "defects_config.json").unlink()
    shutil.rmtree(tmp_path / "parts" / "ground_truth")
    shutil.copytree(GATE.parent, tmp_path / "ci")
    tiny = "--device cpu --teacher small --train.steps 0 --data.image_size 64"
    env = {
        **os.environ,
        **flow["env"],
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }

    def run(name):
        line = steps[name].replace("--out runs", f"--out runs {tiny}") if name == "train" else steps[name]
        if line.startswith("mudenet "):
            line = line.replace("mudenet", shlex.join(PROGRAM), 1)
        return subprocess.run(["bash", "-ec", line], cwd=tmp_path, env=env, capture_output=True, text=True)

    for name in ("check the images", "train", "evaluate"):
        done = run(name)
        assert done.returncode == 0, done.stderr
    shutil.copy(tmp_path / "evaluated" / "record.json", tmp_path / "baseline.json")
    assert run("AUROC must not fall").returncode == 0
    record(tmp_path / "evaluated" / "record.json", 0.0)
    done = run("AUROC must not fall")
    assert done.returncode == 1 and "fell below" in done.stdout
