"""The report and the explorer in a browser: Debian's chromium, driven by playwright."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from commands import environment
from nbformat import v4
from PIL import Image

from workbook.paths import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: make setup")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
PATIENCE = 120_000  # ms


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as play:
        started = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def lab(run_folders, tiny, tmp_path_factory):
    """A JupyterLab with an explorer of tiny runs, whose kernel has started: (its page's address, a picture's path)."""
    folder = tmp_path_factory.mktemp("lab")
    Image.effect_noise((48, 40), 80).convert("RGB").save(folder / "own.png")
    cells = [
        "from pathlib import Path",
        "from workbook.explorer import Session",
        "from workbook.explorer.widget import Explorer",
        "from workbook.notebook import quiet",
        "quiet()",
        f"row = {{'image': {str(folder / 'own.png')!r}, 'question': 'Where?', 'answer': 'left'}}",
        "prompts = {'q0': 'Where is the dog?', 'q1': '<b id=evil>Who?</b>'}",
        "rows = [row | {'id': name, 'prompt': prompt} for name, prompt in prompts.items()]",
        f"runs = {{name: Path({str(run_folders['viral-s0'].parent)!r}, name) for name in {list(run_folders)}}}",
        f"teachers = {{'clip': {{'kind': 'clip', 'path': {str(tiny / 'clip')!r}}}}}",
        f"session = Session(runs, teachers, ['pope_random'], lambda _: rows, Path({str(folder / 'out')!r}), 2)",
        "Explorer(session, 'tiny models')",
    ]
    metadata = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": metadata})
    nbformat.write(notebook, folder / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(8)
    variables = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1"]
    command += [f"--port={port}", f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    log = (folder / "log").open("w", encoding="utf-8")
    server = subprocess.Popen(command, env=environment(ROOT) | variables, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    session = {"path": "explorer.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}}
    headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
    start = urllib.request.Request(f"{address}/api/sessions", json.dumps(session).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        for _ in range(240):
            try:
                direct.open(start, timeout=120).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text(encoding="utf-8")[-3000:]
                time.sleep(0.5)
        yield f"{address}/lab/tree/explorer.ipynb?token={token}", folder / "own.png"
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def watch(page, address: str = "file:") -> list[str]:
    """Collects a page's errors and its requests to anywhere but `address`."""
    problems: list[str] = []
    inside = (address, address.replace("http:", "ws:"), "data:", "blob:")
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith(inside) else problems.append(f"outside: {r.url}"))
    return problems


