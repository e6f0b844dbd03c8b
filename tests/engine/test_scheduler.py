"""Who is computed when, without a tensor: requests of plain numbers, and a step that only counts."""

import random

import numpy as np
import pytest

from cascadevl.engine.pages import PagePool
from cascadevl.engine.request import Request, State
from cascadevl.engine.scheduler import Chunk, Scheduler


def _request(num_prompt: int, num_new: int = 4, *, first: int = 0, ready: bool = True, **settings) -> Request:
    """A prompt of `num_prompt` tokens that count on from `first`: another `first`, another text."""
    request = Request(np.arange(first, first + num_prompt, dtype=np.int64), num_new, **settings)
    request.ready = ready
    return request


def _scheduler(*requests: Request, pages: int = 100, size: int = 2, budget: int = 8, running: int = 8) -> Scheduler:
    scheduler = Scheduler(PagePool(pages, size), budget, running)
    for request in requests:
        scheduler.add(request)
    return scheduler


def _step(scheduler: Scheduler) -> list[Chunk]:
    """Plan, compute, say: what the engine does."""
    chunks = scheduler.plan()
    scheduler.check_integrity()
    for chunk in chunks:
        request = chunk.request
        assert chunk.start == request.num_computed and chunk.num >= 1
        scheduler.computed(chunk)
        if request.num_computed == request.num_tokens:
            request.said.append(1000 * request.arrival + len(request.said))
            if len(request.said) == request.max_new_tokens:
                scheduler.finish(request)
    scheduler.check_integrity()
    assert len({id(chunk.request) for chunk in chunks}) == len(chunks), "a request was planned twice"
    assert sum(chunk.num for chunk in chunks) <= scheduler.max_step_tokens
    assert len(scheduler.running) <= scheduler.max_running
    return chunks


def _run(scheduler: Scheduler, most: int = 2000) -> list[Request]:
    """To the end; returns requests in the order in which they finished."""
    finished: list[Request] = []
    everybody = [*scheduler.waiting, *scheduler.running]
    for _ in range(most):
        if not (scheduler.waiting or scheduler.running):
            return finished
        assert _step(scheduler), "nobody goes on"
        finished += [r for r in everybody if r.state is State.FINISHED and r not in finished]
    raise AssertionError("it never ends")


def test_a_prompt_is_read_in_pieces_of_the_budget_and_then_said_token_by_token() -> None:
    request = _request(19, 3)
    scheduler = _scheduler(request)
    assert [[(c.start, c.num) for c in _step(scheduler)] for _ in range(5)] == [
        [(0, 8)], [(8, 8)], [(16, 3)], [(19, 1)], [(20, 1)],
    ]  # fmt: skip
    assert request.state is State.FINISHED and len(request.said) == 3
    assert not scheduler.waiting and not scheduler.running and scheduler.pool.num_available == 100


def test_who_answers_goes_first_and_prompts_take_what_is_left() -> None:
    short, long = _request(2, 9), _request(30, first=50)
    scheduler = _scheduler(short)
    _step(scheduler)
    scheduler.add(long)
    assert _step(scheduler) == [Chunk(short, 2, 1), Chunk(long, 0, 7)]
    assert _step(scheduler) == [Chunk(short, 3, 1), Chunk(long, 7, 7)]


def test_prompts_share_a_step() -> None:
    scheduler = _scheduler(*(_request(3, first=50 * n) for n in range(4)))
    assert [chunk.num for chunk in _step(scheduler)] == [3, 3, 2]
    assert len(scheduler.waiting) == 1


def test_no_more_run_than_may() -> None:
    scheduler = _scheduler(*(_request(2, first=50 * n) for n in range(5)), running=2)
    assert len(_step(scheduler)) == 2
    _run(scheduler)


def test_who_is_not_ready_is_passed_by() -> None:
    late, other = _request(2, ready=False), _request(2, first=50)
    scheduler = _scheduler(late, other)
    assert [chunk.request for chunk in _step(scheduler)] == [other]
    late.ready = True
    assert late in [chunk.request for chunk in _step(scheduler)]


def test_the_urgent_go_first() -> None:
    calm, urgent = _request(8), _request(8, first=50, priority=1)
    scheduler = _scheduler(calm, urgent)
    assert [chunk.request for chunk in _step(scheduler)] == [urgent]
    assert _run(scheduler)[0] is urgent


