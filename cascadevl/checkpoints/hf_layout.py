"""The layout of transformers, `model_type: internvl`; Intern-S1 (`interns1`) has it too.

q, k and v of the tower lie apart; the modules have other names (huggingface/transformers,
models/internvl). Checkpoints of the first release lack the outer `model.`; both are read.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from cascadevl.checkpoints.language_names import language_pieces
from cascadevl.checkpoints.layouts import Layout, read_json, require
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import Piece
from cascadevl.core.errors import CheckpointError
from cascadevl.core.files import write_json, write_text
from cascadevl.core.shapes import visual_tokens_per_tile
from cascadevl.models.config import InternVLConfig, VisionConfig
from cascadevl.models.families import native_family, read_decoder, write_decoder
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD, Spec
from cascadevl.preprocessing.template import to_jinja, with_tokens
from cascadevl.preprocessing.tokenizer_files import added_bos, named_tokens

_TOWER = "model.vision_tower."
_BLOCK = {
    "attn.proj.": "attention.projection_layer.",
    "attn.q_norm.": "attention.q_norm.",
    "attn.k_norm.": "attention.k_norm.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "ls1": "lambda_1",
    "ls2": "lambda_2",
    "mlp.": "mlp.",
}
_PROJECTOR = {"mlp1.0.": "layer_norm.", "mlp1.1.": "linear_1.", "mlp1.3.": "linear_2."}
_EMBEDDINGS = {
    "class_embedding": "cls_token",
    "position_embedding": "position_embeddings",
    "patch_embedding.weight": "patch_embeddings.projection.weight",
    "patch_embedding.bias": "patch_embeddings.projection.bias",
}


def pieces(name: str, config: InternVLConfig, stored: Collection[str]) -> list[Piece]:
    """Where a parameter of ours lies: `language_model.model.norm.weight` and so on."""
    if config.flash is not None:
        raise CheckpointError("The hf layout has no names for the router of a Flash model: use layout='chat'.")
    if name.startswith("language_model."):
        inside = {_ours(other) for other in stored}
        family = native_family(config.decoder.family)
        found = language_pieces(name.removeprefix("language_model."), config.decoder, inside, family)
        return [piece._replace(name=_theirs(piece.name)) for piece in found]
    if name.startswith("mlp1."):
        prefix = name[: len("mlp1.0.")]
        return [Piece("model.multi_modal_projector." + _PROJECTOR[prefix] + name.removeprefix(prefix))]
    return tower_pieces(name, config.vision)


def tower_pieces(name: str, vision: VisionConfig) -> list[Piece]:
    """Where a parameter of the tower lies."""
    if name.startswith("vision_model.embeddings."):
        return [Piece(_TOWER + "embeddings." + _EMBEDDINGS[name.removeprefix("vision_model.embeddings.")])]
    match = re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.*)", name)
    assert match, f"a parameter without a place in the HF layout: {name}"
    block, rest = f"{_TOWER}encoder.layer.{match[1]}.", match[2]
    if rest.startswith("attn.qkv."):
        kind, width = rest.removeprefix("attn.qkv."), vision.hidden_size
        return [Piece(f"{block}attention.{part}_proj.{kind}", at=i * width, rows=width) for i, part in enumerate("qkv")]
    prefix = next(prefix for prefix in _BLOCK if rest.startswith(prefix))
    return [Piece(block + _BLOCK[prefix] + rest.removeprefix(prefix))]


def _theirs(name: str) -> str:
    """`model.norm.weight` of a language model -> where it lies inside the whole."""
    return "model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name


def _ours(name: str) -> str:
    return "model." + name.removeprefix("model.language_model.") if "language_model." in name else name


def modern_name(name: str) -> str:
    """The current name of a tensor saved by the first release (4.52)."""
    if name.startswith(("vision_tower.", "multi_modal_projector.")):
        return "model." + name
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return name.removeprefix("language_model.") if name.startswith("language_model.lm_head.") else name


def _side(size: int | list[int]) -> int:
    return size[0] if isinstance(size, list) else size


def _read_config(raw: dict[str, Any], folder: Path, tied: bool) -> InternVLConfig:
    try:
        require(raw, {"projector_hidden_act": "gelu", "vision_feature_select_strategy": "default"}, folder)
        return InternVLConfig(
            vision=read_vision(raw["vision_config"], folder),
            decoder=read_decoder(raw["text_config"], tied=tied),
            downsample_ratio=raw.get("downsample_ratio", 0.5),
            pixel_shuffle="v2",
            select_layer=raw.get("vision_feature_layer", -1),
            image_token_id=raw["image_token_id"],
        )
    except KeyError as error:
        raise CheckpointError(f"{folder / 'config.json'} lacks {error}: it is no complete internvl config.") from error


def read_vision(vision: dict[str, Any], folder: Path) -> VisionConfig:
    """Sizes of the tower, from its part of the config or from the config of a tower by itself."""
    towers = {"hidden_act": "gelu", "use_absolute_position_embeddings": True, "use_mean_pooling": True}
    require(vision, {**towers, "use_mask_token": False, "num_channels": 3}, folder)
    mean_std = _processor(folder)
    return VisionConfig(
        hidden_size=vision.get("hidden_size", 1024),
        mlp_size=vision.get("intermediate_size", 4096),
        num_layers=vision.get("num_hidden_layers", 24),
        num_heads=vision.get("num_attention_heads", 16),
        tile_px=_side(vision.get("image_size", 448)),
        patch_px=_side(vision.get("patch_size", 14)),
        qkv_bias=vision.get("attention_bias", False),
        qk_norm=vision.get("use_qk_norm", False),
        norm=vision.get("norm_type", "layer_norm"),
        norm_eps=vision.get("layer_norm_eps", 1e-6),
        drop_path=vision.get("drop_path_rate", 0.0),
        pixel_mean=tuple(mean_std.get("image_mean", IMAGENET_MEAN)),
        pixel_std=tuple(mean_std.get("image_std", IMAGENET_STD)),
    )


def _processor(folder: Path) -> dict[str, Any]:
    """The image processor's settings: a file of its own, or inside processor_config.json."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            data = read_json(folder / name)
            data = data.get("image_processor", data)
            if "image_mean" in data or "size" in data:
                return data
    return {}


