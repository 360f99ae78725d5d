"""`mudenet serve` without PyTorch: broken, huge and half-sent requests, a stop while it answers, and its
page in a browser.
"""

import base64
import copy
import http.client
import io
import json
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from bare import Bare
from PIL import Image

from mudenet import export as ex
from mudenet.architecture import MuDeNet
from mudenet.config import Config, override
from mudenet.core import rng
from mudenet.inference import Detector, calibrate

NEEDED = ("onnx", "onnxscript", "onnxruntime", "starlette", "uvicorn", "prometheus_client")
pytestmark = [
    pytest.mark.skipif(
        not all(map(find_spec, NEEDED)) or sys.platform == "win32",
        reason="needs pip install -e '.[export,serve]', and signals as Unix has them",
    ),
    pytest.mark.filterwarnings("default"),
]  # sockets that a test leaves half open on purpose


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return Bare(tmp_path_factory.mktemp("bare"), "serve")


def picture(k):
    """A smooth picture of 96×80."""
    small = Image.fromarray(rng(0, "picture", k).integers(90, 130, (4, 4, 3)).astype(np.uint8))
    return np.array(small.resize((96, 80), Image.Resampling.BICUBIC))


def png(pixels):
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, "PNG")
    return held.getvalue()


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """An exported detector with small random networks, and the detector."""
    import torch

    config = override(
        Config(), {"data.image_size": 64, "model.channels": 8, "model.width": 8, "inference.smoothing": 1.0}
    )
    detector = Detector(MuDeNet(config.model, 64), config).to("cpu")
    square = [np.array(Image.fromarray(picture(k)).resize((64, 64))).transpose(2, 0, 1) for k in range(8)]
    calibrate(detector, torch.from_numpy(np.stack(square)))
    file = tmp_path_factory.mktemp("part") / "part.onnx"
    ex.export_detector(detector, file)
    return file, detector


