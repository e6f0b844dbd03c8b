"""The chat page in a real browser, headless, against a real server with the embedded model."""

import base64
import dataclasses
import http.client
import json
import re
import shutil
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import cascadevl
from cascadevl.core.generation import Constraint
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.page import FILES
from tests.serving.conftest import PATIENCE_S, eventually, running, url_of

UI = Path(cascadevl.__file__).parent / "serving" / "ui"
CHROMIUM = shutil.which("chromium")
QUIET = ("quic", "gpu", "background-networking", "component-update", "sync")
CHAT = "**/v1/chat/completions"
LONG = "".join(
    f"Sentence {number} of the answer. " for number in ("one", "two", "three", "four", "five", "six", "seven")
)


# The files


def get(url, path, method="GET", **headers):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def test_the_table_has_every_file_of_the_page_and_no_other():
    assert sorted(name for name, _ in FILES.values()) == sorted(path.name for path in UI.iterdir())


def test_the_page_names_no_file_that_is_not_served_and_nothing_elsewhere():
    for path in UI.glob("*.*"):
        if path.suffix == ".png":
            continue
        text = path.read_text()
        for name in re.findall(r'(?:src|href|data-picture)="(ui/[^"#]+)"|from "\./([^"]+)"', text):
            assert f"/{name[0] or 'ui/' + name[1]}" in FILES
        elsewhere = re.findall(r"""["'(=]\s*(?:https?:)?//[^"')\s]+""", text)
        assert [each[1:] for each in elsewhere] in ([], ["http://www.w3.org/2000/svg"]), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), path.name


@pytest.fixture(scope="module")
def service():
    return Service(cascadevl.load("nano"), ServingConfig(port=0), EngineConfig(cache_bytes=50_000_000))


@pytest.fixture(scope="module")
def server(service):
    with running(service) as server:
        yield server


def test_files_come_with_a_strict_policy_and_are_sent_again_only_where_they_changed(server):
    for path, (name, kind) in FILES.items():
        response, body = get(server.url, path)
        assert response.status == 200
        assert body == (UI / name).read_bytes()
        assert response.getheader("Content-Type", "").startswith(kind)
        assert response.getheader("X-Content-Type-Options") == "nosniff"
        assert response.getheader("Cache-Control") == "no-cache"
        policy = response.getheader("Content-Security-Policy", "")
        assert "default-src 'none'" in policy and "unsafe" not in policy and "trusted-types 'none'" in policy
        etag = response.getheader("ETag", "")
        again, nothing = get(server.url, path, **{"If-None-Match": f'"other", W/{etag}'})
        assert (again.status, nothing) == (304, b"")
        assert again.getheader("Content-Security-Policy") == policy
        assert get(server.url, path, **{"If-None-Match": '"other"'})[0].status == 200
        assert get(server.url, path, "HEAD")[1] == b""


def test_no_other_file_can_be_asked_for(server):
    for path in ("/ui/", "/ui/index.html", "/ui/page.py", "/ui/../page.py", "/ui/%2e%2e/page.py", "/ui//app.js"):
        assert get(server.url, path)[0].status == 404


def test_a_foreign_host_name_gets_no_page_either(server):
    assert get(server.url, "/", Host="evil.example")[0].status == 400


# The page


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
    monkeypatch.setattr(service.engine, "step", lambda: (time.sleep(0.02), step())[1])


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


def test_the_page_opens_without_a_complaint_and_tells_the_model(page):
    assert page.locator("#model").inner_text() == "nano"
    assert page.title() == "nano · CascadeVL"
    assert page.evaluate("document.activeElement.id") == "message"