def _write_config(parts: Parts) -> dict[str, Any]:
    config = parts.model.config
    vision = config.vision
    if config.pixel_shuffle != "v2":
        raise CheckpointError(
            f"This model uses pixel shuffle {config.pixel_shuffle}, which the hf layout cannot express: "
            "use layout='chat'."
        )
    dtype = str(parts.model.dtype).removeprefix("torch.")
    return {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "vision_config": {
            "model_type": "internvl_vision",
            "architectures": ["InternVLVisionModel"],
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.mlp_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": [vision.tile_px, vision.tile_px],
            "patch_size": [vision.patch_px, vision.patch_px],
            "attention_bias": vision.qkv_bias,
            "use_qk_norm": vision.qk_norm,
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "hidden_act": "gelu",
            "num_channels": 3,
            "use_absolute_position_embeddings": True,
            "use_mean_pooling": True,
        },
        "text_config": write_decoder(config.decoder, native=True),
        "image_token_id": config.image_token_id,
        "image_seq_length": config.visual_tokens_per_tile,
        "downsample_ratio": config.downsample_ratio,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": config.decoder.tied,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _derive_spec(raw: dict[str, Any], folder: Path) -> Spec:
    vision, processor = raw["vision_config"], _processor(folder)
    size = processor.get("size", {})
    tile_px = size.get("height") or _side(vision.get("image_size", 448))
    jinja = _chat_template(folder)
    # Files of the first release place `<image>`, which its processor then replaced.
    context = "<IMG_CONTEXT>"
    return Spec(
        tile_px=tile_px,
        min_tiles=processor.get("min_patches", 1),
        max_tiles=processor.get("max_patches", 12),
        thumbnail=processor.get("use_thumbnail", True),
        mean=tuple(processor.get("image_mean", IMAGENET_MEAN)),
        std=tuple(processor.get("image_std", IMAGENET_STD)),
        visual_tokens_per_tile=raw.get("image_seq_length")
        or visual_tokens_per_tile(tile_px, _side(vision.get("patch_size", 14)), raw.get("downsample_ratio", 0.5)),
        image_context=context,
        template="jinja",
        frame_rule="hf",
        jinja=with_tokens(jinja.replace("<image>", context), **named_tokens(folder)),
        bos=added_bos(folder),
    )


def _chat_template(folder: Path) -> str:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(folder / name).get("chat_template") if (folder / name).is_file() else None
        if isinstance(template, str):
            return template
    raise CheckpointError(f"{folder} has no chat template: expected chat_template.jinja or chat_template.json.")


def _write_extras(parts: Parts, folder: Path) -> None:
    spec = parts.spec
    write_text(folder / "chat_template.jinja", to_jinja(spec))
    image_processor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": spec.min_tiles,
        "max_patches": spec.max_tiles,
        "size": {"height": spec.tile_px, "width": spec.tile_px},
        "resample": 3,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    write_json(folder / "preprocessor_config.json", {**image_processor, "processor_class": "InternVLProcessor"})
    write_json(
        folder / "processor_config.json",
        {"processor_class": "InternVLProcessor", "image_seq_length": spec.visual_tokens_per_tile},
    )
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    tokens = {
        "start_image_token": spec.image_start,
        "end_image_token": spec.image_end,
        "context_image_token": spec.image_context,
        "video_token": "<video>",
    }
    write_json(path, {**tokenizer, **tokens, "extra_special_tokens": tokens, "processor_class": "InternVLProcessor"})


LAYOUT = Layout(
    read_config=_read_config,
    write_config=_write_config,
    derive_spec=_derive_spec,
    pieces=pieces,
    current_name=modern_name,
    write_extras=_write_extras,
)
