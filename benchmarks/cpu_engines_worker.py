"""One contender of cpu_engines.py: NAME GGUF WORK THREADS; orders come as JSON lines, answers go out after an "@"."""

import sys

sys.path.pop(0)  # scripts beside this one have the names of packages

import ast
import ctypes
import hashlib
import json
import pydoc_data.topics
import re
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CALIBRATION_WINDOWS, WINDOW = 48, 512


class Engine(Protocol):
    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        """Greedy answers of exactly `said` tokens: what `phases` gives, and more perhaps."""
        ...

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Of ids[1:], each given those before."""
        ...


class Clock:
    """Wall and CPU time since the last look."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def lap(self) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        passed = wall - self.wall, cpu - self.cpu
        self.wall, self.cpu = wall, cpu
        return passed


def phases(prefill: tuple[float, float], decode: tuple[float, float], decoded: int) -> dict[str, float]:
    """Wall and CPU seconds up to the first token of every request and after it; `decoded` tokens came after it."""
    return {
        "prefill_s": prefill[0], "prefill_cpu_s": prefill[1], "decode_s": decode[0], "decode_cpu_s": decode[1],
        "decoded": decoded,
    }  # fmt: skip


def log_softmax_at(logits_TV: np.ndarray, ids: list[int]) -> np.ndarray:
    top = logits_TV.max(-1, keepdims=True)
    sums = np.log(np.exp(logits_TV - top).sum(-1)) + top[:, 0]
    return logits_TV[np.arange(len(ids)), ids] - sums