def test_a_text_answer_streams_and_tells_what_it_took(page, says, slow, service):
    says(LONG.strip())
    ask(page, "Tell me something.")
    page.locator(".written", has_text="Sentence").wait_for()
    assert len(page.locator(".written").inner_text()) < len(LONG) / 2
    assert page.get_by_role("button", name="Stop").is_visible()
    assert answer(page) == LONG.strip()
    took = page.locator(".took").inner_text().replace("\n", " ")
    assert re.search(
        r"First token \d+\.\d\d s Speed \d.* tokens/s Prompt \d+, 0 visual, \d+ cached Answer \d+ tokens", took
    )
    assert service.parts.spec.hash[:8] in took
    # A screen reader hears sentences, none twice.
    assert " ".join(page.locator("#announcer p").all_inner_texts()) == f"Answering… {LONG.strip()} Answered."
    assert page.locator("#announcer p").count() > 4


@pytest.mark.parametrize("way", ["chosen", "pasted", "dropped", "example"])
def test_a_picture_is_shown_with_its_tiles_sent_and_answered(page, server, way):
    if way == "example":
        page.get_by_role("button", name="What is the total?").click()
    elif way == "chosen":
        attach(page, "receipt.png")
    else:
        in_the_page(page, {"pasted": "paste", "dropped": "drop"}[way])
    counted = server.client.post("../tokenize", body={"messages": picture_of("receipt.png")}, cast_to=dict)
    tokens = f"{counted['visual_tokens']} tokens"
    page.locator(".thumbs li", has_text=tokens).wait_for()
    assert not page.locator("#drop").is_visible()
    ask(page, "What is the total?")
    assert answer(page) == "$6.64"
    columns, rows = counted["grids"][0]
    assert page.locator("figcaption").inner_text() == f"{columns} × {rows} tiles + thumbnail · {tokens}"
    assert page.locator(".tiles i").count() == columns - 1 + rows - 1
    assert page.locator(".tiles .left").first.get_attribute("style") == "left: 50%;"
    assert f", {counted['visual_tokens']} visual" in page.locator(".took").inner_text()
    assert page.locator(".thumbs li").count() == 0


def picture_of(name):
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url_of(Image.open(UI / name))}}]}]


def test_the_other_example_is_answered_too(page):
    page.get_by_role("button", name="Read the text.").click()
    message(page).press("Enter")
    assert answer(page) == "golden lantern"


