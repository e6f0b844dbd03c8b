"""What a server counts and measures, as Prometheus reads it. Names: https://prometheus.io/docs/practices/naming/"""

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from cascadevl.core.generation import Generation

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

GAUGES = {
    "waiting": ("cascadevl_requests_waiting", "Requests in the engine that are not computed yet."),
    "running": ("cascadevl_requests_running", "Requests that the engine computes."),
    "pages": ("cascadevl_cache_pages", "Pages of the cache of keys and values."),
    "pages_available": (
        "cascadevl_cache_pages_available",
        "Those that are free or may be taken from the prefix cache.",
    ),
    "tile_cache_bytes": ("cascadevl_tile_cache_bytes", "Memory of the visual tokens kept."),
    "queue_requests": ("cascadevl_queue_requests", "HTTP requests taken on."),
    "queue_tokens": ("cascadevl_queue_tokens", "Tokens that they hold."),
    "queue_bytes": ("cascadevl_queue_bytes", "Bytes that they hold."),
    "tasks": ("cascadevl_event_loop_tasks", "Tasks of the web server's event loop."),
    "heartbeat_age_s": ("cascadevl_engine_heartbeat_age_seconds", "Since the engine's last sign of life."),
}
COUNTERS = {
    "preemptions": ("cascadevl_preemptions", "Requests that gave their pages back to others."),
    "tile_hits": ("cascadevl_tile_cache_hits", "Tiles whose visual tokens were there."),
    "tile_misses": ("cascadevl_tile_cache_misses", "Tiles that were encoded."),
    "failed_steps": ("cascadevl_engine_failed_steps", "Steps of the engine that failed."),
    "decoders_lost": ("cascadevl_decoders_lost", "Decoders that were killed or died over a picture or video."),
}
"""Name among the engine's or the server's statistics -> name and help of the metric."""


class Metrics:
    """One registry for each server: nothing is global."""

    def __init__(self, stats: Callable[[], dict[str, float]]) -> None:
        """`stats` gives what is read when somebody asks: GAUGES and COUNTERS."""
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "cascadevl"}
        timed: dict[str, Any] = {**own, "labelnames": ["api"], "buckets": SECONDS}
        self.responses = Counter("http_responses", "HTTP responses.", ["api", "status"], **own)
        self.finished = Counter("answers_finished", "Answers, by why they ended.", ["reason"], **own)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", **own)
        self.cached_tokens = Counter("cached_prompt_tokens", "Those found in the prefix cache.", **own)
        self.visual_tokens = Counter("visual_tokens", "Tokens of prompts that stand for tiles.", **own)
        self.tiles = Counter("tiles", "Tiles of pictures and frames.", **own)
        self.said_tokens = Counter("generation_tokens", "Tokens of answers.", **own)
        self.prepare_s = Histogram("prepare_seconds", "Reading and preparing a request.", **timed)
        self.first_token_s = Histogram("time_to_first_token_seconds", "From the request to its first token.", **timed)
        self.per_token_s = Histogram("time_per_output_token_seconds", "Between tokens, the mean of an answer.", **timed)
        self.whole_s = Histogram("request_seconds", "From the request to the end of an answer.", **timed)
        self._registry.register(_Stats(stats))
        ProcessCollector(registry=self._registry)  # process_resident_memory_bytes, process_open_fds and the like

    def ended(self, api: str, generation: Generation, started_s: float, first_s: float) -> None:
        """`started_s` and `first_s`: when the HTTP request came, and when the first of this answer was there."""
        usage, timings, now = generation.usage, generation.timings, time.perf_counter()
        self.finished.labels(generation.finish_reason).inc()
        self.prompt_tokens.inc(usage.prompt_tokens)
        self.cached_tokens.inc(usage.cached_tokens)
        self.visual_tokens.inc(usage.visual_tokens)
        self.tiles.inc(usage.tiles)
        self.said_tokens.inc(usage.completion_tokens)
        self.whole_s.labels(api).observe(now - started_s)
        if usage.completion_tokens:
            self.first_token_s.labels(api).observe(first_s - started_s)
        if usage.completion_tokens > 1:
            self.per_token_s.labels(api).observe(timings["decode_s"] / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        return generate_latest(self._registry)


class _Stats:
    """Asked whenever the metrics are read."""

    def __init__(self, stats: Callable[[], dict[str, float]]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        stats = self._stats()
        for key, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(name, text, value=stats[key])
        for key, (name, text) in COUNTERS.items():
            yield CounterMetricFamily(name, text, value=stats[key])
