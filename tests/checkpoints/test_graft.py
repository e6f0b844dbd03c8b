import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascadevl.api import Bundle
from cascadevl.checkpoints.alone import read_language, read_tower
from cascadevl.checkpoints.graft import join
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_VISION, tiny_parts, write_tiny
from cascadevl.core.errors import CheckpointError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS
from tests.checkpoints.language_folders import write_language, write_tower

FAMILIES = ("llama", "internlm2", "qwen2", "qwen3", "qwen3_moe")


def picture():
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB").resize((60, 60))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_by_itself_thinks_as_it_did_inside_the_whole(family: str, tmp_path: Path) -> None:
    language = read_language(write_language(tmp_path / "lm", family))
    whole = tiny_parts(family, seed=3, std=0.2)
    ids = torch.arange(40, 60)
    positions = torch.arange(len(ids), dtype=torch.float32)
    from cascadevl.ops.attention import dense

    def logits(decoder):
        return decoder.logits(decoder(decoder.embed(ids), positions, dense))

    assert torch.equal(logits(language.decoder), logits(whole.model.language_model))
    assert language.stop_ids == (256,)


@pytest.mark.parametrize("layout", ["chat", "hf"])
def test_a_tower_is_the_same_alone_and_out_of_either_layout(layout: str, tmp_path: Path) -> None:
    alone = read_tower(write_tower(tmp_path / "vit"))
    inside = read_tower(write_tiny(tmp_path / "whole", "llama", layout=layout, seed=5, std=0.2))
    assert alone.config == inside.config == TINY_VISION
    tiles = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(alone(tiles), inside(tiles))


def test_a_tower_of_transformers_by_itself_is_read_too(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "whole", "llama", layout="hf", seed=5, std=0.2)
    stored = load_file(whole / "model.safetensors")
    prefix = "model.vision_tower."
    (tmp_path / "vit").mkdir()
    tower = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    save_file(tower, tmp_path / "vit" / "model.safetensors")
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    expected = read_tower(whole).state_dict()
    assert all(
        torch.equal(expected[name], tensor) for name, tensor in read_tower(tmp_path / "vit").state_dict().items()
    )


@pytest.mark.parametrize("layout", ["chat", "hf"])
def test_parts_become_a_model_that_is_saved_and_asked_like_any_other(layout: str, tmp_path: Path) -> None:
    parts = join(write_tower(tmp_path / "vit"), write_language(tmp_path / "lm", tied=True), seed=1)
    assert [parts.tokenizer.id(token) for token in SPECIAL_TOKENS] == list(range(259, 268))
    assert parts.model.config.image_token_id == 261 and parts.stop_ids == (256, 258)
    assert parts.spec.template == "internvl2_5" and parts.spec.tile_px == 56 and parts.spec.max_tiles == 12
    saved = Bundle(load_parts(save_parts(parts, tmp_path / "saved", layout=layout)))
    assert saved.parts.model.language_model.lm_head is not None
    messages = Conversation.ask("What is this?", [picture()])
    ids, logits = Bundle(parts).logits(messages)
    again, theirs = saved.logits(messages)
    if layout == "chat":  # transformers' templates have no persona
        assert torch.equal(ids, again) and torch.equal(logits, theirs)
    assert (again == 261).sum() == 4 and theirs.isfinite().all()


def test_new_tokens_begin_as_the_mean_and_a_tied_matrix_becomes_two_equal_ones(tmp_path: Path) -> None:
    language = read_language(write_language(tmp_path / "lm", tied=True))
    before = language.decoder.model.embed_tokens.weight
    decoder = join(write_tower(tmp_path / "vit"), tmp_path / "lm").model.language_model
    after = decoder.model.embed_tokens.weight
    assert torch.equal(after[:259], before[:259]) and torch.equal(after[268:], before[268:])
    assert torch.allclose(after[259:268], before[:259].mean(dim=0).expand(9, -1))
    assert decoder.lm_head is not None and torch.equal(decoder.lm_head.weight, after)
    assert decoder.lm_head.weight.data_ptr() != after.data_ptr()


def test_the_tower_takes_the_type_of_the_language_model(tmp_path: Path) -> None:
    parts = join(write_tower(tmp_path / "vit", dtype=torch.bfloat16), write_language(tmp_path / "lm"))
    assert {parameter.dtype for parameter in parts.model.parameters()} == {torch.float32}


def test_what_is_no_such_part_is_refused_with_what_it_is(tmp_path: Path) -> None:
    vit, lm = write_tower(tmp_path / "vit"), write_language(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=r"holds a language model \('qwen3'\)"):
        read_tower(lm)
    for folder in (vit, write_tiny(tmp_path / "whole")):
        with pytest.raises(CheckpointError, match="expected a language model's own folder"):
            read_language(folder)
    config = json.loads((lm / "config.json").read_text())
    (lm / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    with pytest.raises(CheckpointError, match="have few bits"):
        read_language(lm)


def test_a_tower_whose_weights_do_not_fit_its_config_is_refused(tmp_path: Path) -> None:
    vit = write_tower(tmp_path / "vit")
    config = json.loads((vit / "config.json").read_text())
    (vit / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing \(vision_model\.encoder\.layers\.2"):
        read_tower(vit)
    del config["patch_size"]
    (vit / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks 'patch_size'"):
        read_tower(vit)


def test_a_template_that_the_tokenizer_cannot_speak_is_refused(tmp_path: Path) -> None:
    vit, lm = write_tower(tmp_path / "vit"), write_language(tmp_path / "lm")
    with pytest.raises(CheckpointError, match=r"'phi3-chat' speaks with <\|assistant\|>, <\|end\|>"):
        join(vit, lm, template="phi3-chat")
    assert join(vit, lm, template="Hermes-2").spec.template == "Hermes-2"
