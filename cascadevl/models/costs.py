"""What a model takes, from its sizes alone: parameters, products, bytes of the cache, activations at their peak.

Nothing is allocated: parameters are counted on the meta device, the rest is arithmetic over `InternVLConfig`.
A product is (m, k) · (k, n), 2·m·n·k floating-point operations, done `times` times. Letters of core/shapes.py, and:

t  tokens of the prompt                p  patches of a tile without the CLS entry
e  experts that answer a token         c  tokens that a decoded one sees, itself included

Attention is counted in full, what a causal mask or a window hides too, as `torch.utils.flop_counter` does. What
is no product (norms, activations, softmax, rotation, additions) is not counted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cascadevl.models.config import DecoderConfig, InternVLConfig
from cascadevl.models.internvl import InternVL
from cascadevl.models.router import EXPANSION, NUM_HEADS

ATTENTION = ("scores", "mix")
"""Names of the products between queries, keys and values, which one kernel does together."""


@dataclass(frozen=True, slots=True)
class Product:
    """`times` products of (m, k) and (k, n)."""

    name: str
    m: int
    n: int
    k: int
    times: int = 1
    experts: int = 1
    """The rows m are spread over so many right sides."""
    visible: float = 1.0
    """Share that a mask leaves over: kernels skip the rest, which is counted nevertheless."""

    @property
    def flops(self) -> int:
        return 2 * self.m * self.n * self.k * self.times

    @property
    def read(self) -> int:
        """Numbers that are read: each side once."""
        return (self.m + self.n * self.experts) * self.k * self.times


def flops(products: Sequence[Product]) -> int:
    return sum(product.flops for product in products)


def tower_products(config: InternVLConfig, num_tiles: int) -> list[Product]:
    """Of all tiles of a request.

    patches      (S·p, 3·patch²) · (3·patch², D)
    each block   qkv (S·P, D)·(D, 3D)    scores (P, H)·(H, P), S·N times    mix (P, P)·(P, H), S·N times
                 proj (S·P, D)·(D, D)    fc1 (S·P, D)·(D, F)                fc2 (S·P, F)·(F, D)

    Blocks behind `select_layer` are not run.
    """
    vision = config.vision
    width, patches = vision.hidden_size, _patches(config)
    entries, head = patches + 1, vision.hidden_size // vision.num_heads
    rows, heads, blocks = num_tiles * entries, num_tiles * vision.num_heads, _blocks(config)
    return [
        Product("patches", num_tiles * patches, width, 3 * vision.patch_px**2),
        Product("qkv", rows, 3 * width, width, blocks),
        Product("scores", entries, entries, head, heads * blocks),
        Product("mix", entries, head, entries, heads * blocks),
        Product("proj", rows, width, width, blocks),
        Product("fc1", rows, vision.mlp_size, width, blocks),
        Product("fc2", rows, width, vision.mlp_size, blocks),
    ]


def projector_products(config: InternVLConfig, num_tiles: int) -> list[Product]:
    """mlp1: (S·L, r²·D)·(r²·D, D') and (S·L, D')·(D', D'); D' is the decoder's width, r² = 4 patches a token."""
    rows, width = num_tiles * config.visual_tokens_per_tile, config.decoder.hidden_size
    width_in = config.vision.hidden_size * round(1 / config.downsample_ratio) ** 2
    return [Product("linear_1", rows, width, width_in), Product("linear_2", rows, width, width)]


def router_products(config: InternVLConfig, num_tiles: int) -> list[Product]:
    """What a Flash model asks before it projects; nothing where generation does not ask.

    four questions   query (S, D)·(D, D)     keys, values (S·p, D)·(D, 2D)      out (S, D)·(D, D)
                     scores (1, H)·(H, p) and mix (1, p)·(p, H), S·N times
    four blocks      (S, D)·(D, 4D) and (S, 4D)·(4D, D)
    gate             (S, D)·(D, 2)
    """
    if config.flash is None or not config.flash.enabled or num_tiles == 0:
        return []
    width, patches = config.vision.hidden_size, _patches(config)
    head, heads = width // NUM_HEADS, num_tiles * NUM_HEADS
    return [
        Product("query", num_tiles, width, width, 4),
        Product("keys, values", num_tiles * patches, 2 * width, width, 4),
        Product("scores", 1, patches, head, 4 * heads),
        Product("mix", 1, head, patches, 4 * heads),
        Product("out", num_tiles, width, width, 4),
        Product("widen", num_tiles, EXPANSION * width, width, 4),
        Product("narrow", num_tiles, width, EXPANSION * width, 4),
        Product("gate", num_tiles, 2, width),
    ]


def prefill_products(config: DecoderConfig, num_tokens: int) -> list[Product]:
    """The prompt through the decoder, and the scores of its last token.

    each layer   q (t, D)·(D, N·H)         k, v (t, D)·(D, K·H), twice       o (t, N·H)·(N·H, D)
                 scores (t, H)·(H, t) and mix (t, t)·(t, H), N times
    dense        gate, up (t, D)·(D, F), twice                               down (t, F)·(F, D)
    experts      router (t, D)·(D, E)      gate_up (t·e, D)·(D, 2F)          down (t·e, F)·(F, D)
    head         (1, D)·(D, V)
    """
    head, heads = config.head_size, config.num_heads * config.num_layers
    visible = 1.0 if config.sinks else 0.5
    return [
        *_linears(config, num_tokens),
        Product("scores", num_tokens, num_tokens, head, heads, visible=visible),
        Product("mix", num_tokens, head, num_tokens, heads, visible=visible),
        Product("head", 1, config.vocab_size, config.hidden_size),
    ]


def decode_products(config: DecoderConfig, num_seen: int) -> list[Product]:
    """One token that sees c, itself included: as `prefill_products` with t = 1, but

    attention    scores (N/K, H)·(H, c) and mix (N/K, c)·(c, H), K times: heads that share keys go together
    experts      besides, weigh (1, e)·(e, D): the answers of a token's experts become one
    """
    head, shared = config.head_size, config.num_heads // config.num_kv_heads
    times = config.num_kv_heads * config.num_layers
    found = [
        *_linears(config, 1),
        Product("scores", shared, num_seen, head, times),
        Product("mix", shared, head, num_seen, times),
        Product("head", 1, config.vocab_size, config.hidden_size),
    ]
    if config.experts:
        found.append(Product("weigh", 1, config.hidden_size, config.experts.num_per_token, config.num_layers))
    return found


def _linears(config: DecoderConfig, rows: int) -> list[Product]:
    """Of all layers, for so many tokens."""
    width, layers, experts = config.hidden_size, config.num_layers, config.experts
    inner, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    attention = [
        Product("q", rows, inner, width, layers),
        Product("k, v", rows, keys, width, 2 * layers),
        Product("o", rows, width, inner, layers),
    ]
    if experts is None:
        return [
            *attention,
            Product("gate, up", rows, config.mlp_size, width, 2 * layers),
            Product("down", rows, width, config.mlp_size, layers),
        ]
    spread = rows * experts.num_per_token
    used = min(spread, experts.num_experts)
    return [
        *attention,
        Product("router", rows, experts.num_experts, width, layers),
        Product("gate_up", spread, 2 * experts.mlp_size, width, layers, used),
        Product("down", spread, width, experts.mlp_size, layers, used),
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of a model by part."""

    tower: int
    projector: int
    router: int
    """Of a Flash model: what decides over tiles, and the projector of the compressed ones."""
    decoder: int
    decoder_active: int
    """Of them, those that one token meets: e of E experts."""
    matrices: int
    """Of all, those in matrices: what quantising shortens."""

    @property
    def total(self) -> int:
        return self.tower + self.projector + self.router + self.decoder

    @property
    def active(self) -> int:
        return self.total - self.decoder + self.decoder_active


