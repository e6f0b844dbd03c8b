"""A conversation on the chat page: texts, pictures, videos; stopped, edited, given again; by keyboard alone."""

import base64
import re

import pytest
from PIL import Image

from tests.serving.conftest import eventually, url_of
from tests.serving.ui.conftest import LONG, UI, answer, ask, attach, bodies, in_the_page, message, opened


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


def test_an_earlier_question_is_edited_and_what_follows_goes(page, says):
    says("Yes.")  # an empty answer is not sent again
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
