"""GGUF files written by hand, from the published layout (ggml-org/ggml, `docs/gguf.md`)."""

import struct
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
F32, F16, Q8_0 = 0, 1, 8


class Stored(NamedTuple):
    """A tensor as it lies in the file."""

    kind: int
    shape: Sequence[int]
    data: bytes


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def setting(key: str, value: Any) -> bytes:
    """Key, type and value; the type by that of the value."""
    if isinstance(value, bool):
        return text(key) + struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return text(key) + struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return text(key) + struct.pack("<I", STRING) + text(value)
    if value and isinstance(value[0], str):
        return text(key) + struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    kind, letter = (FLOAT32, "f") if value and isinstance(value[0], float) else (INT32, "i")
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(value)) + array(letter, value).tobytes()


def stored(tensor: Tensor, kind: int = F32) -> Stored:
    """As F32, F16 or Q8_0, the last by the rule of ggml's reference: scale = greatest/127, rounded to fp16."""
    values = tensor.detach().numpy().astype(np.float32)
    if kind in (F32, F16):
        return Stored(kind, tensor.shape, values.astype(np.float32 if kind == F32 else np.float16).tobytes())
    blocks = values.reshape(-1, 32)
    scales = (np.abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float16)
    numbers = np.round(blocks / np.maximum(scales.astype(np.float32), 1e-12)).clip(-127, 127).astype(np.int8)
    rows = np.concatenate([scales.view(np.uint8), numbers.view(np.uint8)], axis=1)
    return Stored(kind, tensor.shape, rows.tobytes())


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Mapping[str, Stored], *, version: int = 3, alignment: int = 32
) -> bytes:
    """A whole file; the alignment is written into the metadata unless it is the usual one."""
    metadata = {**metadata, **({} if alignment == 32 else {"general.alignment": alignment})}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(setting(key, value) for key, value in metadata.items())
    body = b""
    for name, (kind, shape, data) in tensors.items():
        body += bytes(-len(body) % alignment)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(body))
        body += data
    return head + bytes(-len(head) % alignment) + body


def write(path: Path, metadata: Mapping[str, Any], tensors: Mapping[str, Stored], **options: Any) -> Path:
    path.write_bytes(gguf_bytes(metadata, tensors, **options))
    return path


BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def language_model(model: Any, *, kind: int = F32) -> tuple[dict[str, Any], dict[str, Stored]]:
    """Metadata and tensors of a causal model of transformers, as llama.cpp's converter writes them.

    Of llamas the rows of q and k change places head by head: what was row i and row i + H/2 lies side by side.
    """
    config = model.config
    arch = config.model_type
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    tensors = {}
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        if name.startswith("model.layers."):
            module = ".".join(parts[3:-1])
            if arch == "llama" and parts[-2] in heads:
                num, (rows, width) = heads[parts[-2]], tensor.shape
                tensor = tensor.reshape(num, 2, rows // num // 2, width).swapaxes(1, 2).reshape(rows, width)
            name = f"blk.{parts[2]}.{BLOCK[module]}.{parts[-1]}"
        elif name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        else:
            name = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
                name, "output.weight"
            )
        tensors[name] = stored(tensor.contiguous(), kind if tensor.ndim == 2 and tensor.shape[1] % 32 == 0 else F32)
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata = {
        "general.architecture": arch,
        "general.name": f"a tiny {arch}",
        f"{arch}.block_count": config.num_hidden_layers,
        f"{arch}.context_length": config.max_position_embeddings,
        f"{arch}.embedding_length": config.hidden_size,
        f"{arch}.feed_forward_length": config.intermediate_size,
        f"{arch}.attention.head_count": config.num_attention_heads,
        f"{arch}.attention.head_count_kv": config.num_key_value_heads,
        f"{arch}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{arch}.attention.key_length": size,
        f"{arch}.attention.value_length": size,
        f"{arch}.rope.freq_base": float(config.rope_parameters["rope_theta"]),
        f"{arch}.rope.dimension_count": size,
    }
    return metadata, tensors


def byte_tokenizer(**more: Any) -> dict[str, Any]:
    """256 bytes, two merges, three control tokens, one that people may type."""
    letters = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256))]
    letters += [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*letters, "th", "the", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 258 + [3, 3, 3, 4],
        "tokenizer.ggml.merges": ["t h", "th e"],
        "tokenizer.ggml.bos_token_id": 259,
        "tokenizer.ggml.eos_token_id": 260,
        "tokenizer.chat_template": "{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
        **more,
    }