class Ours:
    def __init__(self, name: str, gguf: Path, work: Path, threads: int) -> None:
        import dataclasses

        import torch

        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        from cascadevl.checkpoints.gguf import read_gguf
        from cascadevl.checkpoints.graft import build_around
        from cascadevl.checkpoints.tiny import TINY_VISION
        from cascadevl.engine.config import EngineConfig
        from cascadevl.engine.engine import Engine as Batching
        from cascadevl.models.quant_linear import QuantLinear, quantize_linears
        from cascadevl.ops.formats import FORMATS
        from cascadevl.preprocessing.spec_file import Spec

        torch.set_num_threads(threads)
        self.torch = torch
        language = read_gguf(gguf)
        parts = build_around(language, TINY_VISION, Spec(template="jinja", jinja=language.chat_template))
        self.parts = parts = dataclasses.replace(parts, stop_ids=())
        _, weights, *rest = name.split()
        decoder = parts.model.language_model
        if weights != "fp32":
            head = torch.nn.Linear(decoder.config.hidden_size, decoder.config.vocab_size, bias=False, device="meta")
            head.weight = torch.nn.Parameter(decoder.model.embed_tokens.weight.detach(), requires_grad=False)
            decoder.lm_head = head
            if "gptq" in rest:
                self._compensated(weights, work)
            else:
                quantize_linears(decoder.model, lambda _: True, FORMATS[weights])
                decoder.lm_head = QuantLinear.of(head, FORMATS[weights if "head4" in rest else "int8-g64"])  # type: ignore[assignment]
        config = EngineConfig(
            cache_bytes=1_000_000_000, prefix_cache=False, kv_format="int8" if "kv8" in rest else "auto"
        )
        self.engine = Batching(parts, config)
        cache = self.engine.runner.cache
        kept_bytes = cache.keys.num_bytes + cache.values.num_bytes
        self.page_bytes = kept_bytes / (self.engine.pool.num_pages + 1)

    def _compensated(self, weights: str, work: Path) -> None:
        """Rounded by GPTQ, the output matrix too; made once, as the peers' files are."""
        from safetensors.torch import load_file, save_file

        from cascadevl.engine.gptq import round_weights
        from cascadevl.models.quant_linear import few_bits, put
        from cascadevl.ops.formats import FORMATS, Quantized

        decoder, file = self.parts.model.language_model, work / f"ours-{weights}-gptq.safetensors"
        if not file.exists():
            round_weights(self.parts.model, map(self.inputs, calibration(work)), FORMATS[weights], head=True)
            part = file.with_suffix(".part")
            layers = {name: layers[0].quantized for name, layers in few_bits(decoder).items()}
            save_file({f"{n} {kind}": t for n, q in layers.items() for kind, t in q.tensors().items()}, part)
            part.rename(file)
            return
        tensors = load_file(file)
        for name in {key.split()[0] for key in tensors}:
            kinds = {key.split()[1]: tensor for key, tensor in tensors.items() if key.split()[0] == name}
            put(decoder, name, Quantized(FORMATS[weights], **kinds))

    def inputs(self, ids: list[int]) -> Any:
        from cascadevl.preprocessing.processor import ModelInputs

        torch = self.torch
        return ModelInputs(
            token_ids=torch.tensor(ids), tiles=torch.empty(0, 3, 1, 1, dtype=torch.uint8), grids=[], sizes=[],
            trained=torch.arange(len(ids)) > 0, num_visual_tokens=0, spec_hash=self.parts.spec.hash,
        )  # fmt: skip

    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        from cascadevl.core.generation import Sampling

        engine, sampling = self.engine, Sampling(max_new_tokens=said, loop_guard=False)
        clock = Clock()
        tickets = [engine.submit(self.inputs(ids), sampling) for ids in prompts]
        while not all(ticket.request.said for ticket in tickets):
            engine.step()
        prefill, decoded = clock.lap(), sum(said - len(ticket.request.said) for ticket in tickets)
        while engine.busy:
            engine.step()
        row = phases(prefill, clock.lap(), decoded)
        pages = sum(-(-(len(ids) + said) // engine.config.page_size) for ids in prompts)
        return row | {"kv_mb": pages * self.page_bytes / 1e6}

    def logprobs(self, ids: list[int]) -> np.ndarray:
        """Through the engine: keys and values are those that it keeps."""
        ticket = self.engine.submit_score(self.inputs(ids))
        while self.engine.busy:
            self.engine.step()
        generation = ticket.generation
        assert generation is not None
        if generation.error is not None:
            raise generation.error
        return np.array([score.logprob for score in generation.logprobs or ()])


class LlamaCpp:
    def __init__(self, name: str, gguf: Path, work: Path, threads: int) -> None:
        import llama_cpp  # pyright: ignore[reportMissingImports]

        self.c = llama_cpp
        kind = name.split()[1]
        file = work / f"smol-{kind}.gguf"
        if not file.exists():
            settings = llama_cpp.llama_model_quantize_default_params()
            settings.ftype = {"Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0}[
                kind
            ]
            settings.allow_requantize = True
            part = file.with_suffix(".part")
            assert llama_cpp.llama_model_quantize(str(gguf).encode(), str(part).encode(), ctypes.byref(settings)) == 0
            part.rename(file)
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)  # kept: C has its address
        llama_cpp.llama_log_set(self.quiet, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 8 * 1024, 4096, 512, 8
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        self.num_entries = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, logits wanted) of each row."""
        batch = self.c.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, position, 1
            batch.seq_id[at][0], batch.logits[at] = sequence, wanted
        status = self.c.llama_decode(self.context, batch)
        self.c.llama_batch_free(batch)
        assert status == 0, status

    def _logits(self, row: int) -> np.ndarray:
        return np.ctypeslib.as_array(self.c.llama_get_logits_ith(self.context, row), (self.num_entries,))

    def _clear(self) -> None:
        self.c.llama_memory_clear(self.c.llama_get_memory(self.context), True)

    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        self._clear()
        clock = Clock()
        chosen = []
        for sequence, ids in enumerate(prompts):
            self._decode([(t, at, sequence, at == len(ids) - 1) for at, t in enumerate(ids)])
            chosen.append(int(self._logits(len(ids) - 1).argmax()))
        prefill = clock.lap()
        for step in range(said - 1):
            self._decode([(t, len(prompts[s]) + step, s, True) for s, t in enumerate(chosen)])
            chosen = [int(self._logits(row).argmax()) for row in range(len(chosen))]
        return phases(prefill, clock.lap(), len(prompts) * (said - 1))

    def logprobs(self, ids: list[int]) -> np.ndarray:
        self._clear()
        self._decode([(t, at, 0, True) for at, t in enumerate(ids)])
        rows = np.stack([self._logits(row) for row in range(len(ids) - 1)])
        return log_softmax_at(rows, ids[1:])


class Genai:
    def __init__(self, work: Path, threads: int) -> None:
        import onnxruntime_genai as og  # pyright: ignore[reportMissingImports]

        folder = work / "genai-int4"
        if not (folder / "genai_config.json").exists():
            command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(work / "hf")]
            paths = ["-o", str(folder), "-c", str(work / "cache")]
            subprocess.run([*command, *paths, "-p", "int4", "-e", "cpu"], check=True, stdout=subprocess.DEVNULL)
        self.og = og
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = og.Model(config)
        self.folder, self.threads = folder, threads

    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        settings = self.og.GeneratorParams(self.model)
        total = len(prompts[0]) + said
        settings.set_search_options(max_length=total, min_length=total, batch_size=len(prompts), do_sample=False)
        generator = self.og.Generator(self.model, settings)
        clock = Clock()
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        generator.generate_next_token()
        prefill = clock.lap()
        for _ in range(said - 1):
            generator.generate_next_token()
        return phases(prefill, clock.lap(), len(prompts) * (said - 1))

    def logprobs(self, ids: list[int]) -> np.ndarray:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        if not hasattr(self, "session"):
            self.session = ort.InferenceSession(str(self.folder / "model.onnx"), options)
        feeds: dict[str, Any] = {}
        for tensor in self.session.get_inputs():
            if tensor.name == "input_ids":
                feeds[tensor.name] = np.array([ids], dtype=np.int64)
            elif tensor.name == "attention_mask":
                feeds[tensor.name] = np.ones((1, len(ids)), dtype=np.int64)
            elif tensor.name == "position_ids":
                feeds[tensor.name] = np.arange(len(ids), dtype=np.int64)[None]
            else:
                feeds[tensor.name] = np.zeros((1, 3, 0, 64), dtype=np.float32)  # no keys and values yet
        logits = np.asarray(self.session.run(["logits"], feeds)[0])[0]
        return log_softmax_at(logits[:-1].astype(np.float32), ids[1:])


class Translate:
    def __init__(self, work: Path, threads: int) -> None:
        import ctranslate2  # pyright: ignore[reportMissingImports]

        folder = work / "ct2"
        if not folder.exists():
            ctranslate2.converters.TransformersConverter(str(work / "hf")).convert(str(folder))
        self.generator = ctranslate2.Generator(str(folder), compute_type="int8", intra_threads=threads, inter_threads=1)
        words = json.loads((work / "hf" / "tokenizer.json").read_text())["model"]["vocab"]
        added = json.loads((work / "hf" / "tokenizer.json").read_text())["added_tokens"]
        self.words = {number: word for word, number in words.items()} | {a["id"]: a["content"] for a in added}

    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        tokens = [[self.words[i] for i in ids] for ids in prompts]
        seconds = []
        for length in (1, said):  # it has no steps: decode is what the rest takes
            clock = Clock()
            self.generator.generate_batch(
                tokens, max_length=length, min_length=length, sampling_topk=1, include_prompt_in_result=False,
                max_batch_size=0,
            )  # fmt: skip
            seconds.append(clock.lap())
        (prefill_s, prefill_cpu_s), (all_s, all_cpu_s) = seconds
        decode = all_s - prefill_s, all_cpu_s - prefill_cpu_s
        return phases((prefill_s, prefill_cpu_s), decode, len(prompts) * (said - 1))

    def logprobs(self, ids: list[int]) -> np.ndarray:
        scored = self.generator.score_batch([[self.words[i] for i in ids]])[0]
        return np.array(scored.log_probs)


class Transformers:
    def __init__(self, work: Path, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(work / "hf", dtype=torch.float32).eval()

    def run(self, prompts: list[list[int]], said: int) -> dict[str, float]:
        torch = self.torch
        with torch.inference_mode():
            clock = Clock()
            out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
            chosen = out.logits[:, -1].argmax(-1, keepdim=True)
            prefill = clock.lap()
            for _ in range(said - 1):
                out = self.model(chosen, past_key_values=out.past_key_values, use_cache=True)
                chosen = out.logits[:, -1].argmax(-1, keepdim=True)
            decode = clock.lap()
        return phases(prefill, decode, len(prompts) * (said - 1))

    def logprobs(self, ids: list[int]) -> np.ndarray:
        with self.torch.inference_mode():
            return log_softmax_at(self.model(self.torch.tensor([ids])).logits[0, :-1].numpy(), ids[1:])


def made(name: str, gguf: Path, work: Path, threads: int) -> Engine:
    kinds: dict[str, Callable[[], Engine]] = {
        "ours": lambda: Ours(name, gguf, work, threads),
        "llama.cpp": lambda: LlamaCpp(name, gguf, work, threads),
        "onnxruntime-genai": lambda: Genai(work, threads),
        "ctranslate2": lambda: Translate(work, threads),
        "transformers": lambda: Transformers(work, threads),
    }
    return kinds[name.split()[0]]()


def held_out(work: Path) -> tuple[str, list[int]]:
    """Prose that no contender was calibrated on, the topics of Python's own help: its name, and its tokens."""
    from tokenizers import Tokenizer

    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    digest, version = hashlib.sha256(text.encode()).hexdigest()[:12], sys.version.split()[0]
    name = f"pydoc_data.topics of Python {version} (PSF licence), sha256 {digest}"
    return name, Tokenizer.from_file(str(work / "hf" / "tokenizer.json")).encode(text).ids


def calibration(work: Path) -> list[list[int]]:
    """What rounding is fitted to: docstrings of Python's own library, in windows of 512 tokens.

    One that shares eight words in a row with the held-out text is left out.
    """
    from tokenizers import Tokenizer

    held = phrases("\n\n".join(pydoc_data.topics.topics.values()))
    found: dict[str, None] = {}
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.rglob("*.py")):
        if not {"pydoc_data", "site-packages", "test", "lib2to3"} & set(file.relative_to(library).parts):
            for node in ast.walk(ast.parse(file.read_bytes())):
                kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
                said = ast.get_docstring(node) if isinstance(node, kinds) else None
                if said and len(said) > 300 and not phrases(said) & held:
                    found[said] = None
    texts = np.random.default_rng(0).permutation(list(found)).tolist()
    ids = Tokenizer.from_file(str(work / "hf" / "tokenizer.json")).encode("\n\n".join(texts)).ids
    return [ids[first : first + WINDOW] for first in range(0, CALIBRATION_WINDOWS * WINDOW, WINDOW)]


def phrases(text: str) -> set[tuple[str, ...]]:
    """Eight words in a row."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}


def forget_peak() -> None:
    """Linux then counts the most memory from now on; what loading has freed goes back first."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def answer(engine: Engine, order: dict[str, Any], work: Path) -> dict[str, Any]:
    if order["do"] == "run":
        rng = np.random.default_rng(0)
        prompts = [rng.integers(1000, 40_000, order["prompt"]).tolist() for _ in range(order["batch"])]
        return {**engine.run(prompts, order["said"]), "peak_mb": peak_mb()}
    (text, ids), size = held_out(work), order["window"]
    windows = [ids[first : first + size] for first in order["at"]]
    logprobs = np.concatenate([engine.logprobs(window) for window in windows])
    return {"nats": -float(logprobs.sum()), "tokens": len(logprobs), "text": text}


def main() -> None:
    name, gguf, work, threads = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    engine = made(name, gguf, work, threads)
    forget_peak()
    print("@" + json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        try:
            row = answer(engine, json.loads(line), work)
        except Exception as error:  # the border of a worker
            row = {"refused": f"{type(error).__name__}: {error}"}
        print("@" + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