def test_an_urgent_prompt_is_read_before_one_that_was_admitted_earlier() -> None:
    calm, urgent = _request(40), _request(10, first=50, priority=1)
    scheduler = _scheduler(calm)
    _step(scheduler)
    scheduler.add(urgent)
    assert [chunk.request for chunk in _step(scheduler)] == [urgent]


def test_a_client_with_fifty_requests_does_not_starve_one_with_one() -> None:
    many = [_request(6, 6, first=100 * n, client="many") for n in range(50)]
    scheduler = _scheduler(*many, running=4)
    for _ in range(10):
        _step(scheduler)
    one = _request(6, 6, first=9000, client="one")
    scheduler.add(one)
    finished = _run(scheduler)
    served_before = sum(len(request.said) == 6 for request in many[:8])
    assert finished.index(one) <= 8, f"{served_before} of the many were served before"


def test_two_clients_get_the_same_share_however_many_requests_each_has() -> None:
    scheduler = _scheduler(running=2, budget=4)
    for n in range(30):
        scheduler.add(_request(4, 4, first=100 * n, client="a"))
    for n in range(10):
        scheduler.add(_request(4, 4, first=100 * n + 5000, client="b"))
    for _ in range(40):
        _step(scheduler)
    assert abs(scheduler.served["a"] - scheduler.served["b"]) <= 2 * 7
    assert scheduler.served["a"] > 30


def test_a_client_that_comes_later_does_not_catch_up_on_its_absence() -> None:
    scheduler = _scheduler(*(_request(6, 6, first=100 * n, client="a") for n in range(20)), running=1)
    for _ in range(60):
        _step(scheduler)
    for n in range(20):
        scheduler.add(_request(6, 6, first=100 * n + 5000, client="b"))
    before = dict(scheduler.served)
    for _ in range(60):
        _step(scheduler)
    gained = {client: scheduler.served[client] - before[client] for client in "ab"}
    assert abs(gained["a"] - gained["b"]) <= 2 * 11


def test_a_client_without_requests_is_forgotten() -> None:
    scheduler = _scheduler(*(_request(2, client=f"client {n}") for n in range(5)))
    _run(scheduler)
    assert not scheduler.served


def test_pre_emption_takes_the_newest_of_the_least_urgent() -> None:
    """Four pages of 2: each of four requests has one, all want a second."""
    old, new, urgent_old, urgent_new = requests = [
        _request(2, 6, first=100 * n, priority=priority) for n, priority in enumerate((0, 0, 1, 1))
    ]
    scheduler = _scheduler(*requests, pages=4)
    _step(scheduler)
    assert all(request.state is State.RUNNING for request in requests)
    chunks = _step(scheduler)
    assert new.num_preempted == old.num_preempted == 1
    assert {chunk.request for chunk in chunks} == {urgent_old, urgent_new}
    assert [request.num_preempted for request in (urgent_old, urgent_new)] == [0, 0]
    _run(scheduler)
    assert [len(request.said) for request in requests] == [6] * 4


def test_of_equals_the_newest_gives_way() -> None:
    requests = [_request(2, 4, first=100 * n) for n in range(3)]
    scheduler = _scheduler(*requests, pages=4)
    _step(scheduler)
    assert [chunk.request for chunk in _step(scheduler)] == requests[:2], "two more pages are needed, one is there"
    assert [request.num_preempted for request in requests] == [0, 0, 1]


def test_who_was_pre_empted_computes_its_words_again_but_says_none_twice() -> None:
    old, new = _request(2, 9), _request(2, 9, first=100)
    scheduler = _scheduler(old, new, pages=6)
    _run(scheduler)
    assert new.num_preempted >= 1 and old.num_preempted == 0
    for request in (old, new):
        assert request.said == [1000 * request.arrival + n for n in range(9)]


def test_its_own_pages_are_found_again_where_nobody_took_them() -> None:
    old, new = _request(8, 3), _request(8, 9, first=100)
    scheduler = _scheduler(old, new, pages=9, budget=20)
    while not new.num_preempted:
        _step(scheduler)
    while new.state is State.WAITING:
        _step(scheduler)
    assert new.num_cached >= 2


