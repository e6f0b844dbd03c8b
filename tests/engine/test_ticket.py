"""What a request's pages depend on, and many requests in their order."""

from types import SimpleNamespace
from typing import Any

import pytest

from cascadevl.core.errors import MessageError
from cascadevl.core.generation import Generation
from cascadevl.engine.ticket import in_order, page_start
from cascadevl.ops.rope import Rope


def ended(text: str) -> Generation:
    return Generation(text=text, finish_reason="stop")


class Asked:
    """Requests that end in the reverse of their order, one in a step."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.aborted: list[Any] = []
        self.most_open = 0

    def submit(self, text: str) -> Any:
        if text == "bad":
            raise MessageError("It can never be answered.")
        self.open.append(SimpleNamespace(text=text, generation=None))
        self.most_open = max(self.most_open, len(self.open))
        return self.open[-1]

    def step(self) -> None:
        ticket = self.open.pop()
        if ticket.text == "interrupt":
            raise KeyboardInterrupt
        ticket.generation = ended(ticket.text)

    def answers(self, texts: list[str], most: int) -> list[Generation]:
        return in_order([lambda t=t: self.submit(t) for t in texts], most, self.step, self.aborted.append)


def test_answers_come_in_the_order_of_the_questions_and_a_refused_one_brings_its_error():
    found = Asked().answers(["a", "bad", "c", "d"], 10)
    assert [one.text for one in found] == ["a", "", "c", "d"]
    assert [type(one.error) for one in found] == [type(None), MessageError, type(None), type(None)]


def test_no_more_than_asked_for_are_under_way():
    asked = Asked()
    assert [one.text for one in asked.answers(list("abcdefg"), 3)] == list("abcdefg")
    assert asked.most_open == 3


def test_whoever_interrupts_leaves_nothing_behind():
    asked = Asked()
    with pytest.raises(KeyboardInterrupt):
        asked.answers(["a", "b", "interrupt"], 10)
    assert [ticket.text for ticket in asked.aborted] == ["a", "b", "interrupt"]


def test_pages_are_shared_among_prompts_whose_keys_are_turned_alike():
    plain = Rope(theta=1e4)
    dynamic = Rope(theta=1e4, kind="dynamic", factor=2.0, max_position=100)
    assert page_start(plain, 5, ()) == page_start(plain, 500, ()) == page_start(dynamic, 100, ()) == b""
    assert len({page_start(dynamic, num, ()) for num in (100, 101, 102)}) == 3
    assert len({page_start(plain, 5, adapters) for adapters in ((), ("a",), ("b",), ("a", "b"), ("ab",))}) == 5
