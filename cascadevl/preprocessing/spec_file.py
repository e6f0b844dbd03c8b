"""The preprocessing spec: everything that turns pictures and words into inputs, with a hash.

The same picture becomes a different prompt in every tool of today. Here one small document
settles it. It is saved with every checkpoint we write, derived from the official files of every
checkpoint we read, and its hash is reported with every answer.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from cascadevl.core.config import from_dict, to_dict
from cascadevl.core.errors import CheckpointError, ConfigError, SpecMismatch
from cascadevl.core.files import canonical_json, content_hash, write_json
from cascadevl.preprocessing.frame_rules import check_rule

FILE_NAME = "preprocessing_spec.json"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

FRAME_LABEL = "Frame{n}: "
"""Of evaluation, MPO training, transformers and most model cards (InternVL, eval/mvbench)."""
FRAME_LABEL_SFT = "Frame-{n}: "
"""Of pre-training and SFT (InternVL, chat/train/internvl_chat_finetune.py)."""

ADDED = frozenset({"frame_rule"})
"""Fields that the first release did not have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spec:
    """How a conversation becomes token ids and tiles."""

    version: int = 1
    tile_px: int = 448
    """Side of a tile."""
    min_tiles: int = 1
    max_tiles: int = 12
    """Tile limits of one picture, the thumbnail not counted (dynamic high resolution)."""
    thumbnail: bool = True
    """Append the whole picture as a last tile whenever there is more than one."""
    resize: Literal["pil", "torch_uint8"] = "pil"
    """`pil`: bicubic, bit-exact to the released models. `torch_uint8`: faster, within 2/255."""
    orientation: Literal["exif"] = "exif"
    """Pictures are turned upright first."""
    background: Literal["white"] = "white"
    """What shows through where a picture is transparent."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    """Normalisation of pixels in 0…1, per channel."""
    visual_tokens_per_tile: int = 256
    image_start: str = "<img>"
    image_context: str = "<IMG_CONTEXT>"
    image_end: str = "</img>"
    """A picture is image_start, one image_context per visual token of all its tiles, image_end."""
    image_separator: str = "\n"
    """Follows each picture in the named templates."""
    image_label: str = "Image-{n}: "
    """Precedes each picture of a turn that has several, in the named templates; {n} counts from 1."""
    frame_label: str = FRAME_LABEL
    """Precedes each frame of a video; {n} counts from 1."""
    num_frames: int = 8
    """Frames of a video that names no number of its own; the rule `fps…` takes what the clip has instead."""
    frame_max_tiles: int = 1
    """Tile limit of each frame."""
    template: str = "internvl2_5"
    """A name of `template.TEMPLATES`, or "jinja" for the template text below."""
    jinja: str | None = None
    system: str | None = None
    """System message where the conversation has none; None: the template's persona (named
    templates) or no system turn (jinja)."""
    bos: str | None = None
    """Token put in front of every prompt, by tokenizers that do so."""
    frame_rule: str = "middle"
    """Which frames of a video are looked at, a name of `frame_rules`: middle, hf, rand, fps and a number."""

    video: ClassVar[str] = "<video>"
    """Where a rendered prompt shows a video; its labelled frames take the place."""

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ConfigError(f"Preprocessing spec version {self.version}: this release reads version 1.")
        if (self.template == "jinja") != (self.jinja is not None):
            raise ConfigError('A spec needs the jinja text exactly when its template is "jinja".')
        if min(self.num_frames, self.frame_max_tiles) < 1:
            raise ConfigError(
                f"num_frames is {self.num_frames} and frame_max_tiles {self.frame_max_tiles}: expected at least 1."
            )
        check_rule(self.frame_rule)

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over `to_dict`."""
        return content_hash(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        """As saved and hashed: all fields, those of `ADDED` only where they are not the default."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: value for name, value in to_dict(self).items() if name not in ADDED or value != defaults[name]}

    def differences(self, other: "Spec") -> dict[str, tuple[Any, Any]]:
        """Fields that differ: name -> (ours, theirs)."""
        ours, theirs = to_dict(self), to_dict(other)
        return {name: (ours[name], theirs[name]) for name in ours if ours[name] != theirs[name]}

    def require_equal(self, other: "Spec", where: str) -> None:
        """Raise SpecMismatch naming every field that differs."""
        different = self.differences(other)
        if different:
            fields = "; ".join(f"{name}: {ours!r} and {theirs!r}" for name, (ours, theirs) in different.items())
            raise SpecMismatch(
                f"Two preprocessing specs meet in {where} and differ ({self.hash} and {other.hash}): {fields}. "
                "Use the spec that the checkpoint was trained with on both sides."
            )

    def save(self, folder: Path) -> None:
        write_json(folder / FILE_NAME, {**self.to_dict(), "hash": self.hash})


def read_spec(folder: Path) -> Spec | None:
    """The spec saved in a folder, or None. Its stored hash must fit its content."""
    import json

    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stored = data.pop("hash", None)
        spec = from_dict(Spec, data, where=FILE_NAME)
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a preprocessing spec: {error}") from error
    if stored is not None and stored != spec.hash:
        raise CheckpointError(
            f"{path} was edited by hand: its hash says {stored}, its content gives {spec.hash}. "
            "Delete the hash line if the edit is meant."
        )
    return spec
