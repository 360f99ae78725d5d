"""The hub: huggingface_hub itself, against a server on this machine that answers the calls used, and from
its cache alone.
"""

import base64
import copy
import hashlib
import importlib.util
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from tiny import tiny_job

from mudenet.core import CheckpointError, WeightsError, digest
from mudenet.evaluation import evaluate
from mudenet.job import ensure_detector
from mudenet.hub import model_card, save_pretrained
from mudenet.inference import Detector, settle

if importlib.util.find_spec("huggingface_hub") is None:
    pytest.skip("huggingface_hub is not installed: pip install 'mudenet[hub]'", allow_module_level=True)


class Hub(BaseHTTPRequestHandler):
    """Repositories of the hub: created, committed to, downloaded from. Only with the right token."""

    repos: dict[str, dict[str, bytes]] = {}
    private: dict[str, bool] = {}
    asked: list[str] = []
    COMMIT = "c" * 40

    def log_message(self, *args):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for k, v in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(k, v)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def say(self, **body):
        self.answer(200, json.dumps(body).encode(), **{"Content-Type": "application/json"})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self):
        body = self.body()
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.answer(
                401, b'{"error": "Invalid username or password."}', **{"Content-Type": "application/json"}
            )
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.repos.setdefault(name, {})
            self.private[name] = asked.get("private", asked.get("visibility") == "private")
            return self.say(url=f"http://{self.headers['Host']}/{name}", name=name, id=name)
        if self.path == "/api/validate-yaml":
            return self.say(errors=[], warnings=[])
        if "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            return self.say(files=[dict(path=f, uploadMode="regular", shouldIgnore=False) for f in files])
        if "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in filter(None, body.decode().splitlines()):
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repos[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            url = f"http://{self.headers['Host']}/{name}/commit/{self.COMMIT}"
            return self.say(commitUrl=url, commitOid=self.COMMIT, success=True, hookOutput="")
        return self.answer(404)

    def do_GET(self):
        parts = self.path.split("?")[0].strip("/").split("/")
        name = "/".join(parts[:2])
        if len(parts) == 5 and parts[2] == "resolve" and parts[4] in self.repos.get(name, {}):
            content = self.repos[name][parts[4]]
            self.asked.append(f"{self.command} {parts[4]}")
            return self.answer(
                200,
                content,
                ETag=f'"{hashlib.sha256(content).hexdigest()}"',
                **{"X-Repo-Commit": self.COMMIT},
            )
        if parts[:2] == ["api", "models"] and "/".join(parts[2:4]) in self.repos:
            return self.say(id="/".join(parts[2:4]), siblings=[], sha=self.COMMIT)
        return self.answer(404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET


@pytest.fixture
def hub():
    """A hub's address."""
    Hub.repos, Hub.private, Hub.asked = {}, {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny detector and its record."""
    folder = tmp_path_factory.mktemp("made")
    job = tiny_job(folder, 3, **{"evaluation.pictures": 0})
    detector = ensure_detector(job)
    return detector, evaluate(detector, job)


def test_pushed_and_loaded_then_from_the_cache_alone(made, hub, tmp_path, monkeypatch):
    detector, record = made
    url = detector.push_to_hub("me/terminal-blocks", record=record, token="hf_right", endpoint=hub)
    assert url.endswith("me/terminal-blocks") and Hub.private["me/terminal-blocks"] is True
    assert sorted(Hub.repos["me/terminal-blocks"]) == ["README.md", "detector.safetensors", "record.json"]
    assert b'from_pretrained("me/terminal-blocks")' in Hub.repos["me/terminal-blocks"]["README.md"]
    where = dict(cache_dir=tmp_path / "cache", endpoint=hub, device="cpu")
    loaded = Detector.from_pretrained("me/terminal-blocks", **where)
    assert digest(loaded.state_dict()) == digest(detector.state_dict())
    assert {a.split()[1] for a in Hub.asked} == {"detector.safetensors"}  # nothing else is fetched
    Hub.repos.clear()
    again = Detector.from_pretrained(
        "me/terminal-blocks", cache_dir=tmp_path / "cache", local_files_only=True, device="cpu"
    )
    assert torch.equal(again.threshold, detector.threshold)


def test_what_was_changed_on_the_way_is_refused(made, hub, tmp_path):
    detector, record = made
    detector.push_to_hub("me/a", record=record, token="hf_right", endpoint=hub)
    damaged = bytearray(Hub.repos["me/a"]["detector.safetensors"])
    damaged[-3] ^= 1
    Hub.repos["me/a"]["detector.safetensors"] = bytes(damaged)
    with pytest.raises(CheckpointError):
        Detector.from_pretrained("me/a", cache_dir=tmp_path, endpoint=hub, device="cpu")


def test_refusals_of_the_hub_are_explained(made, hub, tmp_path):
    with pytest.raises(WeightsError, match="me/none could not be had from the hub"):
        Detector.from_pretrained("me/none", cache_dir=tmp_path, endpoint=hub)
    with pytest.raises(WeightsError, match="me/none could not be had from the hub"):
        Detector.from_pretrained("me/none", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(WeightsError, match="could not be pushed .*hf auth login"):
        made[0].push_to_hub("me/b", token="hf_wrong", endpoint=hub)
    assert Hub.repos == {}


def test_the_card_is_one_that_the_hub_can_read(made, tmp_path):
    from huggingface_hub import ModelCard

    folder = save_pretrained(made[0], tmp_path / "x", made[1])
    card = ModelCard.load(folder / "README.md")
    assert (
        card.data.license == "apache-2.0"
        and card.data.library_name == "mudenet"
        and "anomaly-detection" in card.data.tags
    )


def test_the_card_names_what_set_the_threshold(made):
    """Also where a person, or new good parts, set it after the training."""
    detector = copy.deepcopy(made[0])
    assert "0.99 quantile" in model_card(detector)
    settle(detector, torch.tensor(detector.held_out), 0.125, "given", date="2026-01-02")
    card = model_card(detector)
    assert "anomalous above 0.125. This threshold was given by hand. It was set on 2026-01-02" in card
    assert "quantile" not in card.split("## Decision")[1]


def test_importing_the_package_does_not_import_the_hub():
    code = (
        "import sys, mudenet.cli, mudenet.inference, mudenet.hub\nassert 'huggingface_hub' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
