"""The preprocessing spec: hashed, compared field by field, saved and read back."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cascadevl.checkpoints.layouts import EMBEDDED
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError, SpecMismatch
from cascadevl.preprocessing.spec_file import ADDED, FILE_NAME, FRAME_LABEL, FRAME_LABEL_SFT, Spec, read_spec

OTHER: dict[str, Any] = {
    "tile_px": 112,
    "min_tiles": 2,
    "max_tiles": 6,
    "thumbnail": False,
    "resize": "torch_uint8",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "visual_tokens_per_tile": 64,
    "image_start": "<i>",
    "image_context": "<c>",
    "image_end": "</i>",
    "image_separator": "",
    "image_label": "",
    "frame_label": "Frame-{n}: ",
    "num_frames": 4,
    "frame_max_tiles": 2,
    "template": "Hermes-2",
    "system": "s",
    "bos": "<s>",
    "frame_rule": "fps0.5",
}
FIRST_RELEASE = {
    *(
        "version",
        "tile_px",
        "min_tiles",
        "max_tiles",
        "thumbnail",
        "resize",
        "orientation",
        "background",
        "mean",
        "std",
    ),
    *("visual_tokens_per_tile", "image_start", "image_context", "image_end", "image_separator", "image_label"),
    *("frame_label", "num_frames", "frame_max_tiles", "template", "jinja", "system", "bos"),
}
FIXED = {"version", "orientation", "background", "jinja"}
"""Fields with one value today; `jinja` comes with the template."""


def test_the_list_of_fields_here_is_complete() -> None:
    assert OTHER.keys() | FIXED == {field.name for field in dataclasses.fields(Spec)}


@pytest.mark.parametrize("name", OTHER)
def test_every_field_changes_the_hash_and_is_named_where_specs_differ(name: str) -> None:
    spec, other = Spec(), evolve(Spec(), **{name: OTHER[name]})
    assert spec.hash != other.hash
    assert list(spec.differences(other)) == [name]
    with pytest.raises(
        SpecMismatch, match=rf"meet in the server and differ \({spec.hash} and {other.hash}\): {name}: "
    ):
        spec.require_equal(other, "the server")


def test_equal_specs_agree() -> None:
    Spec().require_equal(Spec(), "here")


@pytest.mark.parametrize("changes", [{}, OTHER, {"template": "jinja", "jinja": "{{ '漢' }}\n"}])
def test_saved_and_read_is_the_same(changes: dict[str, Any], tmp_path: Path) -> None:
    spec = Spec(**changes)
    spec.save(tmp_path)
    assert json.loads((tmp_path / FILE_NAME).read_text())["hash"] == spec.hash
    assert read_spec(tmp_path) == spec
    assert read_spec(tmp_path / "nowhere") is None


def test_fields_that_joined_later_are_neither_saved_nor_hashed_while_they_are_the_default(tmp_path: Path) -> None:
    """Hashes as the first release made them; a spec that differs in a later field alone has another."""
    assert Spec().hash == "56f915eb65f33a48"
    assert Spec(max_tiles=6, template="Hermes-2", bos="<s>").hash == "baab9ea91389f543"
    nano = read_spec(EMBEDDED / "nano")
    assert nano is not None and nano.hash == "889a719594c0992d"
    assert set(Spec().to_dict()) == FIRST_RELEASE
    assert {field.name for field in dataclasses.fields(Spec)} - FIRST_RELEASE == ADDED
    changed = Spec(frame_rule="hf")
    assert changed.to_dict() == {**Spec().to_dict(), "frame_rule": "hf"}
    changed.save(tmp_path)
    assert read_spec(tmp_path) == changed != Spec()


def test_both_official_labels_have_a_name() -> None:
    assert (FRAME_LABEL.format(n=2), FRAME_LABEL_SFT.format(n=2)) == ("Frame2: ", "Frame-2: ")
    assert Spec().frame_label == FRAME_LABEL


def _edited(folder: Path, **changes: Any) -> None:
    Spec().save(folder)
    data = json.loads((folder / FILE_NAME).read_text())
    (folder / FILE_NAME).write_text(json.dumps({**data, **changes}))


def test_an_edited_file_is_refused_until_its_hash_is_deleted(tmp_path: Path) -> None:
    _edited(tmp_path, max_tiles=3)
    with pytest.raises(CheckpointError, match=r"edited by hand.*Delete the hash line if the edit is meant"):
        read_spec(tmp_path)
    data = json.loads((tmp_path / FILE_NAME).read_text())
    del data["hash"]
    (tmp_path / FILE_NAME).write_text(json.dumps(data))
    assert read_spec(tmp_path) == Spec(max_tiles=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tile": 3}, "unknown setting 'max_tile'. Did you mean 'max_tiles'"),
        ({"max_tiles": "6"}, "max_tiles: expected int, got '6'"),
        ({"mean": [0.5, 0.5]}, "mean: expected 3 values"),
        ({"resize": "lanczos"}, "resize: expected .*pil.*, got 'lanczos'"),
        ({"version": 2}, "version 2: this release reads version 1"),
        ({"template": "jinja"}, "needs the jinja text"),
        ({"jinja": "x"}, "needs the jinja text"),
        ({"frame_rule": "often"}, "frame_rule is 'often': expected middle, hf, rand"),
        ({"num_frames": 0}, "num_frames is 0"),
    ],
)
def test_impossible_contents_are_refused_by_name(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    _edited(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        read_spec(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"3", b"\xff\xfe"])
def test_a_file_that_is_no_spec_is_named(text: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match=f"{FILE_NAME} is not a preprocessing spec"):
        read_spec(tmp_path)


def test_a_spec_from_outside_with_a_contradiction_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="needs the jinja text"):
        Spec(template="jinja")
