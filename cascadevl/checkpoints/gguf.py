"""A GGUF file becomes a language model: sizes, decoder, tokenizer and chat template.

Of the architectures `llama`, `qwen2` and `qwen3`, which name their tensors alike (ggml-org/llama.cpp,
`gguf-py/gguf/constants.py`). The quantised formats become numbers again: what is gained is the file, not
its size in memory. There is no vision tower in such files; `graft.py` puts a fresh one before it.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.gguf_file import GGUFFile, read_header
from cascadevl.checkpoints.gguf_tokenizer import added_bos, read_tokenizer, stop_ids
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, UserError
from cascadevl.models.config import DecoderConfig
from cascadevl.models.decoder import Decoder
from cascadevl.models.families import read_decoder
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.tokenizer import TextTokenizer

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Names of `general.architecture`, which are those of our families."""

INTERLEAVED = ("llama",)
"""Architectures whose files turn neighbouring rows of q and k: see `_halves_first`."""

_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3.1 and later: a divisor of each rotary frequency."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageParts:
    """A language model by itself."""

    name: str
    decoder: Decoder
    tokenizer: TextTokenizer
    chat_template: str | None
    """Jinja, as the file has it."""
    bos: str | None
    """What stands in front of every prompt."""
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""

    @property
    def config(self) -> DecoderConfig:
        return self.decoder.config