class Server:
    """The program, and what it is asked."""

    def __init__(self, bare, top, *argv):
        self.log = top / "log"
        self.out = self.log.open("w")
        self.process = bare.start(
            "serve", *argv, "--port", "0", "--threads", "1", stdout=self.out, stderr=self.out
        )
        for _ in range(600):
            time.sleep(0.05)
            if "http://" in (said := self.log.read_text()):
                break
            assert self.process.poll() is None, said
        self.url = "http://" + said.split("http://")[1].split("/")[0]
        self.host, port = self.url.removeprefix("http://").split(":")
        self.port = int(port)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.out.close()

    def ask(self, path, body=None, timeout=60):
        try:
            with urllib.request.urlopen(self.url + path, body, timeout=timeout) as r:
                return r.status, r.read()
        except urllib.error.HTTPError as e:
            with e:
                return e.code, e.read()

    def peak(self):
        """Megabytes that the process had at most."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024


def half_sent(server, close):
    """A request that promises more than it sends: the client goes away, or waits for an answer."""
    body = png(picture(0))
    with socket.create_connection((server.host, server.port), timeout=30) as s:
        s.sendall(
            f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:200]
        )
        return "gone" if close else int(s.recv(4096).split()[1])


def chunked(server, megabytes):
    """A body of a length that is not said, sent until the server has had enough."""
    c = http.client.HTTPConnection(server.host, server.port, timeout=30)
    try:
        c.request("POST", "/predict", (bytes(100_000) for _ in range(10 * megabytes)), encode_chunked=True)
        return c.getresponse().status
    except (BrokenPipeError, ConnectionResetError):
        return 413  # it hung up before all was sent
    finally:
        c.close()


def test_five_hundred_requests(bare, part, tmp_path):
    file, detector = part
    bodies = [png(picture(k)) for k in range(20)]
    want = [p.score for p in detector.predict([picture(k) for k in range(20)])]
    wide = io.BytesIO()
    Image.new("1", (9000, 9000)).save(wide, "PNG")  # 81 million pixels in a few kilobytes
    bad = {
        3: (b"no image at all", 400),
        5: (bodies[0][:300], 400),
        7: (wide.getvalue(), 413),
        9: (bytes(5_000_000), 413),
        11: (b"", 400),
    }
    with Server(bare, tmp_path, file, "--megabytes", "2", "--body_seconds", "2") as server:
        server.ask("/predict", bodies[0])
        before = server.peak()

        def client(k):
            what = k % 25
            if what == 13:
                return half_sent(server, close=True), None
            if what == 15:
                return half_sent(server, close=False), 408
            if what == 17:
                return chunked(server, 5), 413
            body, status = bad.get(what, (bodies[k % 20], 200))
            try:
                got, text = server.ask("/predict", body)
            except (ConnectionResetError, BrokenPipeError, urllib.error.URLError):
                return 413, status  # it hung up while too much was being sent
            answer = json.loads(text)
            if got == 200:
                assert abs(answer["score"] - want[k % 20]) <= 1e-5 * abs(want[k % 20])
            else:
                assert len(answer["error"]) > 20
            return got, status

        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(client, range(500)))
        assert all(got == status for got, status in answers if status is not None), Counter(answers)
        assert Counter(status for _, status in answers) == {200: 340, 400: 60, 413: 60, 408: 20, None: 20}
        assert server.peak() < before + 150, (before, server.peak())
        assert json.loads(server.ask("/health")[1])["waiting"] == 0 and server.process.poll() is None
        metrics = server.ask("/metrics")[1].decode()
        scored = sum(
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith("mudenet_images_total")
        )
        assert scored == 341 and 'mudenet_requests_total{status="200"} 341.0' in metrics
        assert "Traceback" not in server.log.read_text()


def test_stopped_while_it_answers(bare, part, tmp_path):
    """SIGTERM: what was accepted is answered, then the program ends with 0."""
    with Server(bare, tmp_path, part[0]) as server, ThreadPoolExecutor(16) as clients:
        body = png(np.tile(picture(0), (12, 12, 1)))
        asked = [clients.submit(server.ask, "/predict?map=tiff", body) for _ in range(16)]
        while json.loads(server.ask("/health")[1])["waiting"] < 8 and not all(a.done() for a in asked):
            time.sleep(0.005)
        answered = sum(a.done() for a in asked)
        server.process.send_signal(signal.SIGTERM)
        answers = [a.result()[0] for a in asked]
        assert answers == [200] * 16 and answered < 16
        assert server.process.wait(20) == 0
        assert "stopped; what was asked has been answered" in server.log.read_text()


def test_several_by_name_and_maps(bare, part, tmp_path):
    file, detector = part
    with Server(bare, tmp_path, file, f"two={file}") as server:
        body, (p,) = png(picture(3)), detector.predict([picture(3)])
        status, text = server.ask("/predict", body)
        assert status == 404 and "which detector" in json.loads(text)["error"]
        status, text = server.ask("/predict?detector=twoo", body)
        assert status == 404 and "Did you mean 'two'?" in json.loads(text)["error"]
        answer = json.loads(server.ask("/predict?detector=two&map=tiff", body)[1])
        sent = np.array(Image.open(io.BytesIO(base64.b64decode(answer["map"].split(",")[1]))))
        assert sent.shape == p.map.shape and np.abs(sent - p.map).max() <= 1e-4 * np.ptp(p.map)
        assert (answer["strongest"]["branch"], answer["strongest"]["level"]) == p.strongest()
        assert set(json.loads(server.ask("/health")[1])["detectors"]) == {"part", "two"}
        assert len(json.loads(server.ask("/history?detector=two")[1])["scores"]) == 1
        assert not json.loads(server.ask("/history?detector=part")[1])["scores"]


def test_regions_and_decision_are_the_run_s(bare, part, tmp_path):
    """An exported file behind HTTP, without PyTorch, marks and decides as the run's own detector does."""
    detector = copy.deepcopy(part[1])
    detector.config = override(detector.config, {"inference.min_area": 4})
    pixels = [picture(k) for k in range(20, 28)]
    maxima = [p.grid.max() for p in detector.predict(pixels)]
    # so that most images have something to compare
    detector.calibrations[-1]["pixel_threshold"] = limit = float(np.quantile(maxima, 0.3))
    detector.threshold.fill_(float(np.median(maxima)))
    ours = detector.predict(pixels)
    assert all(np.abs(p.grid - limit).min() > 1e-6 and abs(p.score - p.threshold) > 1e-6 for p in ours)
    ex.export_detector(detector, tmp_path / "marks.onnx")
    counts = []
    with Server(bare, tmp_path, tmp_path / "marks.onnx") as server:
        assert json.loads(server.ask("/health")[1])["detectors"]["marks"]["pixel_threshold"] == limit
        for image, p in zip(pixels, ours):
            answer = json.loads(server.ask("/predict?regions=1", png(image))[1])
            for name, value in (("anomalous", p.label), ("threshold", p.threshold), ("p_value", p.p_value)):
                assert answer[name] == value, name
            regions, _ = detector.regions(p)
            counts.append(len(regions))
            for theirs, r in zip(answer["regions"], regions, strict=True):
                assert (theirs["area"], theirs["box"]) == (r.area, list(r.box))
                assert theirs["polygons"] == [q.tolist() for q in r.polygons]
                assert (theirs["branch"], theirs["level"]) == (r.branch, r.level)
                assert theirs["centroid"] == pytest.approx(r.centroid)
                assert (theirs["peak"], theirs["mean"]) == pytest.approx((r.peak, r.mean), rel=1e-4)
    assert sum(n > 0 for n in counts) > 3 and 0 in counts and {p.label for p in ours} == {True, False}


