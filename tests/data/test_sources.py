"""Rows by number out of every kind of file, and what opening refuses."""

import io
import json
import pickle
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError, DataError
from cascadevl.data import rows as files
from cascadevl.data.sources import Dataset, FileSource, open_data


def qa(number: int) -> dict[str, str]:
    return {"question": f"What is {number}?", "answer": f"It is {number} – “{number}”."}


def answers(datasets: list[Dataset]) -> list[str]:
    return [each.source[i].conversation.turns[-1].text for each in datasets for i in range(len(each.source))]


ANSWERS = [qa(number)["answer"] for number in range(5)]


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict], **settings) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **settings)
    return path


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))
    return path


def all_kinds(folder: Path) -> list[Path]:
    rows = [qa(number) for number in range(5)]
    (folder / "list.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "lines.json").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return [
        jsonl(folder / "rows.jsonl", *rows),
        folder / "list.json",
        folder / "lines.json",
        parquet(folder / "rows.parquet", rows, row_group_size=2),
        tar(folder / "rows.tar", **{f"{i:03}.json": json.dumps(row).encode() for i, row in enumerate(rows)}),
    ]


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    for path in all_kinds(tmp_path):
        (dataset,) = open_data(path)
        assert answers([dataset]) == ANSWERS, path.name
        assert dataset.source.name == path.name
        assert dataset.source[3].id == f"{path.name}:4"
        for index in (-1, 5):
            with pytest.raises(IndexError, match="5 rows"):
                dataset.source[index]


def test_sources_travel_to_other_processes(tmp_path):
    for path in all_kinds(tmp_path):
        dataset = open_data(path)[0]
        assert dataset.source[1]
        again = pickle.loads(pickle.dumps(dataset))
        assert len(pickle.dumps(dataset)) < 2000, path.name
        assert answers([again]) == ANSWERS, path.name


def test_a_folder_is_its_files_by_name(tmp_path):
    jsonl(tmp_path / "b.jsonl", qa(1))
    jsonl(tmp_path / "a.jsonl", qa(0))
    (tmp_path / "notes.txt").write_text("not data")
    (tmp_path / ".hidden.jsonl").write_text("not data")
    assert answers(open_data(tmp_path)) == ANSWERS[:2]


def test_a_large_file_is_indexed_once_and_again_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SMALL_BYTES", 0)
    path = jsonl(tmp_path / "rows.jsonl", qa(0), qa(1))
    assert answers(open_data(path)) == ANSWERS[:2]
    (kept,) = (tmp_path / "cache").iterdir()
    found = []
    monkeypatch.setattr(files, "line_offsets", lambda memory: found.append(1))
    files.line_offsets.__name__ = "line_offsets"
    assert answers(open_data(path)) == ANSWERS[:2]
    assert not found, "the kept offsets were not used"
    monkeypatch.undo()
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "SMALL_BYTES", 0)
    jsonl(path, qa(0), qa(1), qa(2))
    assert answers(open_data(path)) == ANSWERS[:3]
    assert kept.exists() and len(list((tmp_path / "cache").iterdir())) == 2


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text() | st.lists(st.integers()), max_size=3), min_size=1))
def test_items_of_a_json_list_are_found_by_their_brackets(tmp_path_factory, items):
    path = tmp_path_factory.mktemp("list") / "x.json"
    for indent in (None, 2):
        path.write_text(json.dumps(items, indent=indent, ensure_ascii=False), encoding="utf-8", newline="")
        rows = files.open_rows(path)
        assert [rows.read(index, files.Row("x")) for index in range(len(rows))] == items


def test_parquet_pictures_are_bytes(tmp_path):
    rows = [{"caption": "A cat.", "image": {"bytes": b"\xff\xd8\xff", "path": None}}]
    example = open_data(parquet(tmp_path / "x.parquet", rows))[0].source[0]
    assert example.conversation.images[0].source == b"\xff\xd8\xff"


def test_parquet_keeps_few_row_groups_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KEPT_BYTES", 1)
    source = open_data(parquet(tmp_path / "x.parquet", [qa(i) for i in range(5)], row_group_size=1))[0].source
    assert isinstance(source, FileSource)
    order = [4, 0, 0, 3, 1, 2]
    assert [source[i].conversation.turns[-1].text for i in order] == [ANSWERS[i] for i in order]
    assert len(source.rows._opened[1]) == 1  # type: ignore


def test_tar_members_of_one_key_belong_together(tmp_path):
    turns = [{"from": "human", "value": "<image> or <image>?"}, {"from": "gpt", "value": "Both."}]
    fields = {"image": ["cat/1.0.jpg", "cat/1.1.png"], "conversations": turns}
    path = tar(
        tmp_path / "x.tar",
        **{"cat/1.0.jpg": b"\xff\xd8\xff0", "cat/1.1.png": b"\x89PNG", "cat/1.json": json.dumps(fields).encode()},
        **{"cat/2.json": json.dumps(qa(2)).encode()},
        **{"cat/3.jpg": b"\xff\xd8\xff3", "cat/3.txt": b"A cat."},
        **{"cat/4.cls": b"7"},
    )
    source = open_data(path)[0].source
    assert len(source) == 4
    assert [image.source for image in source[0].conversation.images] == [b"\xff\xd8\xff0", b"\x89PNG"]
    with pytest.raises(DataError, match=r"x.tar:2: .*'columns'"):  # the first row has conversations
        source[1]
    columns = open_data(path, "columns")[0].source
    assert columns[2].conversation.images[0].source == b"\xff\xd8\xff3"
    assert columns[2].conversation.turns[-1].text == "A cat."
    with pytest.raises(DataError, match=r"'cat/4' has neither .json nor .txt, only .cls"):
        columns[3]


