"""The explorer in JupyterLab and the report from disk, in a real browser, worked as a person works them.

Needs Debian's chromium and chromium-driver, or Chrome and its driver; skipped where there is none.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'"
)
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
# selenium and sockets of ours that a failing test leaves open
pytestmark = pytest.mark.filterwarnings("default")


def find(*names):
    return next((p for n in names if (p := shutil.which(n))), None)


@contextlib.contextmanager
def browser(profile, *flags, size=(1400, 1800)):
    """A fresh headless browser; skips where there is none.

    One that is there and does not start is a failure.
    """
    program, driver = find("chromium", "chromium-browser", "google-chrome"), find("chromedriver")
    if not (program and driver):
        pytest.skip("no browser: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", *flags):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    try:
        # a page that nobody looks at has no focus, and JupyterLab then no current notebook
        chrome.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        yield chrome
    finally:
        chrome.quit()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the explorer's notebook, with settings and folders of its own."""
    top = tmp_path_factory.mktemp("lab")
    (top / "results").mkdir()
    for file in ("28_explorer.ipynb", "results/bench_explorer.json"):
        shutil.copy2(ROOT / "nbs" / file, top / file)
    settings = top / "settings" / "@jupyterlab"
    for name, value in {
        "notebook-extension/tracker": {"windowingMode": "none"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        file = settings / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    own = {k: str(top / k.lower()) for k in folders}
    env = {
        **os.environ,
        **own,
        "JUPYTERLAB_SETTINGS_DIR": str(settings.parent),
        "PYTHONPATH": str(ROOT),
        "IN_TEST": "1",
    }
    log = (top / "lab.log").open("w")
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--IdentityProvider.token=",
            "--allow-root",
            "--expose-app-in-browser",
            f"--ServerApp.root_dir={top}",
        ],
        env=env,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{url}/api", timeout=5).close()
                break
            assert server.poll() is None, (top / "lab.log").read_text()[-2000:]
            time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)
        log.close()


CELLS = (
    "jupyterapp.shell.currentWidget.content.widgets.filter(c => c.model.type === 'code').map(c => c.model)"
)


KERNEL = "return jupyterapp.shell.currentWidget.sessionContext.session.kernel.status"


def open_notebook(chrome, url):
    """Open the notebook, and return once its kernel is idle."""
    chrome.get(f"{url}/lab/tree/28_explorer.ipynb?reset")
    wait = WebDriverWait(chrome, 75, 0.3, ignored_exceptions=[WebDriverException])
    try:
        wait.until(lambda c: c.execute_script(KERNEL) == "idle")
    except TimeoutException:
        console = [entry["message"] for entry in chrome.get_log("browser")]
        pytest.fail(f"no idle kernel; the page's console: {console[-5:]}")


def run_all(chrome, url):
    """Open the notebook, run every cell, and return once all have run without an error."""
    open_notebook(chrome, url)
    wait = WebDriverWait(chrome, 300, 0.3, ignored_exceptions=[WebDriverException])
    chrome.execute_script("jupyterapp.commands.execute('notebook:run-all-cells')")
    error = (
        f"const o = {CELLS}.flatMap(m => m.outputs.toJSON()).find(o => o.output_type === 'error'); "
        "return o && o.evalue"
    )
    done = f"return {CELLS}.every(m => m.executionCount !== null && m.executionState !== 'running')"
    wait.until(lambda c: c.execute_script(error) or c.execute_script(done))
    assert not chrome.execute_script(error)


