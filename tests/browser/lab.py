"""JupyterLab in Chromium: the explorer's sliders move its numbers, and every notebook runs with its defaults.

`make browser` runs it. Lab is given copies, since it saves what it runs. Screenshots go to runs/browser.
"""

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from eelib.config import ROOT

pytest.importorskip("playwright", reason="expected pip install -r requirements-site.lock")
from playwright.sync_api import sync_playwright  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LONGEST_S = 1500  # of one notebook, on a busy machine
pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="no chromium"), pytest.mark.timeout(LONGEST_S)]
FOLDER = ROOT / "runs" / "browser"
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
# their defaults cut nothing
WHOLE = {"00_record", "01_data", "05b_scorecard", "05c_causal", "05e_ablation", "08_dissertation", "09_explorer"}
MOVED = re.compile(r"AP (0\.\d+) at (0\.\d+) of the plain.*?leave at (exit1 \d+ %, exit2 \d+ %, full \d+ %)", re.S)
# Lab's own model of the open notebook: the count of every code cell, and its outputs.
CELLS = """() => [...window.jupyterapp.shell.currentWidget.content.model.cells].filter(cell => cell.type === 'code')
    .map(cell => ({count: cell.executionCount, outputs: cell.outputs.toJSON()}))"""
ONE_FIGURE = "panel => panel.querySelectorAll('img').length === 1 && panel.querySelector('img').height > 100"
READY = "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
DONE = f"() => ({CELLS})().every(cell => cell.count) || ({CELLS})().flatMap(cell => cell.outputs).some(o => o.ename)"


@pytest.fixture(scope="module")
def lab():
    """The address of the notebooks in a JupyterLab on this checkout."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.copytree(ROOT / "notebooks", FOLDER / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--ServerApp.root_dir={ROOT}", f"--port={port}", "--ServerApp.port_retries=0", "--no-browser"]
    options += ["--allow-root", "--expose-app-in-browser", "--IdentityProvider.token="]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with (FOLDER / "lab.log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stdout=log, stderr=log, cwd=ROOT)
        try:
            while True:
                assert server.poll() is None, (FOLDER / "lab.log").read_text()
                try:
                    opener.open(f"http://127.0.0.1:{port}/api", timeout=60)
                    break
                except OSError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/runs/browser/notebooks"
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--no-proxy-server"])
        yield chromium
        chromium.close()


def run_all(browser, address, size=(1280, 1600)):
    """Open a notebook and run all of its cells by the menu; the page, and the outputs of each code cell."""
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(LONGEST_S * 1000)
    page.goto(f"{address}?reset")
    page.wait_for_function(READY)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(DONE)
    page.wait_for_function(READY)
    outputs = [cell["outputs"] for cell in page.evaluate(CELLS)]
    assert [output["evalue"] for of_cell in outputs for output in of_cell if "ename" in output] == []
    return page, outputs


def close(page):
    """End the kernel with the page: seventeen kernels with torch do not fit into the memory."""
    page.evaluate("() => window.jupyterapp.shell.currentWidget.context.sessionContext.shutdown()")
    page.close()


def test_the_sliders_of_the_explorer_move_its_numbers(lab, browser):
    page, outputs = run_all(browser, f"{lab}/09_explorer.ipynb")
    panel = page.locator(".jp-OutputArea-output", has=page.locator(".widget-slider", has_text="empty")).first
    panel.scroll_into_view_if_needed()
    texts = ["".join(output.get("text", "")) for of_cell in outputs for output in of_cell]
    before = next(found.groups() for text in texts if (found := MOVED.search(text)))  # of the figure above the sliders
    page.screenshot(path=FOLDER / "explorer_before.png")
    for slider, step in (("exit1", "ArrowLeft"), ("empty", "ArrowRight")):
        handle = panel.locator(".widget-slider", has_text=slider).locator(".noUi-handle")
        for _ in range(12):
            handle.press(step)
        page.wait_for_function(
            "([panel, before]) => /leave at .*full/.test(panel.innerText) && !panel.innerText.includes(before)",
            arg=[panel.element_handle(), f"AP {before[0]} at {before[1]}"],
        )
        page.wait_for_function(READY)
        page.wait_for_function(ONE_FIGURE, arg=panel.element_handle())
        after = MOVED.search(panel.inner_text()).groups()
        assert all(one != other for one, other in zip(before, after, strict=True)), (before, after)
        page.screenshot(path=FOLDER / f"explorer_{slider}.png")
        before = after
    close(page)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_with_its_defaults(lab, browser, name):
    page, outputs = run_all(browser, f"{lab}/{name}.ipynb")
    first = next(of_cell[0] for of_cell in outputs if of_cell)
    says = "".join(first.get("text", "")).startswith("A smoke run: ")
    page.screenshot(path=FOLDER / f"{name}.png")
    close(page)
    assert says == (name not in WHOLE), first
