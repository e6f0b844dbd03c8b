"""The original layout, `model_type: internvl_chat`. Tower and projector bear its names; the language model
has those of its family."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from cascadevl.checkpoints.language_names import language_pieces
from cascadevl.checkpoints.layouts import Layout, read_json, require
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import Piece
from cascadevl.core.errors import CheckpointError
from cascadevl.core.files import write_json
from cascadevl.core.shapes import visual_tokens_per_tile
from cascadevl.models.config import FlashConfig, InternVLConfig, VisionConfig
from cascadevl.models.families import read_decoder, write_decoder
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD, Spec
from cascadevl.preprocessing.template import find_template
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import added_bos


def _read_config(raw: dict[str, Any], folder: Path, tied: bool) -> InternVLConfig:
    try:
        require(raw, {"pad2square": False}, folder)
        vision, llm = read_vision(raw["vision_config"], folder, raw.get("force_image_size")), raw["llm_config"]
        return InternVLConfig(
            vision=vision,
            decoder=read_decoder(llm, tied=tied),
            downsample_ratio=raw.get("downsample_ratio", 0.5),
            # The class default of the released code is v1: a config without the key means it.
            pixel_shuffle=raw.get("ps_version", "v1"),
            select_layer=raw.get("select_layer", -1),
            image_token_id=TextTokenizer.from_folder(folder).id("<IMG_CONTEXT>"),
            flash=_flash(raw, folder),
        )
    except KeyError as error:
        raise CheckpointError(
            f"{folder / 'config.json'} lacks {error}: it is no complete internvl_chat config."
        ) from error


def read_vision(vision: dict[str, Any], folder: Path, forced_px: int | None = None) -> VisionConfig:
    """Sizes of the tower, from its part of the config or from the config of an InternViT folder."""
    require(vision, {"hidden_act": "gelu", "num_channels": 3}, folder)
    tile_px = forced_px or vision["image_size"]
    if tile_px != vision.get("image_size", tile_px):
        raise CheckpointError(
            f"{folder / 'config.json'} contradicts itself: force_image_size is {tile_px}, "
            f"vision_config.image_size is {vision['image_size']}, and the positions were learned for one of them."
        )
    mean, std = _pixels(folder)
    return VisionConfig(
        hidden_size=vision["hidden_size"],
        mlp_size=vision["intermediate_size"],
        num_layers=vision["num_hidden_layers"],
        num_heads=vision["num_attention_heads"],
        tile_px=tile_px,
        patch_px=vision["patch_size"],
        qkv_bias=vision["qkv_bias"],
        qk_norm=vision["qk_normalization"],
        norm=vision.get("norm_type", "rms_norm"),
        norm_eps=vision.get("layer_norm_eps", 1e-6),
        drop_path=vision.get("drop_path_rate", 0.0),
        pixel_mean=mean,
        pixel_std=std,
    )


def _flash(raw: dict[str, Any], folder: Path) -> FlashConfig | None:
    """The key alone says that the folder has a router; its value, whether generation asks it."""
    if "flash_mode" not in raw:
        return None
    enabled = bool(raw["flash_mode"])
    for key in ("flash_relative_threshold", "flash_absolute_threshold"):
        if enabled and raw.get(key) is None:
            raise CheckpointError(
                f"{folder / 'config.json'}: flash_mode is on and {key} is missing. It belongs to the router's "
                "training and none is assumed: add the one that came with the weights, or set flash_mode to false."
            )
    return FlashConfig(
        enabled=enabled,
        relative_threshold=raw.get("flash_relative_threshold"),
        absolute_threshold=raw.get("flash_absolute_threshold"),
    )


def _pixels(folder: Path) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    path = folder / "preprocessor_config.json"
    data = read_json(path) if path.is_file() else {}
    return tuple(data.get("image_mean", IMAGENET_MEAN)), tuple(data.get("image_std", IMAGENET_STD))  # type: ignore[return-value]


def _write_config(parts: Parts) -> dict[str, Any]:
    config, spec = parts.model.config, parts.spec
    vision = config.vision
    dtype = str(parts.model.dtype).removeprefix("torch.")
    raw: dict[str, Any] = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "vision_config": {
            "model_type": "intern_vit_6b",
            "architectures": ["InternVisionModel"],
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.mlp_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "image_size": vision.tile_px,
            "patch_size": vision.patch_px,
            "qkv_bias": vision.qkv_bias,
            "qk_normalization": vision.qk_norm,
            "norm_type": vision.norm,
            "layer_norm_eps": vision.norm_eps,
            "drop_path_rate": vision.drop_path,
            "hidden_act": "gelu",
            "num_channels": 3,
        },
        "llm_config": write_decoder(config.decoder),
        "force_image_size": vision.tile_px,
        "downsample_ratio": config.downsample_ratio,
        "ps_version": config.pixel_shuffle,
        "select_layer": config.select_layer,
        "dynamic_image_size": True,
        "use_thumbnail": spec.thumbnail,
        "min_dynamic_patch": spec.min_tiles,
        "max_dynamic_patch": spec.max_tiles,
        "pad2square": False,
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "tie_word_embeddings": config.decoder.tied,
        "template": spec.template,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    if spec.system is not None:
        raw["system_message"] = spec.system
    if config.flash is not None:
        thresholds = {
            "flash_relative_threshold": config.flash.relative_threshold,
            "flash_absolute_threshold": config.flash.absolute_threshold,
        }
        known = {key: value for key, value in thresholds.items() if value is not None}
        raw |= {"flash_mode": config.flash.enabled, **known}
    return raw


def _derive_spec(raw: dict[str, Any], folder: Path) -> Spec:
    template = raw.get("template", "internvl2_5")
    find_template(template)
    mean, std = _pixels(folder)
    vision = raw["vision_config"]
    tile_px = raw.get("force_image_size") or vision["image_size"]
    dynamic = raw.get("dynamic_image_size", True)
    return Spec(
        tile_px=tile_px,
        min_tiles=raw.get("min_dynamic_patch", 1) if dynamic else 1,
        # Class defaults of the released configuration: 6 tiles where the key is missing.
        max_tiles=raw.get("max_dynamic_patch", 6) if dynamic else 1,
        thumbnail=raw.get("use_thumbnail", True),
        mean=mean,
        std=std,
        visual_tokens_per_tile=visual_tokens_per_tile(tile_px, vision["patch_size"], raw.get("downsample_ratio", 0.5)),
        template=template,
        system=raw.get("system_message"),
        bos=added_bos(folder),
    )


def _write_extras(parts: Parts, folder: Path) -> None:
    spec = parts.spec
    write_json(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPFeatureExtractor",
            "crop_size": spec.tile_px,
            "size": spec.tile_px,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": list(spec.mean),
            "image_std": list(spec.std),
            "resample": 3,
        },
    )


_LANGUAGE = "language_model."


def _pieces(name: str, config: InternVLConfig, stored: Collection[str]) -> list[Piece]:
    if not name.startswith(_LANGUAGE):
        return [Piece(name)]
    inside = {other.removeprefix(_LANGUAGE) for other in stored if other.startswith(_LANGUAGE)}
    found = language_pieces(name.removeprefix(_LANGUAGE), config.decoder, inside)
    return [piece._replace(name=_LANGUAGE + piece.name) for piece in found]


LAYOUT = Layout(
    read_config=_read_config,
    write_config=_write_config,
    derive_spec=_derive_spec,
    pieces=_pieces,
    write_extras=_write_extras,
)
