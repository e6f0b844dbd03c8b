"""The preprocessing spec: everything that turns pictures and words into inputs, with a hash.

The same picture becomes a different prompt in every tool of today. Here one small document
settles it. It is saved with every checkpoint we write, derived from the official files of every
checkpoint we read, and its hash is reported with every answer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cascadevl.core.config import from_dict, to_dict
from cascadevl.core.errors import CheckpointError, ConfigError, SpecMismatch
from cascadevl.core.files import canonical_json, content_hash, write_json

FILE_NAME = "preprocessing_spec.json"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
    frame_label: str = "Frame{n}: "
    num_frames: int = 8
    frame_max_tiles: int = 1
    """Videos: evenly spaced middle frames, each one tile, each with its label."""
    template: str = "internvl2_5"
    """A name of `template.TEMPLATES`, or "jinja" for the template text below."""
    jinja: str | None = None
    system: str | None = None
    """System message where the conversation has none; None: the template's persona (named
    templates) or no system turn (jinja)."""
    bos: str | None = None
    """Token put in front of every prompt, by tokenizers that do so."""

    def __post_init__(self) -> None:
        if self.version != 1:
            raise ConfigError(f"Preprocessing spec version {self.version}: this release reads version 1.")
        if (self.template == "jinja") != (self.jinja is not None):
            raise ConfigError('A spec needs the jinja text exactly when its template is "jinja".')

    @property
    def hash(self) -> str:
        """16 hexadecimal digits over all fields."""
        return content_hash(canonical_json(self.to_dict()))

    def to_dict(self) -> dict[str, Any]:
        return to_dict(self)

    def differences(self, other: "Spec") -> dict[str, tuple[Any, Any]]:
        """Fields that differ: name -> (ours, theirs)."""
        ours, theirs = self.to_dict(), other.to_dict()
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
