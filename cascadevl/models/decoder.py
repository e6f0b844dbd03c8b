"""One decoder for all families; they differ by `DecoderConfig` alone.

Llama, Yi, InternLM2 and 3, Phi-3; Qwen2 (biases on q, k, v), Qwen3 (norm of each query and key head);
Qwen3-MoE and GPT-OSS, whose MLPs are mixtures of experts. Tokens are packed, (T, D): there is no batch
axis and no mask; `attend` knows which tokens see each other.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.models.config import DecoderConfig
from cascadevl.models.experts import SparseMLP
from cascadevl.models.gpt_oss import GptOssMLP
from cascadevl.models.norm import RMSNorm
from cascadevl.ops.attention import Attend, Layer
from cascadevl.ops.by_hand import SwiGLU, by_hand
from cascadevl.ops.rope import rope_table, rotate


class SelfAttention(nn.Module):
    """Project, norm and rotate, attend, project back."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        width, size = config.hidden_size, config.head_size
        self.head_size = size
        self.layer = Layer(index=index, scale=size**-0.5, window=config.layer_window(index))
        self.q_proj = nn.Linear(width, config.num_heads * size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, config.num_kv_heads * size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, config.num_kv_heads * size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.num_heads * size, width, bias=config.out_bias)
        self.q_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(size, config.norm_eps) if config.qk_norm else None
        self.sinks = nn.Parameter(torch.zeros(config.num_heads)) if config.sinks else None

    def forward(
        self, hidden_TD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, asked_T: Tensor | None = None
    ) -> Tensor:
        """Of the tokens `asked_T` alone, where it is given; keys and values are everybody's."""
        asking_TD, turns = hidden_TD, rope
        if asked_T is not None:
            asking_TD, turns = hidden_TD[asked_T], (rope[0][asked_T], rope[1][asked_T])
        q_TNH = self.q_proj(asking_TD).unflatten(-1, (-1, self.head_size))
        k_TKH = self.k_proj(hidden_TD).unflatten(-1, (-1, self.head_size))
        v_TKH = self.v_proj(hidden_TD).unflatten(-1, (-1, self.head_size))
        if self.q_norm is not None and self.k_norm is not None:
            q_TNH, k_TKH = self.q_norm(q_TNH), self.k_norm(k_TKH)
        layer = self.layer
        if self.sinks is not None or asked_T is not None:
            layer = replace(layer, sinks_N=self.sinks, asked_T=asked_T)
        out_TNH = attend(layer, rotate(q_TNH, *turns), rotate(k_TKH, *rope), v_TKH)
        return self.o_proj(out_TNH.flatten(1))


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.mlp_size, bias=False)
        self.down_proj = nn.Linear(config.mlp_size, config.hidden_size, bias=False)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        linears = self.gate_proj, self.up_proj, self.down_proj
        weights = [linear.weight for linear in linears if type(linear) is nn.Linear]  # not adapted, not of few bits
        if len(weights) == 3 and by_hand(hidden_TD, *weights):
            return SwiGLU.apply(hidden_TD, *weights)  # type: ignore[return-value]
        return self.down_proj(F.silu(self.gate_proj(hidden_TD)) * self.up_proj(hidden_TD))


def _mlp(config: DecoderConfig) -> nn.Module:
    """Dense, or a mixture of experts."""
    experts = config.experts
    if experts is None:
        return MLP(config)
    if experts.clamp is None:
        return SparseMLP(config.hidden_size, experts)
    return GptOssMLP(config.hidden_size, experts, experts.clamp)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, index)
        self.mlp = _mlp(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(
        self, hidden_TD: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, asked_T: Tensor | None = None
    ) -> Tensor:
        asking_TD = hidden_TD if asked_T is None else hidden_TD[asked_T]
        # What attention adds gets no name: it would be kept while the MLP computes.
        asking_TD = asking_TD + self.self_attn(self.input_layernorm(hidden_TD), rope, attend, asked_T)
        return asking_TD + self.mlp(self.post_attention_layernorm(asking_TD))


class Stack(nn.Module):
    """Embeddings, blocks and the last norm: `language_model.model` of the official names. `Decoder` calls them."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        # Zeros until weights come: the random start of nn.Embedding(…) imports a part of torch that takes a second.
        start = torch.zeros(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(start, freeze=False)
        self.layers = nn.ModuleList(Block(config, index) for index in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Decoder(nn.Module):
    """The language model: `model` (the stack) and `lm_head`."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Stack(config)
        self.lm_head = None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def embed(self, token_ids_T: Tensor) -> Tensor:
        return self.model.embed_tokens(token_ids_T)

    def forward(
        self,
        embed_TD: Tensor,
        positions_T: Tensor,
        attend: Attend,
        lengths_T: Tensor | None = None,
        asked_T: Tensor | None = None,
    ) -> Tensor:
        """hidden_TD after the last norm; `logits` turns chosen rows into scores. `lengths_T`: see `rope_table`.

        `asked_T`: places of the tokens whose states are wanted, in order; None wants all. The last block then
        computes nothing for the others but keys and values. `attend` must know `Layer.asked_T`.
        """
        config, stack = self.config, self.model
        cos_TH, sin_TH = rope_table(positions_T, config.rope, config.head_size, lengths_T)
        rope = cos_TH.to(embed_TD.dtype), sin_TH.to(embed_TD.dtype)
        hidden_TD = embed_TD
        for block in stack.layers[:-1]:
            hidden_TD = block(hidden_TD, rope, attend)
        return stack.norm(stack.layers[-1](hidden_TD, rope, attend, asked_T))

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Raw scores (T, V) in fp32."""
        if self.lm_head is not None:
            return self.lm_head(hidden_TD).float()
        return F.linear(hidden_TD, self.model.embed_tokens.weight).float()
