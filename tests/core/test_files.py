"""Files are whole or absent, whatever happens in between."""

import os
from pathlib import Path

import pytest

from cascadevl.core import files
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import (
    atomic_folder,
    canonical_json,
    content_hash,
    writable_folder,
    write_json,
    write_text,
)


def _tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_content_hash_is_the_head_of_sha256() -> None:
    assert content_hash(b"abc") == content_hash("abc") == "ba7816bf8f01cfea"


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": ["é", None]}) == canonical_json({"a": ["é", None], "b": 1})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'


def test_write_text_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    write_text(tmp_path / "a.txt", "new\n漢")
    write_json(tmp_path / "b.json", {"ü": 1})
    assert _tree(tmp_path) == {"a.txt": "new\n漢", "b.json": '{\n  "ü": 1\n}\n'}


def test_written_files_and_folders_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic_folder(tmp_path / "folder") as work:
            write_text(work / "a", "x")
    finally:
        os.umask(mask)
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "folder" / "a").stat().st_mode & 0o777 == 0o640


def test_an_atomic_folder_replaces_an_older_one_entirely(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "model"
    for name in ("old", "new"):
        with atomic_folder(target) as work:
            (work / name).write_text(name)
    assert _tree(tmp_path) == {"deep/model/new": "new"}
    assert os.listdir(tmp_path / "deep") == ["model"]


def _write_half(folder: Path, error: type[BaseException]) -> None:
    (folder / "a").write_text("half")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_atomic_folder_leaves_the_old_one_and_nothing_of_the_new(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as work:
        (work / "a").write_text("old")
    with pytest.raises(error), atomic_folder(target) as work:
        _write_half(work, error)
    assert _tree(tmp_path) == {"model/a": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_the_old_folder_comes_back_when_the_last_step_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as work:
        (work / "a").write_text("old")
    replace = os.replace

    def broken(source: Path, to: Path) -> None:
        if Path(to) == target and Path(source).name != target.name:
            raise OSError("the disk is gone")
        replace(source, to)

    monkeypatch.setattr(files.os, "replace", broken)
    with pytest.raises(OSError, match="the disk is gone"), atomic_folder(target) as work:
        (work / "a").write_text("new")
    assert _tree(tmp_path) == {"model/a": "old"}
    assert os.listdir(tmp_path) == ["model"]


def test_a_place_that_takes_nothing_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"Nothing can be written to the folder '.*file': .*Choose another place"):
        writable_folder(tmp_path / "file")
    with pytest.raises(ConfigError, match="Choose another place"), atomic_folder(tmp_path / "file" / "model"):
        pass
    assert writable_folder(tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a" / "b").iterdir())
