"""nano, the embedded model: 6.2 M parameters that learn to read short texts, receipts and charts.

Paper: the architecture is InternVL3.5's (arXiv 2508.18265) made small: InternViT, pixel shuffle,
Qwen3. The data are the gym's, rendered while training (`nano_data`); nothing pretrained goes in.
Command: `cascadevl train nano --out runs/nano` (`nano_run`; its stages: `nano_stages`). Hardware: one CPU core.
Hours and scores: in the card, `cascadevl/embedded/nano/README.md`.
"""

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import assemble
from cascadevl.models.config import DecoderConfig, VisionConfig
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD, Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

VISION = VisionConfig(
    hidden_size=192,
    mlp_size=768,
    num_layers=6,
    num_heads=6,
    tile_px=112,
    patch_px=14,
    qkv_bias=True,
    qk_norm=False,
    norm="layer_norm",
    norm_eps=1e-6,
    drop_path=0.0,
    pixel_mean=IMAGENET_MEAN,
    pixel_std=IMAGENET_STD,
)
DECODER = DecoderConfig(
    family="qwen3",
    hidden_size=256,
    mlp_size=704,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    vocab_size=272,
    rope=Rope(theta=10000.0, max_position=2048),
    norm_eps=1e-6,
    qkv_bias=False,
    qk_norm=True,
    tied=False,
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<IMG_CONTEXT>\\n' -}}"
    "{%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""ChatML without a persona: a small model has no room for one."""


def new_parts(seed: int = 0) -> Parts:
    """nano before training: random weights, and a tokenizer of the 256 bytes.

    A reader of unseen words copies characters. With byte pairs it would have to see a word's end before
    it could say the word's first token, and to know every pair by sight.
    """
    files = train_tokenizer([], 256)
    spec = Spec(max_tiles=6, template="jinja", jinja=CHAT_TEMPLATE)
    return assemble("nano", VISION, DECODER, files, spec, seed=seed, std=0.02)
