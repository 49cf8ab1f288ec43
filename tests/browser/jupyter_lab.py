"""A JupyterLab of its own and a Chromium before it, for tests of what a user sees."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
HEIGHT = 1000
SECONDS = 1000  # playwright counts in milliseconds

NEEDS_A_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine"),
    pytest.mark.skipif(importlib.util.find_spec("jupyterlab") is None, reason="jupyterlab is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="playwright is not installed"),
    # Colab's images carry ipywidgets 7, for a front end of Colab's own.
    pytest.mark.skipif(version("ipywidgets").startswith("7."), reason="JupyterLab 4 shows no widgets of ipywidgets 7"),
]


@contextlib.contextmanager
def running_lab(root: Path, **environment: str) -> Iterator[str]:
    """The address of a JupyterLab that serves the folder `root`, its settings in folders of their own there.

    Args:
        environment: what its kernels see, beside our own environment.
    """
    settings = {
        "apputils-extension/themes": {"theme": "JupyterLab Light"},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},  # else what is off the screen is not in the page
    }
    for name, content in settings.items():
        path = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folders = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    folders |= {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "NEWLLM_RUNS": "runs"}
    everything = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    everything |= {name: str(root / folder) for name, folder in folders.items()}
    everything.pop("NEWLLM_DATA_SOURCE", None)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += ["--ServerApp.token=", "--ServerApp.password=", f"--ServerApp.root_dir={root}"]
    command += ["--expose-app-in-browser"]  # to change the theme without a walk through menus
    with (root / "server.log").open("w") as log:
        server = subprocess.Popen(command, env={**everything, **environment}, stdout=log, stderr=log)
    try:
        _wait_for_server(f"http://127.0.0.1:{port}", server, root / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def _wait_for_server(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(f"{address}/api")
            return
        except OSError:
            time.sleep(0.25)
    raise AssertionError(log.read_text())


@contextlib.contextmanager
def opened_notebook(lab: str, name: str, screenshots: Path) -> Iterator:
    """The page of a notebook whose kernel is idle; a picture of it is taken at the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_FLAGS.split())
        page = browser.new_page(viewport={"width": 1400, "height": HEIGHT})
        page.set_default_timeout(60 * SECONDS)
        page.goto(f"{lab}/doc/tree/{name}")
        page.wait_for_selector(".jp-CodeCell")
        # Before the session knows its kernel, Run All would ask which to take.
        page.locator("#jp-bottom-panel, .jp-StatusBar-Widget").get_by_text(re.compile(r"\| Idle$")).wait_for()
        yield page
        page.screenshot(path=str(screenshots / f"{Path(name).stem}-at-the-end.png"))
        browser.close()


def screenshots_folder(tmp_path_factory) -> Path:
    """NEWLLM_SCREENSHOTS, for people to look at, or one that is thrown away."""
    folder = Path(os.environ.get("NEWLLM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def menu(page, *names: str) -> None:
    for name in names:
        page.get_by_role("menuitem", name=name, exact=True).first.click()


def code_cell(page, title: str):
    return page.locator(".jp-CodeCell").filter(has_text=f"#@title {title}")


def run_cell(page, title: str) -> None:
    code_cell(page, title).locator(".jp-InputPrompt").click()
    page.keyboard.press("Control+Enter")


def dark_theme(page) -> None:
    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")


def wait_until(condition, seconds: float = 30):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError("it did not happen in time")
