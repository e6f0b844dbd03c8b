"""The chat page in a real browser, headless, against a real server with the embedded model."""

import dataclasses
import json
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import cascadevl
from cascadevl.core.generation import Constraint
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import PATIENCE_S, running

UI = Path(cascadevl.__file__).parent / "serving" / "ui"
CHROMIUM = shutil.which("chromium")
QUIET = ("quic", "gpu", "background-networking", "component-update", "sync")
CHAT = "**/v1/chat/completions"
LONG = "".join(
    f"Sentence {number} of the answer. " for number in ("one", "two", "three", "four", "five", "six", "seven")
)


@pytest.fixture(scope="module")
def service():
    return Service(cascadevl.load("nano"), ServingConfig(port=0), EngineConfig(cache_bytes=50_000_000))


@pytest.fixture(scope="module")
def server(service):
    with running(service) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
    )
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    quiet = [f"--disable-{name}" for name in QUIET]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--no-first-run", *quiet]
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, expected=(), **options):
    """A page of its own, in which nothing may go wrong but what is `expected` in the console."""
    context = browser.new_context(**{"viewport": {"width": 1200, "height": 800}, **options})
    context.set_default_timeout(1000 * PATIENCE_S)
    page = context.new_page()
    wrong = []
    page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((url, "blob:")) or wrong.append(asked.url))
    page.goto(url)
    page.locator("#model", has_text=re.compile(".")).wait_for() if not expected else None
    yield page
    context.close()
    assert not [each for each in wrong if not any(part in each for part in expected)]


@pytest.fixture
def page(browser, server):
    with opened(browser, server.url) as page:
        yield page


@pytest.fixture
def says(service, monkeypatch):
    """The model has one thing to say from now on; the engine says it as it says everything."""

    def says(text):
        submit = service.loop.submit

        def constrained(job):
            job.sampling = dataclasses.replace(job.sampling, constraint=Constraint("choices", [text]))
            submit(job)

        monkeypatch.setattr(service.loop, "submit", constrained)

    return says


@pytest.fixture
def slow(service, monkeypatch):
    step = service.engine.step
    monkeypatch.setattr(service.engine, "step", lambda *told: (time.sleep(0.02), step(*told))[1])


def message(page):
    return page.locator("#message")


def ask(page, text):
    message(page).fill(text)
    message(page).press("Enter")


def answer(page, number=-1):
    """The text of an answer that has ended."""
    page.locator(".answer:not(.waiting)").nth(number).wait_for()
    page.locator(".answer").nth(number).locator(".took, .error").first.wait_for()
    return page.locator(".answer").nth(number).locator(".written").inner_text()


def bodies(page):
    """What is asked of the API from now on."""
    asked = []
    page.on("request", lambda request: request.url.endswith("completions") and asked.append(request.post_data_json))
    return asked


def sse(*values):
    return "".join(f"data: {json.dumps(value)}\r\n\r\n" for value in values)


def attach(page, *names):
    page.locator("#bottom input[type=file]").set_input_files([UI / name for name in names])


def in_the_page(page, way, name="receipt.png"):
    """Paste or drop a file, as the browser would tell it."""
    page.evaluate(
        """async ([way, name]) => {
            const bytes = await (await fetch(`ui/${name}`)).blob();
            const files = new DataTransfer();
            files.items.add(new File([bytes], name, { type: "image/png" }));
            const told = { bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files };
            const place = document.querySelector("main");
            if (way === "drop") place.dispatchEvent(new DragEvent("dragover", told));
            place.dispatchEvent(way === "drop" ? new DragEvent("drop", told) : new ClipboardEvent("paste", told));
        }""",
        [way, name],
    )
