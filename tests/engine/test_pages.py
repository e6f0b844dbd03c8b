"""Pages: each is in one place, found by what it holds, and given up in the right order."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from cascadevl.core.errors import ConfigError, InternalError
from cascadevl.engine.pages import PagePool, page_contents

A, B, C = b"a", b"b", b"c"


def _filled(*contents: bytes, num_pages: int = 4) -> tuple[PagePool, list[int]]:
    """A pool, and one holder's pages, published."""
    pool = PagePool(num_pages, 2)
    pages = [page for _ in contents if (page := pool.take()) is not None]
    for page, content in zip(pages, contents, strict=True):
        pool.publish(page, content)
    return pool, pages


def test_all_pages_are_taken_once_and_then_none() -> None:
    pool = PagePool(3, 2)
    assert {pool.take(), pool.take(), pool.take()} == {0, 1, 2}
    assert pool.take() is None and pool.num_available == 0


def test_a_pool_without_pages_is_refused() -> None:
    for numbers in ((0, 2), (2, 0)):
        with pytest.raises(ConfigError, match=r"0"):
            PagePool(*numbers)


def test_known_pages_are_found_up_to_the_first_that_is_not() -> None:
    pool, pages = _filled(A, B, C)
    assert pool.find([A, B, b"x", C]) == pages[:2]
    pool.check_integrity([pages, pages[:2]])
    assert pool.find([b"x", A]) == []


def test_a_shared_page_is_free_when_its_last_holder_goes() -> None:
    pool, pages = _filled(A)
    again = pool.find([A])
    pool.release(pages)
    assert pool.num_available == 3
    pool.release(again)
    assert pool.num_available == 4
    assert pool.find([A]) == pages, "it is nobody's, but not forgotten"


def test_pages_without_content_are_taken_before_kept_ones_are_given_up() -> None:
    pool, pages = _filled(A, B)
    pool.release(pages)
    fresh = [pool.take(), pool.take()]
    assert not set(fresh) & set(pages)
    assert pool.find([A, B]) == pages


def test_the_longest_unused_goes_first_and_of_one_request_its_last_tokens() -> None:
    pool, [a, b, c] = _filled(A, B, C, num_pages=3)
    pool.release([a, b])
    pool.release([c])
    assert pool.take() == b, "without what stands before it, it could not be found either"
    assert pool.find([A]) == [a]
    pool.release([a])  # used again just now
    assert [pool.take(), pool.take()] == [c, a]
    assert pool.find([A]) == pool.find([C]) == []


def test_of_two_pages_alike_the_first_is_found_and_the_other_is_free_later() -> None:
    pool, pages = _filled(A, A)
    assert pool.find([A]) == pages[:1]
    pool.release(pages[1:])
    pool.check_integrity([pages[:1], pages[:1]])


def test_clearing_forgets_contents_and_leaves_holders_their_pages() -> None:
    pool, pages = _filled(A, B)
    pool.release(pages[1:])
    pool.clear()
    assert pool.find([A]) == pool.find([B]) == []
    pool.check_integrity([pages[:1]])
    pool.release(pages[:1])
    pool.check_integrity()
    assert pool.num_available == 4


def test_giving_back_twice_and_publishing_what_is_nobodys_are_mistakes() -> None:
    pool, pages = _filled(A)
    pool.release(pages)
    with pytest.raises(AssertionError, match="twice"):
        pool.release(pages)
    with pytest.raises(AssertionError, match="nobody"):
        pool.publish(pages[0], B)


DAMAGES: dict[str, Callable[[PagePool], object]] = {
    "not held as often": lambda pool: pool._holders.__setitem__(0, 2),
    "free twice": lambda pool: pool._free.append(pool._free[0]),
    "a page is free twice": lambda pool: pool._free.append(next(iter(pool._kept))),
    "lost": lambda pool: pool._free.pop(),
    "free page is still found": lambda pool: pool._content.__setitem__(pool._free[0], b"x"),
    "kept without a content": lambda pool: pool._content.__setitem__(next(iter(pool._kept)), None),
    "index": lambda pool: pool._found.pop(A),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_noticed(damage: str) -> None:
    pool, pages = _filled(A, B)
    pool.release(pages[1:])
    pool.check_integrity([pages[:1]])
    DAMAGES[damage](pool)
    with pytest.raises(InternalError, match=damage):
        pool.check_integrity([pages[:1]])


def test_a_request_that_lists_pages_it_does_not_hold_is_noticed() -> None:
    pool, pages = _filled(A)
    for held in ([], [pages, pages], [[3]]):
        with pytest.raises(InternalError, match="as often"):
            pool.check_integrity(held)


def test_contents_are_those_of_full_pages_and_of_all_before() -> None:
    keys = np.arange(11)
    names = page_contents(keys, 4)
    assert len(names) == 2 and len(set(names)) == 2
    assert page_contents(keys[:8], 4) == names
    assert page_contents(keys[:7], 4) == names[:1]
    assert page_contents(keys[:3], 4) == []


def test_any_other_token_changes_its_page_and_all_behind() -> None:
    keys, names = np.arange(12), page_contents(np.arange(12), 4)
    for changed in range(12):
        other = np.where(keys == changed, 99, keys)
        same = [a == b for a, b in zip(page_contents(other, 4), names, strict=True)]
        assert same == [page < changed // 4 for page in range(3)]


def test_pages_that_start_from_something_else_have_other_names() -> None:
    keys = np.arange(8)
    assert not set(page_contents(keys, 4, b"adapter")) & set(page_contents(keys, 4))


class Pool(RuleBasedStateMachine):
    """Requests that take, publish, find and release in any order, against a model: lists and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(5, 1)
        self.held: list[list[int]] = []
        self.holds: dict[int, bytes] = {}
        """What was written in each page last."""

    @rule()
    def take(self) -> None:
        held = Counter(page for pages in self.held for page in pages)
        page = self.pool.take()
        assert (page is None) == (len(held) == 5)
        if page is not None:
            assert page not in held
            self.holds.pop(page, None)
            self.held.append([page])

    @precondition(lambda self: self.held)
    @rule(data=st.data(), content=st.sampled_from([A, B, C, b"d"]))
    def write(self, data: st.DataObject, content: bytes) -> None:
        page = data.draw(st.sampled_from(self.held))[-1]
        if page not in self.holds:
            self.holds[page] = content
            self.pool.publish(page, content)

    @rule(contents=st.lists(st.sampled_from([A, B, C, b"d"]), max_size=3))
    def find(self, contents: list[bytes]) -> None:
        pages = self.pool.find(contents)
        assert [self.holds[page] for page in pages] == contents[: len(pages)], "what is found holds what was sought"
        held = {page for pages in self.held for page in pages}
        assert len(pages) == len(contents) or contents[len(pages)] not in {self.holds.get(page) for page in held}
        if pages:
            self.held.append(pages)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def clear(self) -> None:
        self.pool.clear()
        assert self.pool.find([A]) == []
        self.holds = dict.fromkeys(self.holds, b"forgotten")

    @invariant()
    def whole(self) -> None:
        self.pool.check_integrity(self.held)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
