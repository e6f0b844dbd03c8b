"""What goes wrong on the chat page: keys, full servers, bodies too large, streams that break, servers that are gone."""

import re

import pytest

from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import running
from tests.serving.test_page import get
from tests.serving.ui.conftest import CHAT, answer, ask, attach, bodies, opened, sse


def test_a_key_is_asked_for_kept_in_the_tab_and_sent(browser, service):
    parts, config = service.parts, ServingConfig(port=0)
    guarded = Service(parts, config, EngineConfig(cache_bytes=4_000_000))
    with running(guarded, api_key="secret") as server:
        assert get(server.url, "/v1/models")[0].status == get(server.url, "/ui/none.js")[0].status == 401
        with opened(browser, server.url, expected=["401"]) as page:
            key = page.get_by_label("Key", exact=True)
            key.fill("ключ")  # no header holds it: sent, it would look like a server that is gone
            key.press("Enter")
            assert page.evaluate("document.querySelector('#key input').validity.patternMismatch")
            assert page.locator("dialog#key[open]").count() == 1
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