def test_a_tar_that_breaks_off_says_so_in_a_last_row(tmp_path):
    """Wherever it is cut, and where another tar was joined to it."""
    texts = {f"{i}.json": json.dumps(qa(i)).encode() for i in range(4)}
    whole = tar(tmp_path / "x.tar", **texts).read_bytes()
    end = whole.rindex(b"}") // 512 * 512 + 512
    assert len(open_data(tmp_path / "x.tar")[0].source) == 4
    for data, num_good in ((whole[:end], 4), (whole[: end + 100], 4), (whole[:2200], 2), (whole + whole, 4)):
        (tmp_path / "y.tar").write_bytes(data)
        source = open_data(tmp_path / "y.tar")[0].source
        assert len(source) == num_good + 1
        with pytest.raises(DataError, match=rf"y.tar:{num_good + 1}: Here the tar breaks off") as caught:
            source[num_good]
        assert caught.value.kind == "damaged tar"


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder in ("docs", "charts"):
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "train.jsonl", qa(0), {"question": "?", "answer": ""})
    jsonl(tmp_path / "other.jsonl", qa(0))
    files = {"docs": "docs/train.jsonl", "charts": "charts/train.jsonl", "rest": "other.jsonl"}
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({name: {"root": "", "annotation": file} for name, file in files.items()}))
    docs, charts, rest = (dataset.source for dataset in open_data(meta))
    assert [docs.name, charts.name, rest.name] == ["docs/train.jsonl", "charts/train.jsonl", "other.jsonl"]
    with pytest.raises(DataError, match=r"^charts/train.jsonl:2: "):
        charts[1]


def test_meta_entries_become_data_sets(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]
    jsonl(tmp_path / "data" / "cats.jsonl", {"image": "1.jpg", "conversations": turns})
    meta = tmp_path / "meta.json"
    entry = {"root": "pictures", "annotation": "data/cats.jsonl", "data_augment": True, "length": 1}
    meta.write_text(json.dumps({"cats": {**entry, "max_dynamic_patch": 6, "repeat_time": 0.5}, "more": entry}))
    half, whole = open_data(meta)
    assert (half.repeat, half.max_tiles, half.augment, half.weight) == (0.5, 6, True, None)
    assert (whole.repeat, whole.max_tiles) == (1.0, None)
    assert half.source[0].conversation.images[0].source == str(tmp_path / "pictures" / "1.jpg")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"annotation": "x.jsonl", "repeat_tme": 2}, "Unknown key 'repeat_tme'. Did you mean 'repeat_time'?"),
        ({"root": "."}, "no 'annotation'"),
        ({"annotation": "x.jsonl", "repeat_time": 1.5}, "repeat_time is 1.5"),
        ({"annotation": "x.jsonl", "repeat_time": 0}, "repeat_time is 0"),
        ({"annotation": "x.jsonl", "max_dynamic_patch": "12"}, "max_dynamic_patch is '12'"),
        ({"annotation": "y.jsonl"}, "There is no such file"),
    ],
)
def test_meta_entries_that_cannot_be_used_are_refused_by_name(entry, words, tmp_path):
    jsonl(tmp_path / "x.jsonl", qa(0))
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"receipts": entry}))
    with pytest.raises(DataError, match=r"meta.json: receipts|y.jsonl") as caught:
        open_data(meta)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("x.jsonl", b"", "0 bytes"),
        ("x.jsonl", b"\n\n", "no rows"),
        ("x.json", b"[]", "no rows"),
        ("x.json", b'{"a": 1}', "no meta file"),
        ("x.json", b'{\n"a": \n', "no JSON"),
        ("x.csv", b"a,b", "'.csv' are not read"),
        ("x.jsonl.gz", b"\x1f\x8b\x08", "Unpack it first"),
        ("x.jsonl", b"\x1f\x8b\x08", "is compressed"),
        ("x.jsonl", '{"text": "Ü"}'.encode("utf-16"), "UTF-16"),
        ("x.parquet", b"PAR1 or not", "no parquet file"),
        ("x.tar", b"no tar" * 200, "no tar file"),
    ],
)
def test_files_that_cannot_be_read_at_all_are_refused_when_they_are_opened(name, data, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_data(tmp_path / name)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_what_is_not_there_or_unknown_is_said(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        open_data(tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="holds no data"):
        open_data(tmp_path)
    with pytest.raises(ConfigError, match="Unknown format 'llava'"):
        open_data(tmp_path, "llava")


def test_relative_pictures_begin_at_the_root(tmp_path):
    path = jsonl(tmp_path / "x.jsonl", {"image": "1.jpg", **qa(0)})
    assert open_data(path)[0].source[0].conversation.images[0].source == str(tmp_path / "1.jpg")
    assert open_data(path, root="/pictures")[0].source[0].conversation.images[0].source == "/pictures/1.jpg"
