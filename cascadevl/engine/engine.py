"""The engine: many requests on one model, computed together. Serving, rollouts, data engines and evaluation use it.

A request's life: `submit` makes tokens and tiles of it; `step` encodes its pictures with those of others, reads
its prompt in pieces beside others that answer, takes pages found by content, and adds a token at a time; it ends
by itself, by `abort`, or with an error that is its own. `engine/simple.py` is the same without all that.
"""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import ConfigError, InternalError, MessageError
from cascadevl.core.generation import FinishReason, Generation, Sampling, TokenLogprob
from cascadevl.core.messages import Conversation
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.kv_cache import PagedCache, kept_as
from cascadevl.engine.pages import PagePool
from cascadevl.engine.request import Request, State
from cascadevl.engine.runner import Runner
from cascadevl.engine.sampler import Sampler
from cascadevl.engine.scheduler import Chunk, Scheduler
from cascadevl.engine.simple import Answer, banned_ids
from cascadevl.engine.ticket import Ticket, check_asked, in_order, page_start
from cascadevl.engine.vision import TileCache, encode, tile_keys
from cascadevl.models.linear import adapted, adapter_names, using
from cascadevl.ops.native.choose import likeliest
from cascadevl.preprocessing.processor import ModelInputs

Messages = Conversation | Sequence[Mapping[str, Any]] | str

NO_NUMBERS = "The model gave logits that are no numbers (NaN or infinity)."


