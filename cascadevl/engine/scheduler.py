"""Which tokens are computed next: continuous batching as a plain state machine, without a tensor.

Each step first lets every request that decodes say one more token, then reads prompts in pieces with what is left
of the budget (chunked prefill, Sarathi, arXiv 2403.02310), admitting waiting requests while pages last. Where a
page is missing, the least urgent running request gives all of its own back and is computed again later.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from cascadevl.engine.pages import PagePool
from cascadevl.engine.request import Request, State


class Chunk(NamedTuple):
    """Tokens [start, start + num) of a request, to be computed in this step."""

    request: Request
    start: int
    num: int


@dataclass(slots=True)
class Scheduler:
    """Requests come by `add`, leave by `finish`; `plan` moves them between waiting and running."""

    pool: PagePool
    max_step_tokens: int
    """Tokens computed in a step at most."""
    max_running: int
    """Requests computed together at most."""
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    """In the order in which they were admitted."""
    served: Counter[str] = field(default_factory=Counter)
    """Tokens computed for each client that has requests here."""
    num_preemptions: int = 0

    def add(self, request: Request) -> None:
        """Whoever submits has checked that its pages, if it were alone, are there."""
        if not any(other.client == request.client for other in (*self.waiting, *self.running)):
            # A newcomer starts level with those who are here, not with the advantage of its absence.
            here = {other.client for other in (*self.waiting, *self.running)}
            self.served[request.client] = min((self.served[client] for client in here), default=0)
        self.waiting.append(request)

    def in_turn(self) -> list[Request]:
        """Who waits: first the urgent, then those of the client served least, then the first come."""
        return sorted(self.waiting, key=lambda r: (-r.priority, self.served[r.client], r.arrival))

    def plan(self) -> list[Chunk]:
        """The next step: pages are taken, nothing is computed yet. Empty where nobody can go on."""
        chunks: list[Chunk] = []
        budget, preempted_before = self.max_step_tokens, self.num_preemptions
        for request in [r for r in self.running if r.decodes]:
            if request.state is State.RUNNING and budget > 0 and self._grow(request, 1):
                chunks.append(Chunk(request, request.num_computed, 1))
                budget -= 1
        if self.waiting or len(chunks) < len(self.running):
            self._plan_prompts(chunks, budget, preempted_before)
        # Who was pre-empted after its chunk was planned is not computed.
        chunks = [chunk for chunk in chunks if chunk.request.state is State.RUNNING]
        for request, _, num in chunks:
            self.served[request.client] += num
        return chunks

    def _plan_prompts(self, chunks: list[Chunk], budget: int, preempted_before: int) -> None:
        """What is left of the budget: for those who are being read, and for those who wait."""
        prompts, full = [*(r for r in self.running if not r.decodes), *self._queue()], False
        for request in sorted(prompts, key=lambda r: -r.priority):  # of equals, those begun go on first
            if request.state is State.WAITING:
                # Who gave its pages to others in this very step would only take them back.
                full = full or self.num_preemptions > preempted_before or len(self.running) >= self.max_running
                full = full or budget < 1 or not self._admit(request)
            if request.state is State.RUNNING:
                budget -= self._read(request, budget, chunks)

    def computed(self, chunk: Chunk) -> None:
        """Keys and values of a chunk are in its pages; full pages may be found by others."""
        request = chunk.request
        request.num_computed = chunk.start + chunk.num
        size = self.pool.page_size
        full = range(chunk.start // size, request.num_computed // size)
        contents = request.contents(size) if full else []
        for number in full:
            self.pool.publish(request.pages[number], contents[number])

    def finish(self, request: Request) -> None:
        """Done, failed or aborted, wherever it stands: its pages go back."""
        (self.running if request.state is State.RUNNING else self.waiting).remove(request)
        self._give_back(request)
        request.state = State.FINISHED
        if not any(other.client == request.client for other in (*self.waiting, *self.running)):
            del self.served[request.client]

    def check_integrity(self) -> None:
        """Raise InternalError where pages and requests disagree."""
        self.pool.check_integrity([request.pages for request in self.running])
        assert all(not request.pages and request.num_computed == 0 for request in self.waiting)
        for request in self.running:
            assert request.state is State.RUNNING
            assert self._pages_for(request.num_computed) <= len(request.pages) <= self._pages_for(request.num_tokens)

    def _pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.page_size)

    def _queue(self) -> list[Request]:
        """Who of them may be admitted."""
        return [
            request for request in self.in_turn()
            if request.ready and not (request.after and request.after.num_computed < request.after.num_prompt
                                      and request.after.state is not State.FINISHED)
        ]  # fmt: skip

    def _admit(self, request: Request) -> bool:
        """Take the pages that are known already, if those still missing are there; alone, it always may."""
        pages = self.pool.find(request.contents(self.pool.page_size))
        # The last token is computed even if its page is known: its logits are wanted.
        most = min(request.num_tokens - 1, request.num_tokens if request.max_cached is None else request.max_cached)
        most //= self.pool.page_size
        self.pool.release(pages[most:])
        pages = pages[:most]
        if self.running and self._pages_for(request.num_tokens) - len(pages) > self.pool.num_available:
            self.pool.release(pages)
            return False
        self.waiting.remove(request)
        self.running.append(request)
        request.state, request.pages = State.RUNNING, pages
        request.num_computed = request.num_cached = len(pages) * self.pool.page_size
        return True

    def _read(self, request: Request, budget: int, chunks: list[Chunk]) -> int:
        """Plan the next piece of a prompt, as far as budget and pages go; returns its size."""
        num = min(budget, request.num_tokens - request.num_computed)
        if num < 1 or not self._grow(request, num):
            return 0
        chunks.append(Chunk(request, request.num_computed, num))
        return num

    def _grow(self, request: Request, num: int) -> bool:
        """Pages for `num` more tokens, others giving theirs back if need be. False: it was pre-empted itself."""
        while len(request.pages) < self._pages_for(request.num_computed + num):
            page = self.pool.take()
            if page is not None:
                request.pages.append(page)
                continue
            victim = max(self.running, key=lambda r: (-r.priority, r.arrival))
            self._preempt(victim)
            if victim is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.waiting.append(request)
        self._give_back(request)
        request.state = State.WAITING
        request.num_preempted += 1
        self.num_preemptions += 1

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.pages)
        request.pages, request.num_computed = [], 0