def test_a_prefix_is_shared_but_for_the_last_token() -> None:
    first, second = _request(8, 2), _request(8, 2)
    scheduler = _scheduler(first)
    _run(scheduler)
    scheduler.add(second)
    assert _step(scheduler) == [Chunk(second, 6, 2)], "whole pages, and at least the last token is computed"
    assert second.num_cached == 6


def test_what_may_be_cached_is_bounded() -> None:
    scheduler = _scheduler(_request(9, 2))
    _run(scheduler)
    for most, cached in ((None, 8), (0, 0), (5, 4), (100, 8)):
        request = _request(9, 1, max_cached=most)
        scheduler.add(request)
        _run(scheduler)
        assert request.num_cached == cached


def test_no_page_is_shared_with_what_starts_from_something_else() -> None:
    scheduler = _scheduler(_request(8, 2))
    _run(scheduler)
    other = _request(8, 2, start=b"adapter")
    scheduler.add(other)
    _run(scheduler)
    assert other.num_cached == 0


def test_twins_wait_for_the_first_and_then_take_its_pages() -> None:
    first = _request(20, 6)
    twins = [_request(20, 6, after=first) for _ in range(3)]
    scheduler = _scheduler(first, *twins)
    for _ in range(2):
        assert [chunk.request for chunk in _step(scheduler)] == [first]
    _step(scheduler)
    chunks = _step(scheduler)
    assert {id(chunk.request) for chunk in chunks} == {id(request) for request in (first, *twins)}
    assert [twin.num_cached for twin in twins] == [18] * 3
    _run(scheduler)


@pytest.mark.parametrize("steps", range(5))
def test_twins_go_on_by_themselves_when_the_first_is_gone(steps: int) -> None:
    first = _request(20, 6)
    twins = [_request(20, 6, after=first) for _ in range(3)]
    scheduler = _scheduler(first, *twins)
    for _ in range(steps):
        _step(scheduler)
    scheduler.finish(first)
    _run(scheduler)
    assert all(len(twin.said) == 6 for twin in twins)


def test_a_large_request_is_not_starved_by_small_ones() -> None:
    """It needs all pages but one; small ones keep coming."""
    scheduler = _scheduler(*(_request(4, 4, first=100 * n) for n in range(4)), pages=10)
    _step(scheduler)
    large = _request(16, 2, first=7777)
    scheduler.add(large)
    for n in range(40):
        scheduler.add(_request(4, 4, first=10_000 + 100 * n))
        _step(scheduler)
        if large.state is State.FINISHED:
            return
    raise AssertionError("it still waits")


def test_alone_a_request_may_fill_the_pool() -> None:
    request = _request(10, 11)
    scheduler = _scheduler(request, pages=10)
    _run(scheduler)
    assert len(request.said) == 11 and request.num_preempted == 0


@pytest.mark.parametrize("seed", range(40))
def test_any_mix_with_aborts_anywhere_ends_and_gives_every_page_back(seed: int) -> None:
    rng = random.Random(seed)
    size, running = rng.choice([1, 2, 5]), rng.randint(1, 5)
    scheduler = _scheduler(pages=30 // size, size=size, budget=rng.randint(running, 20), running=running)
    pending = [
        _request(
            rng.randint(1, 20), rng.randint(1, 10), first=rng.choice([0, 50]),
            priority=rng.choice([0, 0, 1]), client=rng.choice("abc"),
        )
        for _ in range(30)
    ]  # fmt: skip
    for request, earlier in zip(pending[1:], pending, strict=False):
        same = np.array_equal(request.prompt_keys, earlier.prompt_keys)
        request.after = earlier if same or rng.random() < 0.1 else None
    everybody, aborted = list(pending), set[int]()
    for _ in range(3000):
        if pending and rng.random() < 0.5:
            scheduler.add(pending.pop(0))
        present = [*scheduler.waiting, *scheduler.running]
        if present and rng.random() < 0.05:
            victim = rng.choice(present)
            scheduler.finish(victim)
            aborted.add(id(victim))
        if scheduler.waiting or scheduler.running:
            assert _step(scheduler), "nobody goes on"
        elif not pending:
            break
    assert not pending and not scheduler.waiting and not scheduler.running and not scheduler.served
    for request in everybody:
        assert id(request) in aborted or len(request.said) == request.max_new_tokens
    assert scheduler.pool.num_available == scheduler.pool.num_pages