class Engine:
    """Threads wait for one another, perhaps for long: whoever serves gives it a thread of its own."""

    def __init__(self, parts: Any, config: EngineConfig | None = None) -> None:
        """`parts`: a Bundle or the Parts of one."""
        self.parts: Parts = getattr(parts, "parts", parts)
        self.config = config = EngineConfig() if config is None else config
        if not isinstance(self.parts, Parts) or not isinstance(config, EngineConfig):
            got = f"{type(parts).__name__} and {type(config).__name__}"
            raise ConfigError(f"Engine(bundle, EngineConfig(…)) takes a loaded model and its settings, got {got}.")
        model = self.model = self.parts.model
        decoder = model.config.decoder
        kv_format = kept_as(config.kv_format if config.kv_format != "auto" else self.parts.kv_cache, model.dtype)
        page_bytes = PagedCache.page_bytes(decoder, config.page_size, kv_format)
        num_pages = config.cache_bytes // page_bytes - 1
        if num_pages < 1:
            raise ConfigError(
                f"cache_bytes is {config.cache_bytes}; two pages of {config.page_size} tokens need {2 * page_bytes}."
            )
        most = config.max_running * -(-decoder.rope.longest // config.page_size)
        num_pages = min(num_pages, most)
        self.pool = PagePool(num_pages, config.page_size)
        self.scheduler = Scheduler(self.pool, config.max_step_tokens, config.max_running)
        cache = PagedCache(decoder, num_pages + 1, config.page_size, kv_format, model.device)
        self.runner = Runner(model, cache, num_pages, invariant=config.batch_invariant, graphs=config.graphs)
        self.tiles = TileCache(config.vision_bytes)
        self._lock = threading.RLock()
        """Held while requests come, go or are computed."""
        self._tickets: dict[Request, Ticket] = {}
        self._capacity = min(decoder.rope.longest, num_pages * config.page_size)
        self._banned = tuple(i for i in banned_ids(self.parts) if i < decoder.vocab_size)
        self._banned_ids = torch.tensor(self._banned, dtype=torch.int64)
        self._counts: Counter[str] = Counter()
        self.news: list[Ticket] = []
        """Those that the last step gave a token or an end, and who was aborted since: whoever serves many need not look
        at the others."""

    # Requests in and out

    def submit(
        self,
        messages: Messages | ModelInputs,
        sampling: Sampling | None = None,
        *,
        max_tiles: int | None = None,
        priority: int = 0,
        client: str = "",
        adapters: Sequence[str] | None = None,
    ) -> Ticket:
        """`messages` may have been processed already, by another thread perhaps. `adapters` names those attached to
        the model that this request wants; None: those in use, as with a Bundle.

        Raises MessageError, MediaError or ConfigError for a request that can never be answered.
        """
        return self.submit_several(
            messages, sampling, 1, max_tiles=max_tiles, priority=priority, client=client, adapters=adapters
        )[0]

    def submit_several(
        self,
        messages: Messages | ModelInputs,
        sampling: Sampling | None = None,
        num: int = 1,
        *,
        max_tiles: int | None = None,
        priority: int = 0,
        client: str = "",
        adapters: Sequence[str] | None = None,
    ) -> list[Ticket]:
        """`num` answers to one prompt, which is read once; answer i of a seeded request has the seed plus i."""
        sampling, started = Sampling() if sampling is None else sampling, time.perf_counter()
        check_asked(sampling, num, priority, adapters)
        inputs = self._inputs(messages, max_tiles)
        preprocess_s = time.perf_counter() - started
        tickets: list[Ticket] = []
        for number in range(num):
            own = sampling
            if sampling.seed is not None:
                own = dataclasses.replace(sampling, seed=sampling.seed + number)
            ticket = self._ticket(inputs, own, started, preprocess_s, priority, client, adapters)
            ticket.request.after = tickets[0].request if tickets and self.config.prefix_cache else None
            ticket.answer = Answer(self.parts, own)
            tickets.append(ticket)
        for ticket in tickets:
            self._enqueue(ticket)
        return tickets

    def submit_score(self, messages: Messages | ModelInputs, *, max_tiles: int | None = None) -> Ticket:
        """Nothing is said: the Generation brings the log-probabilities of what the assistant says in `messages`."""
        started = time.perf_counter()
        inputs = self._inputs(messages, max_tiles)
        said = inputs.trained.nonzero().flatten()
        if not len(said) or int(said[0]) == 0:
            raise MessageError("There is nothing to score: expected a conversation with an answer of the assistant.")
        ticket = self._ticket(inputs, Sampling(logprobs=0), started, time.perf_counter() - started)
        ticket.request.max_cached = int(said[0]) - 1 if self.config.prefix_cache else 0
        ticket.scored = []
        self._enqueue(ticket)
        return ticket

    def generate(
        self, conversations: Sequence[Messages], sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> list[Generation]:
        """Answers in the order of the questions; one that fails brings its `error`, and none of the others fails."""
        return self._all([lambda c=c: self.submit(c, sampling, max_tiles=max_tiles) for c in conversations])

    def score(self, conversations: Sequence[Messages], *, max_tiles: int | None = None) -> list[Generation]:
        """`logprobs` and `token_ids` of the assistant's words in each conversation, teacher-forced."""
        return self._all([lambda c=c: self.submit_score(c, max_tiles=max_tiles) for c in conversations])

    def _all(self, submissions: Sequence[Callable[[], Ticket]]) -> list[Generation]:
        return in_order(submissions, 2 * self.config.max_running, self.step, self.abort)

    def stream(self, ticket: Ticket) -> Iterator[str]:
        """Pieces of one answer as they become certain; the others go on meanwhile."""
        while not ticket.done or ticket.pieces:  # in this order: another thread may bring the end
            if ticket.pieces:
                yield ticket.pieces.popleft()
            else:
                self.step()
        assert ticket.generation is not None
        if ticket.generation.error is not None:
            raise ticket.generation.error

    def abort(self, ticket: Ticket) -> None:
        """End a request, wherever it stands; what it has said so far is its Generation."""
        with self._lock:
            if not ticket.done:
                if ticket.request not in self._tickets:
                    raise ConfigError("Only the engine that gave out a ticket can abort it.")
                self._end(ticket, "abort")

    @property
    def busy(self) -> bool:
        return bool(self._tickets)

    def stats(self) -> dict[str, float]:
        """Gauges and counters since the beginning."""
        return {
            "waiting": len(self.scheduler.waiting),
            "running": len(self.scheduler.running),
            "pages": self.pool.num_pages,
            "pages_available": self.pool.num_available,
            "preemptions": self.scheduler.num_preemptions,
            "tile_hits": self.tiles.num_hits,
            "tile_misses": self.tiles.num_misses,
            "tile_cache_bytes": self.tiles.num_bytes,
            **{name: self._counts[name] for name in ("requests", "prompt_tokens", "cached_tokens", "said_tokens")},
        }

    def clear_caches(self) -> None:
        """Forget keys, values and visual tokens of former requests, as after new weights."""
        with self._lock:
            if self.busy:
                raise InternalError("The caches of an engine that is at work cannot be cleared.")
            self.pool.clear()
            self.tiles.clear()

    def check_integrity(self) -> None:
        """Raise InternalError where pages and requests disagree."""
        self.scheduler.check_integrity()

    # A step

    @torch.inference_mode()
    def step(self, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Compute what is due; False where there was nothing to do.

        `meanwhile` is called before each long computation, which leaves Python to other threads: what they are told
        of the step before, they can then work on without holding this one up.
        """
        with self._lock:
            return self._step(meanwhile)

    def _step(self, meanwhile: Callable[[], None]) -> bool:
        self.news = []
        if self.scheduler.waiting:
            meanwhile()
            self._encode()
        chunks = self.scheduler.plan()
        if not chunks:
            if self._tickets:
                raise InternalError("Requests wait and none can go on.")
            return False
        pieces = [self._tickets[chunk.request].piece(chunk) for chunk in chunks]
        meanwhile()
        hidden_TD = self.runner(pieces)
        ready: dict[int, Ticket] = {}
        end = 0
        for chunk in chunks:
            ticket, end = self._tickets[chunk.request], end + chunk.num
            self.scheduler.computed(chunk)
            if ticket.scored is not None:
                self._score(ticket, chunk, hidden_TD[end - chunk.num : end])
            elif chunk.start + chunk.num == chunk.request.num_tokens:
                ready[end - 1] = ticket
        if ready:
            last_TD = hidden_TD if len(ready) == len(hidden_TD) else hidden_TD[list(ready)]
            self._say(list(ready.values()), self.runner.logits(last_TD))
        return True

    def _encode(self) -> None:
        """Visual tokens for the next requests in turn, their tiles together; those without pictures are ready."""
        budget, wanted = self.config.max_step_tiles, list[tuple[Ticket, list[bytes]]]()
        for place, request in enumerate(self.scheduler.in_turn()):
            ticket = self._tickets[request]
            twin_at_it = request.after and request.after.state is not State.FINISHED and not request.after.ready
            num = len(ticket.inputs.tiles)
            taken = self.config.max_step_tiles - budget
            early = place >= self.config.max_running  # its visual tokens would only take memory
            if request.ready or (num and (early or twin_at_it or (taken and num > budget))):
                continue
            budget -= num
            wanted.append((ticket, tile_keys(ticket.inputs)))
        for ticket, keys in wanted:
            if not keys:
                self._ready(ticket, ticket.inputs.token_ids, None, keys)
        pictured = [(ticket, keys) for ticket, keys in wanted if keys]
        for names in dict.fromkeys(ticket.adapters for ticket, _ in pictured):
            with using(self.model, *names):
                self._encode_alike([(ticket, keys) for ticket, keys in pictured if ticket.adapters == names])

    def _encode_alike(self, wanted: list[tuple[Ticket, list[bytes]]]) -> None:
        """Of requests with the same adapters, which are in use."""
        flash = self.model.config.flash
        routes = flash is not None and flash.enabled
        plain = []
        for ticket, keys in wanted:
            if routes and ticket.scored is None:  # the tiles of a request are routed together
                ids_T, tiles = ticket.inputs.token_ids.to(self.model.device), ticket.inputs.tiles.to(self.model.device)
                ids_T, visual_TD = self.model.compress(ids_T, tiles)
                self._ready(ticket, ids_T.cpu(), visual_TD, [b"".join(keys)])
            else:
                plain.append((ticket, keys))
        changed = b"".join(name.encode() for name in plain[0][0].adapters) if plain else b""
        tiles = [
            (changed + key, tile) for ticket, keys in plain for key, tile in zip(keys, ticket.inputs.tiles, strict=True)
        ]
        at_once = 1 if self.config.batch_invariant else self.config.max_step_tiles
        tokens = iter(encode(self.model, self.tiles, tiles, at_once))
        for ticket, keys in plain:
            self._ready(ticket, ticket.inputs.token_ids, torch.cat([next(tokens) for _ in keys]), keys)

    def _ready(self, ticket: Ticket, prompt_ids: Tensor, visual_TD: Tensor | None, keys: list[bytes]) -> None:
        """Tokens and visual tokens are final; `keys`: see `Ticket.place`."""
        ticket.place(prompt_ids, visual_TD, keys, self.model.config.image_token_id)
        ticket.room = self._capacity - len(prompt_ids)
        if ticket.sampler is None and ticket.answer is not None:
            vocab = self.model.config.decoder.vocab_size
            ticket.sampler = Sampler(ticket.sampling, prompt_ids, self._banned, vocab, self.parts.stop_ids)

    def _say(self, tickets: list[Ticket], logits_TV: Tensor) -> None:
        """Choose a token for each; one whose logits are no numbers fails alone."""
        logits_TV = logits_TV.cpu()
        for row, (ticket, token_id) in enumerate(zip(tickets, likeliest(logits_TV, self._banned_ids), strict=True)):
            answer = ticket.answer
            assert ticket.sampler is not None and answer is not None
            if token_id < 0:
                self._end(ticket, "error", InternalError(NO_NUMBERS))
                continue
            if answer.guide is not None or not ticket.sampler.plainly_greedy:
                try:
                    token_id = self._choose(ticket.sampler, answer, logits_TV[row])
                except ConfigError as error:
                    self._end(ticket, "error", error)
                    continue
            if ticket.first_token_s is None:
                ticket.first_token_s = time.perf_counter()
            ticket.request.said.append(token_id)
            piece = answer.push(token_id, ticket.room)
            if piece:
                ticket.pieces.append(piece)
            if answer.finish_reason is not None:
                self._end(ticket, answer.finish_reason)
            else:
                self.news.append(ticket)

    def _choose(self, sampler: Sampler, answer: Answer, logits_V: Tensor) -> int:
        """More is asked for than the likeliest token. Raises ConfigError where a constraint cannot be followed."""
        if answer.guide is not None:
            answer.guide.mask(logits_V)
        token_id, logprob = sampler(logits_V)
        if logprob is not None:
            answer.logprobs.append(logprob)
        return token_id

    def _score(self, ticket: Ticket, chunk: Chunk, rows_TD: Tensor) -> None:
        """Row t of the chunk tells how likely token t + 1 is."""
        assert ticket.scored is not None
        # What was scored before a pre-emption is not scored again.
        unscored = ticket.inputs.trained.nonzero().flatten()[len(ticket.scored) :]
        rows = unscored[unscored <= chunk.start + chunk.num] - 1 - chunk.start
        for part in rows.split(128) if len(rows) else ():
            logprobs_TV = self.runner.logits(rows_TD[part]).log_softmax(-1).cpu()
            next_ids = ticket.prompt_ids[chunk.start + part + 1]
            chosen = logprobs_TV.gather(1, next_ids[:, None]).flatten()
            if not chosen.isfinite().all():
                return self._end(ticket, "error", InternalError(NO_NUMBERS))
            ticket.scored += map(TokenLogprob, next_ids.tolist(), chosen.tolist())
        if chunk.start + chunk.num == chunk.request.num_tokens:
            self._end(ticket, "stop")

    # Beginning and end of a request

    def _inputs(self, messages: Messages | ModelInputs, max_tiles: int | None) -> ModelInputs:
        if not isinstance(messages, ModelInputs):
            return self.parts.processor(messages, max_tiles=max_tiles)
        if messages.spec_hash != self.parts.spec.hash:
            raise ConfigError(
                f"The inputs were made under the spec {messages.spec_hash}, this model's is {self.parts.spec.hash}."
            )
        return messages

    def _ticket(
        self,
        inputs: ModelInputs,
        sampling: Sampling,
        started: float,
        preprocess_s: float,
        priority: int = 0,
        client: str = "",
        adapters: Sequence[str] | None = None,
    ) -> Ticket:
        wanted = self._adapters(adapters)
        num_prompt, rope = len(inputs.token_ids), self.model.config.decoder.rope
        if num_prompt >= self._capacity:
            raise MessageError(
                f"The prompt has {num_prompt} tokens; the model takes {rope.longest} with the answer, and the engine's "
                f"cache holds {self.pool.num_pages * self.config.page_size}. Send less, or raise cache_bytes."
            )
        request = Request(
            prompt_keys=inputs.token_ids.numpy(),
            max_new_tokens=sampling.max_new_tokens,
            priority=priority,
            client=client,
            start=page_start(rope, num_prompt, wanted),
            max_cached=None if self.config.prefix_cache else 0,
        )
        return Ticket(
            request, inputs, sampling, inputs.token_ids, self._capacity - num_prompt, wanted, started, preprocess_s
        )

    def _adapters(self, wanted: Sequence[str] | None) -> tuple[str, ...]:
        if wanted is None:
            in_use = (name for linear in adapted(self.model).values() for name in linear.in_use)
            return tuple(dict.fromkeys(in_use))
        if not wanted:  # to look for adapters is to walk through all modules
            return ()
        unknown = set(wanted) - set(adapter_names(self.model))
        if unknown:
            known = ", ".join(adapter_names(self.model)) or "none"
            raise ConfigError(f"The model has no adapter {min(unknown)!r}; attached: {known}.")
        return tuple(dict.fromkeys(wanted))

    def _enqueue(self, ticket: Ticket) -> None:
        with self._lock:
            self._tickets[ticket.request] = ticket
            self.scheduler.add(ticket.request)
            self._counts["requests"] += 1

    def _end(self, ticket: Ticket, reason: FinishReason, error: Exception | None = None) -> None:
        request = ticket.request
        self.news.append(ticket)
        cached = request.num_cached if request.state is not State.WAITING else 0
        self.scheduler.finish(request)
        del self._tickets[request]
        self._counts["prompt_tokens"] += request.num_prompt
        self._counts["cached_tokens"] += cached
        self._counts["said_tokens"] += len(request.said)
        ticket.end(reason, error, cached)
