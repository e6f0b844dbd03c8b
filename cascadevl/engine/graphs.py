"""Steps of few tokens on a GPU, recorded and played back: a CUDA graph for each of some numbers of tokens.

A step of decoding is hundreds of short launches, and a framework takes longer to ask for one than a GPU to do it. A
recording asks for all at once, but always with the same addresses and shapes: so what changes from step to step is
copied into tensors that stay, and a step of 5 tokens is computed as one of 8, three of them tokens of nobody, in a
page of nobody (as in nano-vllm and SGLang). Not yet run on a GPU; the logic is tested with recordings that are not.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cascadevl.ops.native.paged_attention import Places

Step = Callable[[Tensor, Tensor, Tensor, Places], Tensor]
"""(embed_TD, cos_TH, sin_TH, places) -> hidden_TD: `FusedDecoder`, `TritonDecoder`, `Graphs`."""

Replay = Callable[[], None]

Recorder = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]
"""Runs a step and gives what runs it again, and the tensor in which its result then stands."""

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of tokens that are recorded, up to what an engine computes at once."""


class Graphs:
    """A step that is recorded for a number of tokens when they first come, and played back from then on.

    More tokens than the largest size are left to the step itself. Not for several threads.
    """

    def __init__(
        self, step: Step, record: Recorder, *, most_tokens: int, most_pages: int, scratch_page: int,
        width: int, head_size: int, dtype: torch.dtype, device: torch.device,
    ) -> None:  # fmt: skip
        """`most_pages`: of one request. `scratch_page`: the page of nobody; any token may be written there."""
        self._step, self._record = step, record
        self.sizes = sizes_up_to(most_tokens)
        most = self.sizes[-1]
        self._scratch_page = scratch_page
        self._embed_TD = torch.zeros(most, width, dtype=dtype, device=device)
        self._cos_TH, self._sin_TH = (torch.zeros(most, head_size, dtype=dtype, device=device) for _ in range(2))
        self._tables_TP = torch.full((most, most_pages), scratch_page, dtype=torch.int32, device=device)
        """A row for each token, also where several are of one request."""
        self._row_T = torch.arange(most, dtype=torch.int32, device=device)
        self._position_T = torch.zeros(most, dtype=torch.int32, device=device)
        self._recordings: dict[int, tuple[Replay, Tensor]] = {}

    def __call__(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places) -> Tensor:
        """hidden_TD; keys and values are then in the pages. `places` may be on the CPU."""
        num = len(embed_TD)
        size = next((size for size in self.sizes if size >= num), None)
        if size is None or places.tables_RP.shape[1] > self._tables_TP.shape[1]:
            return self._step(embed_TD, cos_TH, sin_TH, places)
        if size not in self._recordings:
            # Recording computes the step: as yet for nobody, wherever earlier tokens stood.
            self._tables_TP.fill_(self._scratch_page)
            self._position_T.zero_()
            self._recordings[size] = self._record(lambda: self._on_static(size, places.page_size))
        self._fill(embed_TD, cos_TH, sin_TH, places, size)
        replay, hidden_TD = self._recordings[size]
        replay()
        return hidden_TD[:num].clone()  # the next step writes there

    def _on_static(self, size: int, page_size: int) -> Tensor:
        places = Places(self._tables_TP[:size], self._row_T[:size], self._position_T[:size], page_size)
        return self._step(self._embed_TD[:size], self._cos_TH[:size], self._sin_TH[:size], places)

    def _fill(self, embed_TD: Tensor, cos_TH: Tensor, sin_TH: Tensor, places: Places, size: int) -> None:
        num = len(embed_TD)
        self._embed_TD[:num] = embed_TD
        self._cos_TH[:num] = cos_TH
        self._sin_TH[:num] = sin_TH
        tables_TP = places.tables_RP[places.request_T.long()]
        self._tables_TP[:num, : tables_TP.shape[1]] = self._sent(tables_TP)
        self._position_T[:num] = self._sent(places.position_T)
        # Behind a request's last page anything may stand; tokens of nobody need one page.
        self._tables_TP[num:size, :1] = self._scratch_page
        self._position_T[num:size] = 0

    def _sent(self, x: Tensor) -> Tensor:
        """To the GPU, without waiting for what it still computes."""
        if x.device == self._embed_TD.device:
            return x
        return x.pin_memory().to(self._embed_TD.device, non_blocking=True)


def sizes_up_to(most_tokens: int) -> Sequence[int]:
    """Of SIZES, those that steps of so many tokens and fewer need."""
    needed = [size for size in SIZES if size < most_tokens]
    return (*needed, SIZES[len(needed)]) if len(needed) < len(SIZES) else SIZES


def cuda_recorder() -> Recorder:
    """Recordings share their memory: only one is played back at a time, and its result is copied."""
    pool = torch.cuda.graph_pool_handle()

    def record(step: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles kernels and lets libraries take their memory, which must come first
            step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            hidden_TD = step()
        return graph.replay, hidden_TD

    return record
