"""What benchmarks/serving.py starts beside `cascadevl serve`, each in a process of its own.

python benchmarks/serving_worker.py engine MODEL            the bare engine: JSON lines in, "@" and JSON out
python benchmarks/serving_worker.py transformers MODEL PORT a minimal server on transformers, fp32, one at a time
python benchmarks/serving_worker.py gguf FILE WEIGHTS PORT  our server on a language model from a GGUF file
"""

import asyncio
import base64
import dataclasses
import io
import json
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import cascadevl
from cascadevl.checkpoints.layouts import locate
from cascadevl.core.messages import Conversation
from cascadevl.engine.engine import Ticket
from cascadevl.preprocessing.processor import ModelInputs


def read(messages: list[dict[str, Any]]) -> Conversation:
    """The one message that the load client sends."""
    content = messages[0]["content"]
    if isinstance(content, str):
        return Conversation.ask(content)
    shown, text = content
    data = base64.b64decode(shown["image_url"]["url"].partition(",")[2])
    return Conversation.ask(text["text"], [Image.open(io.BytesIO(data))])


# The bare engine


def engine(model: str) -> None:
    bundle = cascadevl.load(model, dtype="float32", device="cpu")
    print("@{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        told = served(bundle, order) if order["do"] == "serve" else {"bound_s": least(bundle, order)}
        print("@" + json.dumps(told), flush=True)


def served(bundle: cascadevl.Bundle, order: dict[str, Any]) -> dict[str, float]:
    """So many requests under way at any time, each read when its turn comes, as clients of a closed loop do."""
    engine = cascadevl.Engine(bundle)
    sampling = cascadevl.Sampling(max_new_tokens=order["tokens"], ignore_eos=True, loop_guard=False)
    waiting, running, said = list(reversed(order["questions"])), list[Ticket](), 0
    started = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < order["clients"]:
            running.append(engine.submit(read(waiting.pop()), sampling))
        engine.step()
        for ticket in [ticket for ticket in running if ticket.generation]:
            assert ticket.generation is not None and ticket.generation.error is None
            said += ticket.generation.usage.completion_tokens
            running.remove(ticket)
    seconds = time.perf_counter() - started
    return {"duration_s": seconds, "output_tokens_per_s": said / seconds}


@torch.inference_mode()
def least(bundle: cascadevl.Bundle, order: dict[str, Any]) -> float:
    """What distinct pictures take at least, at the rates measured here: preparing, the tower in full batches, the
    prompts as one, and answers said as fast as to text alone."""
    from engine import bound  # benchmarks/engine.py

    asked = [read(messages) for messages in order["questions"]]
    return bound(bundle, asked, 1.0, order["text_s"])["bound s"]


# transformers


class Spoken:
    """A streamer for `generate`: token ids as they come."""

    def __init__(self) -> None:
        self.said: queue.Queue[int | BaseException | None] = queue.Queue()
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            self.said.put(int(value.flatten()[-1]))
        self._prompt = False

    def end(self) -> None:
        self.said.put(None)


def transformers(model: str, port: int) -> None:
    """Its model and its generate behind the fewest lines of FastAPI; pictures are prepared by our processor, which
    makes what its own makes and needs no torchvision."""
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import StreamingResponse
    from transformers import InternVLForConditionalGeneration

    bundle = cascadevl.load(model, dtype="float32", device="cpu")
    peer: Any = InternVLForConditionalGeneration.from_pretrained(locate(model), dtype=torch.float32).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (bundle.spec.mean, bundle.spec.std))
    app, turn = FastAPI(), asyncio.Lock()

    @torch.inference_mode()
    def answer(inputs: ModelInputs, num_tokens: int, spoken: Spoken) -> None:
        shown = {"pixel_values": (inputs.tiles.float() / 255 - mean) / std} if len(inputs.tiles) else {}
        try:
            peer.generate(
                input_ids=inputs.token_ids[None], attention_mask=torch.ones(1, len(inputs.token_ids)).long(), **shown,
                max_new_tokens=num_tokens, min_new_tokens=num_tokens, do_sample=False, pad_token_id=0, streamer=spoken,
            )  # fmt: skip
        except Exception as error:  # the border of a thread
            spoken.said.put(error)

    async def events(body: dict[str, Any]) -> AsyncIterator[str]:
        inputs = await asyncio.to_thread(bundle.preprocess, read(body["messages"]))
        spoken, num = Spoken(), 0
        async with turn:
            threading.Thread(target=answer, args=(inputs, body["max_tokens"], spoken), daemon=True).start()
            while (token_id := await asyncio.to_thread(spoken.said.get)) is not None:
                if isinstance(token_id, BaseException):
                    yield event({"error": {"message": repr(token_id)}})
                    return
                num += 1
                text = bundle.tokenizer.decode([token_id]) or " "
                yield event({"choices": [{"delta": {"content": text}, "finish_reason": None}]})
        usage = {"prompt_tokens": len(inputs.token_ids), "completion_tokens": num}
        yield event({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage})
        yield "data: [DONE]\n\n"

    async def chat(request: Request) -> StreamingResponse:
        return StreamingResponse(events(await request.json()), media_type="text/event-stream")

    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/models", lambda: {"data": [{"id": bundle.name}]}, methods=["GET"])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


# A language model from a GGUF file


def gguf(file: Path, weights: str, port: int) -> None:
    from cpu_engines_worker import Ours

    from cascadevl.serving.app import Service
    from cascadevl.serving.config import ServingConfig
    from cascadevl.serving.listen import bind
    from cascadevl.serving.server import serve

    # The model that benchmarks/cpu_engines.py measures; it never ends an answer by itself.
    parts = dataclasses.replace(Ours(f"ours {weights}", file, torch.get_num_threads()).parts, name=file.stem)
    config = ServingConfig(port=port)
    listener, service = bind(config), Service(parts, config, cascadevl.EngineConfig())
    service.preparer.start()
    listener.listen(1024)
    serve(service, listener)


if __name__ == "__main__":
    role, *rest = sys.argv[1:]
    if role == "engine":
        engine(rest[0])
    elif role == "transformers":
        transformers(rest[0], int(rest[1]))
    else:
        gguf(Path(rest[0]), rest[1], int(rest[2]))
