"""What a model says, shown: nothing of it is executed, a little of it is formatted, its boxes lie on the picture."""

import pytest

from tests.serving.ui.conftest import CHAT, answer, ask, attach, bodies, opened, sse

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


def test_an_answer_that_came_at_once_has_no_speed(page):
    """What would be measured is how often the server tells, or the network: 50,000 tokens a second were seen."""
    chunks = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in ("a", " b")]
    usage = {
        "completion_tokens": 6,
        "prompt_tokens": 9,
        "prompt_tokens_details": {"visual_tokens": 0, "cached_tokens": 0},
    }
    stream = sse(*chunks, {"choices": [], "usage": usage}) + "data: [DONE]\n\n"
    page.route(CHAT, lambda route: route.fulfill(body=stream, content_type="text/event-stream"))
    ask(page, "What is it?")
    assert answer(page) == "a b"
    assert "6 tokens" in page.locator(".took").inner_text()
    assert "tokens/s" not in page.locator(".took").inner_text()