def test_too_many_wait(bare, part, tmp_path):
    """More than --waiting at a time are told to come again, and nothing else is lost by that."""
    with Server(bare, tmp_path, part[0], "--waiting", "2") as server, ThreadPoolExecutor(12) as clients:
        body = png(np.tile(picture(0), (12, 12, 1)))
        answers = Counter(s for s, _ in clients.map(lambda k: server.ask("/predict", body), range(24)))
        assert set(answers) == {200, 503} and sum(answers.values()) == 24
        assert server.ask("/predict", body)[0] == 200


def test_refusals(bare, part, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        r = bare("serve", part[0], "--port", taken.getsockname()[1])
    assert r.returncode == 2 and "cannot be used" in r.stderr
    r = bare("serve", part[0], part[0])
    assert r.returncode == 2 and "two detectors are called 'part'" in r.stderr


def test_the_page_in_a_browser(bare, part, tmp_path):
    pytest.importorskip("selenium", reason="selenium is not installed: pip install -e '.[dev]'")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
    from test_browser import browser

    file, detector = part
    spot = picture(5).copy()
    spot[30:45, 40:55] = (255, 0, 0)
    for name, pixels in (("plain", picture(5)), ("spot", spot)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    with Server(bare, tmp_path, file) as server, browser(tmp_path / "profile") as chrome:
        chrome.get(server.url)

        def find(what):
            return chrome.find_element(By.ID, what)

        def drop(name):
            """Give the page a file, and wait for its verdict."""
            find("file").send_keys(str(tmp_path / name))
            WebDriverWait(chrome, 30).until(
                lambda _: find("verdict").text not in ("", "looking …", drop.last)
            )
            drop.last = find("verdict").text
            return drop.last

        drop.last = ""
        WebDriverWait(chrome, 30).until(lambda _: "0 scores" in find("count").text)
        for name, pixels in (("plain", picture(5)), ("spot", spot)):
            (p,) = detector.predict([pixels])
            said = drop(f"{name}.png")
            branch, level = p.strongest()
            assert (
                said.startswith("Anomalous" if p.label else "Fine")
                and f"strongest: {branch}, level {level}" in said
            )
            assert abs(float(said.split("score ")[1].split(",")[0]) - p.score) <= 1e-3 * p.score
            assert chrome.find_element(By.CSS_SELECTOR, "#parts .strongest").text == f"{p.parts.max():.2f}"
        drawn = (
            "const c = document.getElementById('image');"
            "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        )
        count = chrome.execute_script(
            drawn + "let n = 0; for (let i = 0; i < d.length; i += 4) "
            "n += d[i] == 255 && d[i + 1] == 0 && d[i + 2] == 255; return [c.width, c.height, n];"
        )
        assert count[:2] == [96, 80] and count[2] > 10  # the outline of what exceeds the threshold
        assert (
            drop("broken.png") == "Not scored: the body is of no known image format."
            and not find("found").is_displayed()
        )
        assert (
            "2 scores" in find("count").text
            and len(chrome.find_elements(By.CSS_SELECTOR, "#history rect")) == 2
        )
        errors = [
            e for e in chrome.get_log("browser") if e["level"] == "SEVERE" and "400" not in e["message"]
        ]
        assert not errors, errors
        chrome.save_screenshot(str(tmp_path / "page.png"))