def test_explorer_in_jupyterlab(lab, tmp_path):
    with browser(tmp_path / "profile") as chrome:
        run_all(chrome, lab)
        wait = WebDriverWait(chrome, 20, 0.2, ignored_exceptions=[WebDriverException])
        view = wait.until(lambda c: c.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output .widget-vbox"))
        chrome.execute_script("arguments[0].scrollIntoView()", view)

        def control(label, inside):
            row = f".//*[contains(@class,'widget-inline-hbox')][./label[normalize-space()='{label}']]"
            return view.find_element(By.XPATH, row).find_element(By.CSS_SELECTOR, inside)

        def seen():
            image = view.find_elements(By.CSS_SELECTOR, ".mudenet")[-1]
            return dict(
                histogram=view.find_element(By.CSS_SELECTOR, "svg[role=img]").get_attribute("aria-label"),
                metrics=view.find_element(By.CSS_SELECTOR, "table").text,
                title=image.find_element(By.TAG_NAME, "p").text,
                pictures=[i.get_attribute("src") for i in image.find_elements(By.TAG_NAME, "img")],
                gallery=[b.text for b in view.find_elements(By.CSS_SELECTOR, ".jupyter-button")],
            )

        def after(action, *changed):
            """What is seen once everything named has changed."""
            before = seen()
            action()
            with contextlib.suppress(TimeoutException):
                wait.until(lambda _: all(seen()[k] != before[k] for k in changed))
            now = seen()
            assert not [k for k in changed if now[k] == before[k]], (changed, now)
            return before, now

        assert len(seen()["pictures"]) >= 3 + 6 and all(
            p.startswith("data:image/") for p in seen()["pictures"]
        )

        # the threshold: histogram, verdicts and outlines change, the metrics do not
        threshold = control("Threshold", ".noUi-handle")
        before, now = after(lambda: threshold.send_keys(Keys.END), "histogram", "gallery", "pictures")
        assert now["metrics"] == before["metrics"]
        # a switch: everything is computed again
        kind = Select(control("Normalisation", "select"))
        after(lambda: kind.select_by_visible_text("zscore"), "histogram", "metrics", "pictures")
        after(
            lambda: view.find_element(By.XPATH, ".//label[normalize-space()='level 3']//input").click(),
            "metrics",
            "pictures",
        )
        # the overlay: only the first picture
        before, now = after(
            lambda: control("Overlay opacity", ".noUi-handle").send_keys(Keys.ARROW_RIGHT), "pictures"
        )
        assert now["pictures"][1:] == before["pictures"][1:]
        # another image
        thumbnails = view.find_elements(By.CSS_SELECTOR, "button[class*='mudenet-']")
        before, now = after(thumbnails[4].click, "title", "pictures")
        assert now["metrics"] == before["metrics"]
        # every control has a label, every picture a text
        for c in view.find_elements(By.CSS_SELECTOR, "input, select, .widget-slider"):
            row = c.find_element(By.XPATH, "./ancestor-or-self::*[contains(@class,'jupyter-widgets')][1]")
            assert row.text.strip(), row.get_attribute("outerHTML")
        assert all(b.text for b in view.find_elements(By.TAG_NAME, "button") if b.is_displayed())
        assert all(i.get_attribute("alt") for i in view.find_elements(By.TAG_NAME, "img"))
        if out := os.environ.get("MUDENET_SCREENSHOT"):
            chrome.execute_script("arguments[0].scrollIntoView()", view)
            chrome.save_screenshot(out)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a few steps of training."""
    from mudenet.config import load_config
    from mudenet.evaluation import run_category
    from mudenet.synthetic import write_product_line

    top = tmp_path_factory.mktemp("report")
    line = write_product_line(top / "line", size=64, train=8, validation=2, good=3, structural=3, logical=3)
    tree = dict(
        root=str(line),
        out=str(top / "runs"),
        device="cpu",
        model=dict(channels=8, width=8),
        distill=dict(steps=2),
        train=dict(steps=3),
    )
    return run_category(load_config("tiny", tree=tree))[0].folder / "report.html"


@pytest.mark.parametrize("size", [(1200, 1000), (390, 800)], ids=["desk", "phone"])
def test_report_from_disk_without_network(report, tmp_path, size):
    with browser(tmp_path / "profile", "--host-resolver-rules=MAP * ~NOTFOUND") as chrome:
        chrome.execute_cdp_cmd("Network.enable", {})
        offline = dict(offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
        chrome.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
        chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=size[0], height=size[1], deviceScaleFactor=1, mobile=size[0] < 500),
        )
        chrome.get("about:blank")
        chrome.get_log("performance")  # the browser's own first page is not ours
        chrome.get(report.as_uri())
        chrome.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        whole = "i => i.complete && i.naturalWidth > 0 && i.alt.length > 0"
        pictures = chrome.execute_script(f"return [...document.images].map({whole})")
        assert len(pictures) > 9 * 8 and all(pictures)
        assert len(chrome.find_elements(By.CSS_SELECTOR, "svg[role=img]")) == 3
        wide, shown = chrome.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert wide <= shown, "the page is wider than the screen"
        events = [json.loads(e["message"])["message"] for e in chrome.get_log("performance")]
        asked = {
            e["params"]["request"]["url"][:80] for e in events if e["method"] == "Network.requestWillBeSent"
        }
        assert asked and all(u.startswith(("file:", "data:")) for u in asked), asked
        assert not [e for e in events if e["method"] == "Network.loadingFailed"]
        assert not chrome.get_log("browser")


def test_register_sorts(tmp_path):
    """The table of notebook 27 as the site shows it, with its script and the site's style."""
    nb = json.loads((ROOT / "nbs" / "27_assumptions.ipynb").read_text(encoding="utf-8"))
    shown = (
        "".join(o.get("data", {}).get("text/html", "")) for c in nb["cells"] for o in c.get("outputs", [])
    )
    (table,) = (html for html in shown if "assumption-register" in html)
    page, style = tmp_path / "page.html", (ROOT / "tools" / "site.css").read_text(encoding="utf-8")
    page.write_text(
        f"<!DOCTYPE html><meta charset=utf-8><title>t</title><style>{style}</style>{table}", encoding="utf-8"
    )
    with browser(tmp_path / "profile") as chrome:
        chrome.get(page.as_uri())

        def column(k):
            return [
                r.find_elements(By.TAG_NAME, "td")[k].text
                for r in chrome.find_elements(By.CSS_SELECTOR, "tbody tr")
            ]

        def mark(k):
            button = chrome.find_elements(By.CSS_SELECTOR, "th button")[k]
            return chrome.execute_script("return getComputedStyle(arguments[0], '::after').content", button)

        ids, status = column(0), 2
        assert chrome.find_elements(By.TAG_NAME, "th")[status].text.startswith("Status")
        assert len(ids) >= 40 and ids == sorted(ids) and "↕" in mark(status)
        button = chrome.find_elements(By.CSS_SELECTOR, "th button")[status]
        button.click()
        assert column(status) == sorted(column(status)) and "↑" in mark(status) and column(0) != ids
        button.click()
        assert column(status) == sorted(column(status), reverse=True) and "↓" in mark(status)
        assert not chrome.get_log("browser")


def test_report_is_valid_html(report):
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(report.read_text(encoding="utf-8"))
