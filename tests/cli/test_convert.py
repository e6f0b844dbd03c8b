import json

import pytest

from tests.checkpoints.language_folders import write_language, write_tower


@pytest.mark.parametrize("layout", ["chat", "hf"])
def test_convert_writes_a_folder_that_answers_the_same(layout, command, tiny, picture, tmp_path):
    ran = command("convert", tiny(), "converted", "--layout", layout)
    assert ran.code == 0, ran.err
    assert f"layout {layout}" in ran.out
    assert json.loads((tmp_path / "converted" / "parity.json").read_text())
    words = ("--max-new-tokens", "5", "--json", picture, "What?")
    before = json.loads(command("ask", "--model", tiny(), *words).out)
    after = json.loads(command("ask", "--model", "converted", *words).out)
    for fact in ("text", "spec_hash", "prompt_tokens", "grids"):
        assert after[fact] == before[fact]


def test_mistakes_exit_with_2_and_write_nothing(command, tmp_path):
    for words in (("nona", "out", "--layout", "hf"), ("nona", "out", "--layout", "gguf"), ("nona", "out")):
        ran = command("convert", *words, torch=False)
        assert ran.code == 2, ran.err
        assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_that_is_none_is_refused_before_torch(command, tiny, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    ran = command("convert", tiny(), "out", "--layout", "hf", "--adapter", "adapter", torch=False)
    assert ran.code == 2 and "peft_type 'IA3'" in ran.err
    assert not (tmp_path / "out").exists()


def test_a_tower_and_a_language_model_become_a_model_that_trains(command, tmp_path):
    vision, language = write_tower(tmp_path / "vit"), write_language(tmp_path / "lm")
    ran = command("convert", language, "made", "--vision", vision, "--layout", "hf")
    assert ran.code == 0, ran.err
    assert "the projector's are random" in ran.out and "<IMG_CONTEXT>: 261" in ran.out
    data = ("--data", "gym:captions", "--steps", "1", "--packs.max-tokens", "2048", "--packs.max-tiles", "16")
    ran = command("train", "sft_nano", "--init", "made", *data, "--out", "run")
    assert ran.code == 0, ran.err


def test_options_that_exclude_each_other_are_refused_before_torch(command, tmp_path):
    vision, language = write_tower(tmp_path / "vit"), write_language(tmp_path / "lm")
    for words, said in (
        ((language, "out", "--vision", vision, "--adapter", "x"), "--adapter cannot be merged"),
        ((language, "out", "--template", "Hermes-2"), "--template belongs to --vision"),
        ((language, "out", "--vision", "nowhere"), "There is no model 'nowhere'"),
    ):
        ran = command("convert", *words, "--layout", "hf", torch=False)
        assert ran.code == 2 and said in ran.err, ran.err
    assert not (tmp_path / "out").exists()
