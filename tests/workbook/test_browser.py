"""The report and the explorer in a browser: Debian's chromium, driven by playwright."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import jupytext
import pytest
from commands import environment

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
PATIENCE = 240_000  # ms


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def lab(smoke_copy, tmp_path_factory):
    """Address and token of a JupyterLab with the copy's explorer, set to the smoke profile."""
    notebook = jupytext.read(smoke_copy / "notebooks/explorer.py")
    for cell in notebook.cells:
        cell.source = cell.source.replace('profile = "laptop"', 'profile = "smoke"')
    jupytext.write(notebook, smoke_copy / "notebooks/explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home, token = tmp_path_factory.mktemp("jupyter"), secrets.token_hex(8)
    folders = {f"JUPYTER_{name}_DIR": str(home / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={smoke_copy / 'notebooks'}",
    ]  # fmt: skip
    log = (home / "log").open("w")
    server = subprocess.Popen(command, cwd=smoke_copy, env=environment(smoke_copy) | folders, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2)
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()[-3000:]
                time.sleep(0.5)
        yield address, token
    finally:
        server.terminate()
        server.wait(30)


def watch(page) -> list[str]:
    """Collects a page's errors, failed requests, and requests to anywhere but this machine."""
    found: list[str] = []
    page.on("console", lambda message: found.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("requestfailed", lambda request: found.append(f"failed: {request.url}"))
    return found


def run_all_cells(page) -> None:
    """Run > Run All Cells, until a cell runs: JupyterLab, while a kernel starts, forgets it or asks which kernel."""
    asked = page.locator(".jp-Dialog").last
    page.add_locator_handler(asked, lambda: asked.locator(".jp-mod-accept").click(), no_wait_after=True)
    started = page.locator(".jp-InputArea-prompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    page.locator(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    for _ in range(10):
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            return started.wait_for(timeout=PATIENCE / 20)
        except sync_api.TimeoutError:
            continue
    raise AssertionError("no cell runs")


def test_the_report_works_without_a_network(browser, smoke_copy):
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    errors, index = watch(page), (smoke_copy / "runs/smoke/report/index.html").as_uri()
    page.goto(index)
    assert "smoke test" in page.inner_text("header")
    links = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    assert any("/notebooks/" in link for link in links)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than a phone"
    pictures = page.eval_on_selector_all("img", "images => images.map(i => i.complete && i.naturalWidth > 0)")
    assert pictures
    assert all(pictures)
    for link in dict.fromkeys(links):
        path, _, anchor = link.partition("#")
        if path.startswith(index) and anchor:
            assert page.query_selector(f"[id='{anchor}']"), link
    for link in dict.fromkeys(link for link in links if not link.startswith(index)):
        page.goto(link)  # raises where there is no such file
        assert page.query_selector("h1")
    context.close()
    assert errors == []


def test_the_explorers_figure_follows_its_slider(browser, lab):
    address, token = lab
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    page.set_default_timeout(PATIENCE)
    outside: list[str] = []
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:", "ws")) else outside.append(r.url))
    page.goto(f"{address}/lab/tree/explorer.ipynb?reset&token={token}")
    run_all_cells(page)
    picture = page.locator(".jupyter-widgets img.widget-image, img.widget-image").first
    picture.wait_for()
    before = picture.get_attribute("src")
    handle = page.locator(".widget-slider .noUi-handle, .noUi-handle").first
    handle.scroll_into_view_if_needed()
    handle.focus()
    handle.press("ArrowRight")
    page.wait_for_function(
        "before => document.querySelector('img.widget-image').getAttribute('src') !== before", arg=before
    )
    if folder := os.environ.get("SCREENSHOTS"):  # for a look at it
        page.screenshot(path=f"{folder}/explorer.png")
    assert outside == []
