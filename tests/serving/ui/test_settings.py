"""What is up to whoever reads the chat page: light or dark, the width of the screen, the settings of an answer."""

import re

from tests.serving.conftest import eventually
from tests.serving.ui.conftest import answer, ask, attach, bodies, opened


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
    eventually(lambda: page.evaluate("localStorage.getItem('settings')") == "{}")


def test_a_setting_that_cannot_be_is_not_taken(page):
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Temperature").fill("7")
    page.get_by_role("button", name="Done").click()
    assert page.locator("#settings").is_visible()  # the browser says what is wrong
    page.keyboard.press("Escape")
    eventually(lambda: page.evaluate("localStorage.getItem('settings')") == "{}")