def parameters(config: InternVLConfig) -> Parameters:
    """Counted on a model without memory; a tied output matrix counts once."""
    with torch.device("meta"):
        model = InternVL(config)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def under(*beginnings: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(beginnings))

    experts, idle = config.decoder.experts, 0
    if experts:
        held = sum(size for name, size in sizes.items() if ".experts." in name)
        idle = held // experts.num_experts * (experts.num_experts - experts.num_per_token)
    decoder = under("language_model.")
    found = Parameters(
        tower=under("vision_model."),
        projector=under("mlp1."),
        router=under("pooling_before_gating.", "gating.", "mlp2."),
        decoder=decoder,
        decoder_active=decoder - idle,
        matrices=sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1),
    )
    assert found.total == sum(sizes.values()), "a part of the model is not in the table of parts"
    return found


def cache_numbers(config: DecoderConfig, num_tokens: int) -> int:
    """Keys and values of so many tokens: 2 · layers · K · H each. Layers with a window keep them all."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_size * num_tokens


def least_tokens(config: InternVLConfig, num_tokens: int, num_tiles: int) -> int:
    """What may be left of a prompt when a Flash model compresses every tile that its quantile lets it."""
    flash = config.flash
    if flash is None or not flash.enabled or num_tiles == 0:
        return num_tokens
    assert flash.relative_threshold is not None
    compressed = num_tiles - 1 - int(flash.relative_threshold * (num_tiles - 1))
    full = config.visual_tokens_per_tile
    return num_tokens - compressed * (full - round(full * config.downsample_ratio**2))


def tower_activations(config: InternVLConfig, num_tiles: int) -> int:
    """Numbers alive at the widest place: a block's MLP, or where pixels become patches.

    The MLP holds three states of width D, and what is before and after GELU. Patches hold the pixels of all tiles
    in the type of the model and as bytes, beside the weights with the normalisation folded in, which are made of
    as many.
    """
    vision, pixels = config.vision, 3 * config.vision.patch_px**2
    block = num_tiles * (_patches(config) + 1) * (3 * vision.hidden_size + 2 * vision.mlp_size)
    unfolded, weights = num_tiles * _patches(config) * pixels * 5 // 4, vision.hidden_size * pixels
    return max(block, weights + max(unfolded, weights)) if num_tiles else 0


def prefill_activations(config: DecoderConfig, num_tokens: int) -> int:
    """Numbers alive at the widest place of a layer: its attention or its MLP. Keys and values kept are not in it.

    Both hold the prompt's embeddings, the layer's input, a normed state, and cosines and sines. Attention adds
    queries twice (before and after rotation), keys twice, values, keys and values repeated for the heads that share
    them, and its output; with sinks, scores thrice. The MLP adds the state after attention, and gate, up and their
    product, or a row for each token and expert and their sum.

    So torch attends. Our C (ops/native/many_queries.py: fp32 on a CPU) repeats nothing and keeps no scores, but lays
    out the keys and values of one head for each thread: less where heads share keys.
    """
    width, experts = config.hidden_size, config.experts
    inner, keys = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    repeated = 2 * inner if config.num_heads > config.num_kv_heads else 0
    attention = num_tokens * (3 * width + 3 * inner + 3 * keys + repeated + 2 * config.head_size)
    if config.sinks:
        attention += 3 * config.num_heads * num_tokens**2
    if experts is None:
        return max(attention, num_tokens * (4 * width + 3 * config.mlp_size + 2 * config.head_size))
    return max(attention, num_tokens * ((5 + experts.num_per_token) * width + 2 * config.head_size))


def _patches(config: InternVLConfig) -> int:
    return (config.vision.tile_px // config.vision.patch_px) ** 2


def _blocks(config: InternVLConfig) -> int:
    """Blocks of the tower that are run."""
    return config.select_layer % (config.vision.num_layers + 1)
