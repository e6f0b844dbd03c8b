"""The engine's thread: requests go in from the event loop, pieces of answers come back to it.

A step takes long, and who comes meanwhile would wait for its end: so the engine has a thread of its own, and whoever
wants something leaves a note in its inbox, read between two steps. What a step has said for everybody goes to the
event loop in one call, and wakes whoever waits for one request once, however much was said for it.
"""

import asyncio
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cascadevl.core.errors import CascadeError, InternalError
from cascadevl.core.generation import Generation, Sampling, TokenLogprob
from cascadevl.engine.engine import Engine, Ticket
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.refusals import Refused

IDLE_S = 0.5
"""An engine with nothing to do gives a sign of life so often."""

TELL_S = 0.02
"""A request is told of new pieces so often at most: fifty times a second looks like every token to whoever reads, and
where steps are shorter, the event loop would hold Python's lock for each token while the engine waits for it. What is
said first and an end are told at once."""

MOST_FAILURES = 3
"""Steps that may fail one after the other before the engine counts as broken, until one succeeds."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of one answer, and the log-probabilities of tokens chosen since the last piece, where asked for."""

    number: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """One answer is finished. `logprobs` are those that no piece has brought."""

    number: int
    generation: Generation
    logprobs: tuple[TokenLogprob, ...] = ()


Event = Said | Ended | Exception


class Job:
    """The answers of one HTTP request: `num` to each prompt. Made in the event loop; iterate once to get its events."""

    def __init__(
        self,
        prompts: Sequence[ModelInputs],
        sampling: Sampling,
        num: int = 1,
        client: str = "",
        adapters: Sequence[str] = (),
    ) -> None:
        self.prompts, self.sampling, self.num = tuple(prompts), sampling, num
        self.client, self.adapters = client, tuple(adapters)
        self.tickets: list[Ticket] = []
        """The engine's thread alone touches these, and the three below."""
        self.num_told: list[int] = []
        """Log-probabilities of each answer that are told."""
        self.open: list[int] = []
        """Answers that have not ended."""
        self.due_s = 0.0
        """When pieces may be told again."""
        self.aio = asyncio.get_running_loop()
        self._events: list[Event] = []
        """Those that nobody has fetched; only the event loop touches them."""
        self._here: asyncio.Future[None] = self.aio.create_future()

    async def __aiter__(self) -> AsyncIterator[Said | Ended]:
        """Events of all answers until each has ended. Raises what went wrong with the request as a whole."""
        left = len(self.prompts) * self.num
        while left:
            await self._here
            events, self._events, self._here = self._events, [], self.aio.create_future()
            for event in events:
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Ended)
                yield event

    def put(self, events: Sequence["Event"]) -> None:
        """To be called in the event loop."""
        self._events += events
        if not self._here.done():  # nobody has fetched those before, or whoever would have is gone
            self._here.set_result(None)