def screenshot(page, name: str) -> None:
    """For a look at it, where SCREENSHOTS names a folder."""
    if folder := os.environ.get("SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


OPEN = """() => {
  const notebook = window.jupyterapp?.shell.currentWidget;
  return notebook?.context?.isReady && notebook.sessionContext?.session?.kernel?.connectionStatus === "connected";
}"""


@contextmanager
def explored(browser, address: str):
    """The page of a notebook whose cells have run, when the explorer's picture is there; and its errors."""
    page = browser.new_context(viewport={"width": 1300, "height": 1000}).new_page()
    page.set_default_timeout(PATIENCE)
    problems = watch(page, address.split("/lab/")[0])
    page.goto(address)
    page.wait_for_function(OPEN)
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_selector(".viral-explorer canvas[aria-label]")
    page.eval_on_selector(".viral-explorer", "explorer => explorer.scrollIntoView()")
    yield page
    page.context.close()
    assert problems == []


def chosen(page) -> str:
    return page.get_attribute(".viral-explorer canvas", "aria-label")


@pytest.mark.parametrize("width", [390, 1200])
def test_the_report_needs_no_network_and_runs_nothing(browser, report_folder, width):
    context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
    page, index = context.new_page(), (report_folder / "index.html").as_uri()
    outside: list[str] = []
    page.on("requestfinished", lambda r: None if r.url.startswith(("file:", "data:")) else outside.append(r.url))
    page.goto(index)
    assert "smoke test" in page.inner_text("header")
    links = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
    assert all(page.query_selector(f"[id='{link.split('#')[1]}']") for link in links if "#" in link)
    pages = [index, *dict.fromkeys(link for link in links if "#" not in link)]
    assert len(pages) == 2
    for address in pages:
        page.goto(address)  # raises where there is no such file
        page.eval_on_selector_all("details", "all => all.forEach(details => details.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the screen"
        pictures = page.eval_on_selector_all("img[src^=data]", "all => all.map(i => i.complete && i.naturalWidth > 0)")
        assert pictures
        assert all(pictures)
        assert page.evaluate("window.evil") is None
        violations = axe.Axe().run(page).response["violations"]
        assert [v["help"] for v in violations if v["impact"] in ("serious", "critical")] == []
        screenshot(page, f"report-{width}-{pages.index(address)}")
    context.close()
    assert outside == []


SLIDE = """slider => Array.from({length: 21}, (_, i) => {
  slider.value = i % 5;
  const start = performance.now();
  slider.dispatchEvent(new Event("input"));
  return performance.now() - start;
}).sort((a, b) => a - b)"""


DROP = """async explorer => {
  const picture = await new Promise(resolve => explorer.querySelector("canvas").toBlob(resolve));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([picture], "dropped.png"));
  explorer.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));
}"""


def test_the_explorer(browser, lab):
    address, picture = lab
    with explored(browser, address) as page:
        canvas, status = page.locator(".viral-explorer canvas"), page.locator(".viral-explorer .status")
        box = canvas.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 1000, "the picture is not seen without scrolling"

        # A moved layer is drawn at once; how long the first picture of a question takes is what the kernel says.
        assert page.eval_on_selector(".viral-explorer input[type=range]", SLIDE)[10] < 150  # ms
        seconds = []
        for question in ("Where?", "Who?", "What?"):
            page.get_by_label("own question").fill(question)
            page.get_by_label("own question").press("Enter")
            page.wait_for_function(
                f"document.querySelector('.viral-explorer .answers').innerText.includes('{question}')"
            )
            seconds.append(float(status.inner_text().removesuffix(" s")))
        assert min(seconds) < 3

        assert page.query_selector(".jp-OutputArea .widget-hprogress, .jp-RenderedText[data-mime-type*=stderr]") is None

        # Patches, by mouse and by key; what was chosen last is in the link, which another page restores.
        canvas.click(position={"x": 100, "y": 100})
        page.wait_for_selector(".viral-explorer canvas[aria-label*='patch 1, 1']")
        canvas.press("ArrowUp")
        page.wait_for_selector(".viral-explorer canvas[aria-label*='patch 0, 1']")
        page.get_by_role("slider").press("Home")
        page.get_by_role("button", name="copy link").click()
        link = page.locator(".viral-explorer .link").input_value()
        screenshot(page, "explorer")

        page.get_by_label("own image").fill("no/such.png")
        page.get_by_label("own image").press("Enter")
        page.get_by_text("no image no/such.png").wait_for()
        page.set_input_files(".viral-explorer input[type=file]", picture)
        page.wait_for_function("document.querySelector('.image input').value.endsWith('.png')")
        uploaded = page.input_value(".viral-explorer .image input")
        page.eval_on_selector(".viral-explorer", DROP)
        page.wait_for_function(f"!['', {uploaded!r}].includes(document.querySelector('.image input').value)")
        page.get_by_role("button", name="save figure").click()
        page.get_by_text("figure-001.png").wait_for()
        assert Image.open(picture.parent / "out/figure-001.png").width >= box["width"]

        # Text of models and files stays text.
        page.get_by_label("own question").fill("")
        page.locator(".viral-explorer select").last.wait_for()
        page.get_by_label("question", exact=True).select_option("q1")
        page.get_by_text("<b id=evil>").first.wait_for()
        assert page.query_selector("#evil") is None

    state = link.partition("#")[2]
    with explored(browser, f"{address}#{state}") as page:
        page.wait_for_selector(".viral-explorer canvas[aria-label*='layer 0, patch 0, 1']")
        page.locator(".viral-explorer .answers", has_text="What?").wait_for()