def read_gguf(path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> LanguageParts:
    """Read a GGUF file into numbers of `dtype`, tensor by tensor.

    Raises CheckpointError for a file that is damaged, of another architecture, or stored in a format
    that is not read, naming what is wrong.
    """
    path = Path(path)
    file = read_header(path)
    config = read_config(file)
    tokenizer = read_tokenizer(path, file.metadata)
    if len(tokenizer) > config.vocab_size:
        raise CheckpointError(f"{path} has {len(tokenizer)} tokens, its embeddings only {config.vocab_size}.")
    return LanguageParts(
        name=str(file.metadata.get("general.name", path.stem)),
        decoder=_read_decoder(file, config, dtype).eval().requires_grad_(False),
        tokenizer=tokenizer,
        chat_template=file.metadata.get("tokenizer.chat_template"),
        bos=added_bos(file.metadata),
        stop_ids=stop_ids(file.metadata, tokenizer),
    )


def file_name(ours: str) -> str:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`."""
    if ours in _OUTER:
        return _OUTER[ours]
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.(weight|bias)", ours)
    assert match, f"a parameter without a place in a GGUF file: {ours}"
    return f"blk.{match[1]}.{_BLOCK[match[2]]}.{match[3]}"


def read_config(file: GGUFFile) -> DecoderConfig:
    """Sizes out of the metadata, held against the shapes of the tensors before anything is built by them."""
    kind = file.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        hint = " It is the vision part of a model, which is read from its official folder." if kind == "clip" else ""
        raise CheckpointError(
            f"{file.path} holds the architecture {kind!r}. Supported: {', '.join(ARCHITECTURES)}.{hint}"
        )
    settings = {key.partition(".")[2]: value for key, value in file.metadata.items() if key.startswith(f"{kind}.")}
    official = _Sizes(file.path, kind, settings).official(num_rows=_shape(file, "token_embd.weight")[0])
    try:
        config = read_decoder(official, tied="output.weight" not in file.tensors)
    except UserError as error:
        raise CheckpointError(f"{file.path}: {error}") from error
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    expected = {"token_embd.weight": (config.vocab_size, config.hidden_size)}
    expected |= {f"blk.0.{name}.weight": (num * config.head_size, config.hidden_size) for name, num in heads.items()}
    expected["blk.0.ffn_gate.weight"] = (config.mlp_size, config.hidden_size)
    for name, shape in expected.items():
        if _shape(file, name) != shape:
            raise CheckpointError(
                f"{file.path}: {name!r} has the shape {list(_shape(file, name))}, the metadata imply {list(shape)}."
            )
    if config.num_layers > len(file.tensors):
        raise CheckpointError(f"{file.path} claims {config.num_layers} layers and has {len(file.tensors)} tensors.")
    return evolve(config, rope=_with_factors(file, config)) if ROPE_FACTORS in file.tensors else config


def _shape(file: GGUFFile, name: str) -> tuple[int, ...]:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path} lacks the tensor {name!r}: it is no complete language model.")
    return file.tensors[name].shape


class _Sizes:
    """The settings of an architecture, each of the type and sign that it must have."""

    def __init__(self, path: Path, kind: str, settings: Mapping[str, Any]) -> None:
        self.path, self.kind, self.settings = path, kind, settings

    def number(self, key: str, type_: type = int, default: Any = None) -> Any:
        value = self.settings.get(key, default)
        if not isinstance(value, type_) or isinstance(value, bool) or not value > 0:
            raise CheckpointError(
                f"{self.path}: {self.kind}.{key} is {value!r:.80}; a positive {type_.__name__} was expected."
            )
        return value

    def official(self, num_rows: int) -> dict[str, Any]:
        """The same in the words of an official config.json."""
        hidden, heads = self.number("embedding_length"), self.number("attention.head_count")
        size = self.number("attention.key_length", default=hidden // heads)
        self._require("attention.value_length", size, "values as wide as keys")
        self._require("rope.dimension_count", size, "whole heads turned")
        for key in ("expert_count", "attention.sliding_window"):
            self._require(key, 0, "neither experts nor windows")
        if size % 2:
            raise CheckpointError(f"{self.path}: heads of {size} cannot be turned in pairs.")
        return {
            "model_type": self.kind,
            "hidden_size": hidden,
            "intermediate_size": self.number("feed_forward_length"),
            "num_hidden_layers": self.number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.number("attention.head_count_kv", default=heads),
            "head_dim": size,
            "vocab_size": num_rows,
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon", float),
            "max_position_embeddings": self.number("context_length"),
            "rope_theta": self.number("rope.freq_base", float, 10000.0),
            "rope_scaling": self._scaling(),
        }

    def _require(self, key: str, expected: int, why: str) -> None:
        if self.settings.get(key, expected) != expected:
            raise CheckpointError(
                f"{self.path}: {self.kind}.{key} is {self.settings[key]!r:.80}; {expected} was expected ({why})."
            )

    def _scaling(self) -> dict[str, Any] | None:
        prefix = "rope.scaling."
        given = {key.removeprefix(prefix): value for key, value in self.settings.items() if key.startswith(prefix)}
        unknown = given.keys() - {"type", "factor", "original_context_length", "finetuned"}
        if unknown:
            raise CheckpointError(f"{self.path}: {self.kind}.rope.scaling.{min(unknown)} is not supported here.")
        if given.get("type", "none") == "none":
            return None
        return {
            "rope_type": given["type"],
            "factor": self.number("rope.scaling.factor", float),
            "original_max_position_embeddings": given.get("original_context_length"),
        }


def _with_factors(file: GGUFFile, config: DecoderConfig) -> Rope:
    """Llama 3's scaling comes as the divisors that it makes: LongRoPE with the same ones at all lengths."""
    if config.rope.kind != "default" or _shape(file, ROPE_FACTORS) != (config.head_size // 2,):
        raise CheckpointError(
            f"{file.path}: {ROPE_FACTORS} has the shape {list(_shape(file, ROPE_FACTORS))} beside rope scaling "
            f"{config.rope.kind!r}; {config.head_size // 2} factors and no other scaling were expected."
        )
    factors = torch.empty(config.head_size // 2)
    file.fill(factors, ROPE_FACTORS)
    divisors = tuple(factors.tolist())
    return evolve(
        config.rope,
        kind="longrope",
        trained_position=config.rope.max_position,
        short_factors=divisors,
        long_factors=divisors,
    )


def _read_decoder(file: GGUFFile, config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    with torch.device("meta"):
        decoder = Decoder(config)
    ours = dict(decoder.named_parameters())
    _account(file, {file_name(name): tuple(parameter.shape) for name, parameter in ours.items()})
    modules = dict(decoder.named_modules())
    for name, parameter in ours.items():
        tensor = torch.empty(parameter.shape, dtype=dtype)
        file.fill(tensor, file_name(name))
        if config.family in INTERLEAVED and re.search(r"self_attn\.[qk]_proj\.", name):
            tensor = _halves_first(tensor, config.head_size)
        owner, _, attribute = name.rpartition(".")
        setattr(modules[owner], attribute, torch.nn.Parameter(tensor))
    return decoder


def _halves_first(rows: Tensor, head_size: int) -> Tensor:
    """Undo what the converter does to q and k of llamas (`permute` in llama.cpp, `convert_hf_to_gguf.py`).

    There row 2i and row 2i+1 of a head turn together, as in Meta's code; here row i and row i + H/2.
    """
    return rows.unflatten(0, (-1, head_size // 2, 2)).transpose(1, 2).flatten(0, 2).contiguous()


def _account(file: GGUFFile, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse missing, unexpected and misshapen tensors."""
    found = file.tensors.keys() - {ROPE_FACTORS}
    problems = []
    for title, names in (("missing", wanted.keys() - found), ("unexpected", found - wanted.keys())):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            problems.append(f"{len(names)} {title} ({shown})")
    for name in sorted(wanted.keys() & found):
        if file.tensors[name].shape != wanted[name]:
            shape = list(file.tensors[name].shape)
            problems.append(f"{name} has the shape {shape}, the metadata imply {list(wanted[name])}")
    if problems:
        raise CheckpointError(f"The tensors in {file.path} do not fit its metadata: {'; '.join(problems[:5])}.")