class EngineLoop:
    """Owns the engine from `start` to `stop`. Every method may be called from any thread."""

    def __init__(self, engine: Engine, *, hang_s: float = 120.0) -> None:
        self._engine, self._hang_s = engine, hang_s
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        self._jobs: dict[Job, None] = {}
        self._job_of: dict[Ticket, Job] = {}
        self._talking: dict[Job, None] = {}
        """Those with something to tell, now or when it is due."""
        self._events: dict[Job, list[Event]] = {}
        self._failures = 0
        self._death: str | None = None
        self._alive_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats = engine.stats()
        """As of the last step."""
        self.num_failed_steps = 0

    def start(self) -> None:
        self._alive_s = time.monotonic()
        self._thread.start()

    def dismiss(self) -> None:
        """Let the thread end after its step; requests still running are told so."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def stop(self) -> None:
        """`dismiss`, and wait for the end."""
        self.dismiss()
        self._thread.join(timeout=self._hang_s)

    def submit(self, job: Job) -> None:
        """Raises Refused (503) where nobody would ever answer."""
        if not self._tell(lambda: self._admit(job)):
            raise self._gone()

    def cancel(self, job: Job) -> None:
        """Nobody wants the answers any more; does nothing where all have ended."""
        self._tell(lambda: self._drop(job))

    @property
    def age_s(self) -> float:
        """Seconds since the loop's last sign of life."""
        return time.monotonic() - self._alive_s

    def problem(self) -> str | None:
        """Why no answers can be expected; None: all is well."""
        if self._death:
            return f"The engine has ended: {self._death}."
        if not self._thread.is_alive():
            return "The engine is not running."
        if self._failures >= MOST_FAILURES:
            return f"The engine's last {self._failures} steps failed; the log tells why."
        if self.age_s > self._hang_s:
            return f"The engine has not moved for {self.age_s:.0f} s."
        return None

    def _tell(self, note: Callable[[], None]) -> bool:
        """False: nobody will read it."""
        with self._wake:
            if self._death is None:
                self._inbox.append(note)
                self._wake.notify()
            return self._death is None

    # From here on: the engine's thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._alive_s = time.monotonic()
                while self._inbox:
                    self._inbox.popleft()()
                if self._engine.busy:
                    self._step()
                if not self._engine.busy:  # otherwise the next step does
                    self._hand_over()
                self.stats = self._engine.stats()
                with self._wake:
                    if not (self._inbox or self._engine.busy or self._stopping):
                        self._wake.wait(IDLE_S)
            self._end("it was stopped")
        except BaseException:  # the border of the thread: whoever waits must hear of it
            traceback.print_exc()
            self._end("it failed, and its log tells why")

    def _step(self) -> None:
        """A step that fails takes down those who are there: whose fault it was cannot be told. Others may come."""
        try:
            self._engine.step(self._hand_over)
            self._failures = 0
        except Exception as error:
            traceback.print_exc()
            self.num_failed_steps += 1
            self._failures += 1
            for job in list(self._jobs):
                self._refuse(job, InternalError(f"The engine failed in a step: {type(error).__name__}: {error}"))
        now_s = time.monotonic()
        self._talking |= {self._job_of[ticket]: None for ticket in self._engine.news if ticket in self._job_of}
        for job in list(self._talking):
            self._collect(job, now_s)

    def _admit(self, job: Job) -> None:
        if self._death is not None:
            return self._refuse(job, self._gone())
        try:
            for inputs in job.prompts:
                job.tickets += self._engine.submit_several(
                    inputs, job.sampling, job.num, client=job.client, adapters=job.adapters
                )
        except Exception as error:
            if not isinstance(error, CascadeError):
                traceback.print_exc()
            return self._refuse(job, error)
        job.open = list(range(len(job.tickets)))
        job.num_told = [0] * len(job.tickets)
        self._jobs[job] = None
        self._job_of |= dict.fromkeys(job.tickets, job)

    def _collect(self, job: Job, now_s: float) -> None:
        """What was said for a job, and is due to be told."""
        events: list[Event] = []
        due = now_s >= job.due_s
        for number in tuple(job.open):
            ticket = job.tickets[number]
            if ticket.generation is None and not (due and ticket.pieces):
                continue
            text = "".join(ticket.pieces)
            ticket.pieces.clear()
            logprobs: tuple[TokenLogprob, ...] = ()
            if ticket.sampling.logprobs is not None and ticket.answer is not None:
                logprobs = tuple(ticket.answer.logprobs[job.num_told[number] :])
                job.num_told[number] += len(logprobs)
            if text:
                events.append(Said(number, text, logprobs))
                logprobs = ()
            if ticket.generation is not None:
                events.append(Ended(number, ticket.generation, logprobs))
                job.open.remove(number)
        if events:
            self._events.setdefault(job, []).extend(events)
            job.due_s = now_s + TELL_S
        if not any(job.tickets[number].pieces for number in job.open):
            del self._talking[job]
        if not job.open:
            self._forget(job)

    def _drop(self, job: Job) -> None:
        for ticket in job.tickets:
            self._engine.abort(ticket)
        self._forget(job)

    def _forget(self, job: Job) -> None:
        self._jobs.pop(job, None)
        self._talking.pop(job, None)
        for ticket in job.tickets:
            self._job_of.pop(ticket, None)

    def _refuse(self, job: Job, error: Exception) -> None:
        self._drop(job)
        self._events.setdefault(job, []).append(error)

    def _hand_over(self) -> None:
        """One call for all events of a step: waking the event loop costs more than an event."""
        if not self._events:
            return
        events, self._events = self._events, {}
        for aio in {job.aio for job in events}:
            mine = {job: said for job, said in events.items() if job.aio is aio}
            try:
                aio.call_soon_threadsafe(_put, mine)
            except RuntimeError:  # the event loop is closed: nobody listens
                for job in mine:
                    self._drop(job)

    def _end(self, why: str) -> None:
        with self._wake:
            self._death = why
        while self._inbox:
            self._inbox.popleft()()
        for job in list(self._jobs):
            self._events.setdefault(job, []).append(self._gone())
            with suppress(Exception):  # a broken engine may not even be able to let go
                self._drop(job)
        self._hand_over()

    def _gone(self) -> Refused:
        return Refused(503, f"The engine has ended: {self._death}.", code="engine_down")


def _put(events: Mapping[Job, Sequence[Event]]) -> None:
    for job, said in events.items():
        job.put(said)
