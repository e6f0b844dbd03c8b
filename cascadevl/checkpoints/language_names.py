"""What the tensors of a language model are called in files, family by family.

Our decoder bears the names of Llama. Names here begin behind the layout's prefix:
`model.layers.0.self_attn.q_proj.weight`, `lm_head.weight`. Sources: the released `modeling_internlm2.py`
for the packed `wqkv`; transformers for Phi-3 and Qwen3-MoE.
"""

import re
from collections.abc import Callable, Collection

from cascadevl.checkpoints.pieces import Piece
from cascadevl.models.config import DecoderConfig

OUTPUTS = ("lm_head.weight", "language_model.output.weight", "unembedding.weight")
"""How the output matrix ends in the files of any family."""

Names = Callable[[str, DecoderConfig, Collection[str]], list[Piece]]
"""(our name, sizes, names in the file or nothing when one is written) -> the file's tensors."""


def language_pieces(name: str, config: DecoderConfig, stored: Collection[str] = (), family: str = "") -> list[Piece]:
    """Where a parameter of the decoder lies, in files of its own family or of the one named."""
    return _NAMES.get(family or config.family, _same)(name, config, stored)


def _same(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    return [Piece(name)]


_INTERNLM2 = {
    "model.embed_tokens.": "model.tok_embeddings.",
    "lm_head.": "output.",
    "self_attn.o_proj.": "attention.wo.",
    "mlp.gate_proj.": "feed_forward.w1.",
    "mlp.up_proj.": "feed_forward.w3.",
    "mlp.down_proj.": "feed_forward.w2.",
    "input_layernorm.": "attention_norm.",
    "post_attention_layernorm.": "ffn_norm.",
}


def _internlm2(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    """`wqkv` holds, for every key head, its query heads, then the key, then the value."""
    if match := re.fullmatch(r"(.*)self_attn\.([qkv])_proj\.weight", name):
        groups, size = config.num_heads // config.num_kv_heads, config.head_size
        first, num = {"q": (0, groups), "k": (groups, 1), "v": (groups + 1, 1)}[match[2]]
        return [
            Piece(
                f"{match[1]}attention.wqkv.weight",
                at=head * num * size,
                start=(head * (groups + 2) + first) * size,
                rows=num * size,
            )
            for head in range(config.num_kv_heads)
        ]
    for ours, theirs in _INTERNLM2.items():
        if ours in name:
            return [Piece(name.replace(ours, theirs))]
    return [Piece(name)]


def _internlm3(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    """InternVL3-9B packs it like InternLM2; InternLM3 by itself is named like Llama."""
    like_llama = any("self_attn.q_proj." in other for other in stored)
    return [Piece(name)] if like_llama else _internlm2(name, config, stored)


def _phi3(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    """q, k, v in one matrix, gate and up in another."""
    if match := re.fullmatch(r"(.*)\.([qkv])_proj\.weight", name):
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        before = {"q": 0, "k": config.num_heads, "v": config.num_heads + config.num_kv_heads}[match[2]]
        rows = heads[match[2]] * config.head_size
        return [Piece(f"{match[1]}.qkv_proj.weight", start=before * config.head_size, rows=rows)]
    if match := re.fullmatch(r"(.*)\.(gate|up)_proj\.weight", name):
        start = 0 if match[2] == "gate" else config.mlp_size
        return [Piece(f"{match[1]}.gate_up_proj.weight", start=start, rows=config.mlp_size)]
    return [Piece(name)]


def _qwen3_moe(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    """Released files name every expert; some that transformers wrote stack them as we do."""
    match = re.fullmatch(r"(.*\.experts)\.(gate_up|down)_proj", name)
    if match is None or name in stored:
        return [Piece(name)]
    assert config.experts is not None
    size = config.experts.mlp_size
    rows = {"gate": size, "up": size} if match[2] == "gate_up" else {"down": config.hidden_size}
    pieces, at = [], 0
    for expert in range(config.experts.num_experts):
        for part, num in rows.items():
            pieces.append(Piece(f"{match[1]}.{expert}.{part}_proj.weight", at=at, rows=num))
            at += num
    return pieces


_OPENAI = {
    "model.embed_tokens.": "embedding.",
    "model.norm.weight": "norm.scale",
    "lm_head.": "unembedding.",
    "model.layers.": "block.",
    "self_attn.sinks": "attn.sinks",
    "self_attn.o_proj.": "attn.out.",
    "input_layernorm.weight": "attn.norm.scale",
    "post_attention_layernorm.weight": "mlp.norm.scale",
    "mlp.router.": "mlp.gate.",
    "mlp.experts.gate_up_proj": "mlp.mlp1_weight",
    "mlp.experts.down_proj": "mlp.mlp2_weight",
    "_weight_bias": "_bias",
}


def _gpt_oss(name: str, config: DecoderConfig, stored: Collection[str]) -> list[Piece]:
    """Like Llama; or as openai/gpt-oss itself has it, with q, k, v in one."""
    if not any(other.startswith("block.") for other in stored):
        return [Piece(name)]
    for ours, theirs in _OPENAI.items():
        name = name.replace(ours, theirs)
    if match := re.fullmatch(r"(block\.\d+\.)self_attn\.([qkv])_proj\.(weight|bias)", name):
        heads = {"q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads}
        before = {"q": 0, "k": config.num_heads, "v": config.num_heads + config.num_kv_heads}[match[2]]
        rows = heads[match[2]] * config.head_size
        return [Piece(f"{match[1]}attn.qkv.{match[3]}", start=before * config.head_size, rows=rows)]
    return [Piece(name)]


_NAMES: dict[str, Names] = {
    "gpt_oss": _gpt_oss,
    "internlm2": _internlm2,
    "internlm3": _internlm3,
    "phi3": _phi3,
    "qwen3_moe": _qwen3_moe,
}
"""Families that do not name everything like Llama."""