def test_several_pictures_can_be_attached_and_taken_away_again(page):
    asked = bodies(page)
    attach(page, "receipt.png", "line.png")
    attach(page, "receipt.png")
    in_the_page(page, "paste", "line.png")
    assert page.locator(".thumbs li").count() == 4
    page.get_by_role("button", name="Remove receipt.png").last.click()
    page.get_by_role("button", name="Remove line.png").last.click()
    ask(page, "Which?")
    answer(page)
    kinds = [part["type"] for part in asked[0]["messages"][0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    sent = asked[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert sent == "data:image/png;base64," + base64.b64encode((UI / "receipt.png").read_bytes()).decode()
    assert page.locator("figure").count() == 2


def test_a_video_is_shown_counted_and_answered(page, tmp_path):
    pytest.importorskip("av", reason="videos need av")
    from tests.preprocessing.films import write_video

    film = write_video(tmp_path / "film.mp4", 12, (64, 48))
    page.locator("#bottom input[type=file]").set_input_files(film)
    page.locator(".thumbs li", has_text="128 tokens").wait_for()
    ask(page, "What is it?")
    answer(page)
    assert page.locator("figcaption").inner_text() == "8 frames · 8 tiles · 128 tokens"
    assert "128 visual" in page.locator(".took").inner_text()


def test_what_is_no_picture_is_refused_by_name(browser, server, tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "broken.png").write_bytes(b"no picture either")
    with opened(browser, server.url, expected=["400"]) as page:
        choose = page.locator("#bottom input[type=file]")
        choose.set_input_files([tmp_path / "notes.txt"])
        assert page.locator(".problem").inner_text() == "notes.txt: neither a picture nor a video."
        assert page.locator(".thumbs li").count() == 0
        choose.set_input_files([tmp_path / "broken.png"])
        page.locator(".thumbs .bad").wait_for()
        assert page.locator(".problem").inner_text().startswith("broken.png: ")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_stop_ends_a_stream_and_keeps_what_was_said(page, says, slow, service, way):
    says(LONG.strip())
    ask(page, "Tell me something.")
    page.locator(".written", has_text="Sen").wait_for()
    page.keyboard.press("Escape") if way == "Escape" else page.get_by_role("button", name="Stop").click()
    page.locator(".note", has_text="Stopped.").wait_for()
    assert LONG.startswith(page.locator(".written").inner_text())
    assert page.get_by_role("button", name="Send").is_visible()
    eventually(lambda: not service.engine.busy and not len(service.admission))


def test_an_earlier_question_is_edited_and_what_follows_goes(page):
    for question in ("First", "Second", "Third"):
        ask(page, question)
        answer(page)
    asked = bodies(page)
    page.get_by_role("button", name="Edit").nth(1).click()
    editor = page.locator(".exchange .composer textarea")
    assert editor.input_value() == "Second"
    editor.press("Escape")
    assert page.locator(".question").count() == 3
    page.get_by_role("button", name="Edit").nth(1).press("Enter")
    editor.fill("Other")
    editor.press("Enter")
    page.locator(".exchange").nth(2).wait_for(state="detached")
    answer(page)
    assert page.locator(".said").all_inner_texts() == ["First", "Other"]
    roles = [(turn["role"], turn["content"]) for turn in asked[0]["messages"]]
    assert [role for role, _ in roles] == ["user", "assistant", "user"]
    assert roles[2][1] == [{"type": "text", "text": "Other"}]


def test_an_answer_is_given_again_and_a_new_chat_begins_with_nothing(page):
    for question in ("First", "Second"):
        ask(page, question)
        answer(page)
    asked = bodies(page)
    page.get_by_role("button", name="Answer again").first.click()
    page.locator(".exchange").nth(1).wait_for(state="detached")
    answer(page)
    assert [turn["role"] for turn in asked[0]["messages"]] == ["user"]
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".exchange").count() == 0
    assert page.get_by_role("heading", name="Ask about a picture").is_visible()


def test_an_answer_is_copied_as_the_model_wrote_it(browser, server, says):
    says("**Total:** 6.64")
    with opened(browser, server.url, permissions=["clipboard-read", "clipboard-write"]) as page:
        ask(page, "Total?")
        assert answer(page) == "Total: 6.64"
        page.get_by_role("button", name="Copy").click()
        assert page.evaluate("navigator.clipboard.readText()") == "**Total:** 6.64"


def test_everything_is_reached_and_used_by_keyboard_alone(page):
    focused = "document.activeElement.ariaLabel || document.activeElement.textContent.trim()"
    page.locator("h1").click()
    reached = []
    for number in range(9):
        page.keyboard.press("Tab" if number else "Shift+Tab")
        reached.append(page.evaluate(focused))
        ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid" or reached[-1] == "Message"  # its frame shows the focus
    assert reached == [
        "To the message", "New chat", "Light or dark", "Settings", "Read the text.", "What is the total?", "Message",
        "Add pictures or videos", "Send",
    ]  # fmt: skip
    for _ in range(3):
        page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")  # the example
    page.locator(".thumbs li", has_text="tokens").wait_for()
    assert page.evaluate(focused) == "Message"
    page.keyboard.press("End")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Exactly.")
    assert message(page).input_value() == "What is the total?\nExactly."
    page.keyboard.press("Enter")
    answer(page)
    assert page.locator(".said").inner_text() == "What is the total?\nExactly."
    assert page.evaluate(focused) == "Message"


# What a model says


HOSTILE = (
    '<img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script> [a](javascript:hacked=1) '
    "**<img src=x onerror=hacked=1>** `<svg onload=hacked=1>` <ref><img src=x onerror=hacked=1></ref>"
    "<box>[[1, 2, 3, 4]]</box>\n```<img src=x onerror=hacked=1>\n</code>"
    "<iframe srcdoc='<script>parent.hacked=1</script>'>"
)


def test_nothing_that_a_model_says_is_executed(page, says):
    says(HOSTILE)
    attach(page, "receipt.png")
    ask(page, "Attack me.")
    text = answer(page)
    page.wait_for_timeout(300)  # what loads takes a moment to fail
    assert page.evaluate("window.hacked") is None
    assert '<img src=x onerror="window.hacked = 1"> <script>window.hacked = 1</script> [a](javascript:hacked=1)' in text
    assert "<iframe srcdoc=" in text
    assert page.locator(".answer").locator("script, iframe, svg[onload], img[onerror], a, .written img").count() == 0


def test_the_attack_above_works_where_text_becomes_markup(browser):
    page = browser.new_page()
    page.set_content(f"<p>{HOSTILE}")
    page.wait_for_function("window.hacked === 1")
    page.close()


def test_even_a_mistake_of_ours_could_not_make_markup_of_text(browser, server):
    with opened(browser, server.url, expected=["TrustedHTML"]) as page:
        with pytest.raises(Exception, match="TrustedHTML"):
            page.evaluate("document.body.innerHTML = '<img src=x onerror=hacked=1>'")
        assert page.evaluate("window.hacked") is None


def test_a_little_markdown_is_understood(page, says):
    says(
        "# Title\nA **bold** word, `code` and 2 * 3 * 4.\n\n- one\n- **two**\n\n3. three\n4. four\n"
        "```py\na = '<b>'\n```\nEnd"
    )
    ask(page, "Format it.")
    answer(page)
    written = page.locator(".written")
    tags = written.evaluate("node => [...node.children].map((child) => child.tagName)")
    assert tags == ["H3", "P", "UL", "OL", "PRE", "P"]
    assert written.locator("strong").all_inner_texts() == ["bold", "two"]
    assert written.locator("li").all_inner_texts() == ["one", "two", "three", "four"]
    assert written.locator("ol").get_attribute("start") == "3"
    assert written.locator("pre").inner_text() == "a = '<b>'"
    assert written.locator("p").first.inner_text() == "A bold word, code and 2 * 3 * 4."


def test_boxes_lie_on_the_last_picture_and_light_up_with_their_names(page, says):
    says(
        "The <ref>sum</ref><box>[[100, 500, 600, 900], [0, 0, 10, 10]]</box> and "
        "**<ref>tax</ref><box>[[0, 0, 500, 50]]</box>**."
    )
    attach(page, "line.png", "receipt.png")
    ask(page, "Where?")
    assert answer(page) == "The sum and tax."
    boxes = page.locator(".boxed .box")
    assert [box.inner_text() for box in boxes.all()] == ["sum", "sum", "tax"]
    picture = page.locator(".boxed img").bounding_box()
    place = boxes.first.bounding_box()
    assert place["x"] - picture["x"] == pytest.approx(0.1 * picture["width"], abs=1)
    assert place["y"] - picture["y"] == pytest.approx(0.5 * picture["height"], abs=1)
    assert place["width"] == pytest.approx(0.5 * picture["width"], abs=1)
    assert place["height"] == pytest.approx(0.4 * picture["height"], abs=1)
    lit = "nodes => nodes.map((node) => node.classList.contains('on'))"
    page.locator(".mention", has_text="sum").hover()
    assert boxes.evaluate_all(lit) == [True, True, False]
    page.locator(".mention", has_text="tax").focus()
    page.mouse.move(0, 0)
    boxes.first.hover()
    assert page.locator(".mention").evaluate_all(lit)[0]
    url = page.locator(".boxed img").get_attribute("src")
    assert url == page.locator(".figures img").last.get_attribute("src")


def test_what_a_model_thought_stands_before_its_answer_and_is_not_sent_back(page):
    deltas = [{"reasoning_content": "Let me <b>see</b>. "}, {"reasoning_content": "Yes."}, {"content": "42"}]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    stream = sse(*chunks) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    ask(page, "What is it?")
    assert answer(page) == "42"
    page.get_by_text("Thinking").click()
    assert page.locator(".thinking p").inner_text() == "Let me <b>see</b>. Yes."
    asked = bodies(page)
    ask(page, "Sure?")
    answer(page)
    assert asked[0]["messages"][1] == {"role": "assistant", "content": "42"}


# How it looks


def test_it_is_light_or_dark_as_the_system_or_its_reader_wants(browser, server):
    ground = "getComputedStyle(document.body).backgroundColor"
    for scheme in ("light", "dark"):
        with opened(browser, server.url, color_scheme=scheme) as page:
            own = page.evaluate(ground)
            assert (sum(map(int, re.findall(r"\d+", own)[:3])) > 380) == (scheme == "light")
            page.get_by_role("button", name="Light or dark").click()
            other = page.evaluate(ground)
            assert other != own
            page.reload()
            assert page.evaluate(ground) == other
            page.get_by_role("button", name="Light or dark").click()
            assert page.evaluate(ground) == own
            assert page.evaluate("localStorage.getItem('theme')") is None


def test_at_the_width_of_a_phone_nothing_is_wider_than_the_screen(browser, server, says):
    says(
        "W" * 200
        + " `"
        + "code" * 60
        + "`\n```\n"
        + "wide " * 60
        + "\n```\n<ref>"
        + "name " * 40
        + "</ref><box>[[900, 0, 999, 99]]</box>"
    )
    with opened(browser, server.url, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True) as page:
        narrow = "document.documentElement.scrollWidth <= 390 && innerWidth === 390"
        assert page.evaluate(narrow)
        attach(page, "receipt.png", "line.png", "line.png", "line.png", "line.png")
        assert page.evaluate(narrow)
        ask(page, "W" * 200)
        answer(page)
        assert page.evaluate(narrow)
        page.get_by_role("button", name="larger").first.click()
        page.get_by_role("button", name="Edit").click()
        assert page.evaluate(narrow)
        page.get_by_role("button", name="Settings").click()
        assert page.evaluate(narrow)
        for button in page.locator("header button").all():
            assert button.bounding_box()["x"] + button.bounding_box()["width"] <= 390


# What goes wrong


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(browser, service):
    parts, config = service.parts, ServingConfig(port=0)
    guarded = Service(parts, config, EngineConfig(cache_bytes=4_000_000))
    with running(guarded, api_key="secret") as server:
        assert get(server.url, "/v1/models")[0].status == get(server.url, "/ui/none.js")[0].status == 401
        with opened(browser, server.url, expected=["401"]) as page:
            key = page.get_by_label("Key", exact=True)
            key.fill("wrong")
            key.press("Enter")
            page.get_by_text("The last key was not accepted.").wait_for()
            key.fill("secret")
            key.press("Enter")
            page.locator("#model", has_text="nano").wait_for()
            ask(page, "Hello")
            answer(page)
            assert page.locator(".error").count() == 0
            assert page.evaluate("[sessionStorage.getItem('key'), JSON.stringify(localStorage)]") == ["secret", "{}"]
        with opened(browser, server.url, expected=["401"]) as page:
            page.get_by_role("button", name="Not now").click()
            ask(page, "Hello")
            page.get_by_role("button", name="Not now").click()
            page.locator(".error", has_text="A key is needed").wait_for()
            page.get_by_role("button", name="Try again").click()
            page.get_by_label("Key", exact=True).fill("secret")
            page.keyboard.press("Enter")
            answer(page)
            assert page.locator(".said").all_inner_texts() == ["Hello"]
            assert page.locator(".took").count() == 1


def test_a_full_server_says_when_to_come_again_and_the_question_is_kept(browser, service):
    small = Service(service.parts, ServingConfig(port=0, max_requests=1), EngineConfig(cache_bytes=4_000_000))
    with running(small) as server, opened(browser, server.url, expected=["429"]) as page:
        with small.admission.place("somebody else"):
            ask(page, "Hello")
            page.locator(".error", has_text="The server is full").wait_for()
            assert page.locator(".said").inner_text() == "Hello"
            again = page.get_by_role("button", name="Try again")
            assert re.fullmatch(r"Try again in \d+ s", again.inner_text()) and again.is_disabled()
        again.click()  # as soon as it can be
        page.locator(".took").wait_for()
        assert page.locator(".error").count() == 0


def test_what_is_too_large_is_said_so_and_can_be_edited(browser, service):
    small = Service(service.parts, ServingConfig(port=0, max_body_bytes=4000), EngineConfig(cache_bytes=4_000_000))
    with running(small) as server, opened(browser, server.url, expected=["413"]) as page:
        attach(page, "receipt.png")
        page.locator(".problem", has_text="4,000 bytes").wait_for()
        ask(page, "What is the total?")
        page.locator(".error", has_text="4,000 bytes").wait_for()
        page.get_by_role("button", name="Edit").click()
        page.locator(".exchange").get_by_role("button", name="Remove receipt.png").click()
        page.locator(".exchange textarea").press("Enter")
        page.locator(".took").wait_for()
        assert page.locator("figure").count() == 0


SAID = {"choices": [{"index": 0, "delta": {"content": "Half an ans"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (sse(SAID), "The connection broke before the answer was finished."),
        (sse(SAID, {"error": {"message": "The answer was not finished in time."}}), "was not finished in time"),
    ],
)
def test_a_stream_that_breaks_keeps_its_text_and_says_so(page, stream, expected):
    page.route(CHAT, lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    ask(page, "Hello")
    page.locator(".error", has_text=expected).wait_for()
    assert page.locator(".written").inner_text() == "Half an ans"
    page.unroute(CHAT)
    page.get_by_role("button", name="Try again").click()
    page.locator(".took").wait_for()
    assert page.locator(".error").count() == 0


def test_a_server_that_is_gone_is_said_to_be_and_what_got_no_answer_is_not_sent_again(browser, server):
    with opened(browser, server.url, expected=["ERR_FAILED"]) as page:
        page.route(CHAT, lambda route: route.abort())
        ask(page, "Lost")
        page.locator(".error", has_text="cannot be reached").wait_for()
        page.unroute(CHAT)
        asked = bodies(page)
        ask(page, "Next")
        answer(page)
        assert [turn["content"][0]["text"] for turn in asked[0]["messages"]] == ["Next"]
        assert page.locator(".said").all_inner_texts() == ["Lost", "Next"]


# Settings


def test_settings_are_sent_where_they_are_set_and_kept(page, says):
    says("Longer than three tokens.")
    asked = bodies(page)
    ask(page, "Hello")
    answer(page)
    assert set(asked[0]) == {"messages", "stream", "stream_options"}
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("3")
    page.get_by_label("Max tiles").fill("1")
    page.get_by_role("button", name="Done").click()
    attach(page, "receipt.png")
    page.locator(".thumbs li", has_text="16 tokens").wait_for()
    page.reload()
    attach(page, "receipt.png")
    ask(page, "Hello")
    answer(page)
    assert page.locator("figcaption").inner_text() == "1 tile · 16 tokens"
    assert page.locator(".note", has_text="Cut at the limit").count() == 1
    body = asked[-1]
    assert (body["temperature"], body["max_tokens"], body["max_tiles"]) == (0.5, 3, 1)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Reset").click()
    page.get_by_role("button", name="Done").click()
    assert page.evaluate("localStorage.getItem('settings')") == "{}"


def test_a_setting_that_cannot_be_is_not_taken(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("7")
    page.get_by_role("button", name="Done").click()
    assert page.locator("#settings").is_visible()  # the browser says what is wrong
    page.keyboard.press("Escape")
    assert page.evaluate("localStorage.getItem('settings')") == "{}"
