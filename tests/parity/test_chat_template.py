"""Prompts against transformers' rendering of the same folder, and through every layout."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, processors
from transformers import AutoTokenizer, InternVLProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

import cascadevl
from cascadevl.api import Bundle
from cascadevl.checkpoints.layouts import read_json
from cascadevl.checkpoints.load import load_processor
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.config import evolve
from cascadevl.core.files import canonical_json
from cascadevl.core.shapes import num_tiles
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import FILE_NAME, Spec
from cascadevl.recipes.nano import CHAT_TEMPLATE


class TextProcessor(InternVLProcessor):
    """The processor of transformers, not insisting on a reader of videos (which needs torchvision)."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


Make = Callable[..., Any]
Messages = list[dict[str, Any]]
SPECS = {
    **{name: Spec(max_tiles=6, template=name) for name in ("internvl2_5", "Hermes-2", "internlm2-chat")},
    "a system message": Spec(max_tiles=6, system='Say "{{ no }}" \\ \n twice.'),
    "other words around pictures": Spec(max_tiles=4, image_label="<{n}> ", image_separator="", thumbnail=False),
    "no label": Spec(max_tiles=6, image_label="", image_separator=" "),
    "jinja": Spec(max_tiles=6, template="jinja", jinja=CHAT_TEMPLATE),
}


def _with_spec(parts: Parts, spec: Spec) -> Parts:
    spec = evolve(spec, tile_px=parts.spec.tile_px, visual_tokens_per_tile=parts.spec.visual_tokens_per_tile)
    return dataclasses.replace(parts, spec=spec, processor=Processor(spec, parts.tokenizer))


def _expanded(rendered: str, num_tokens: list[int]) -> str:
    """What the processor of transformers does to the placeholders."""
    for num in num_tokens:
        rendered = rendered.replace("<IMG_CONTEXT>", "<img>" + "<hold>" * num + "</img>", 1)
    return rendered.replace("<hold>", "<IMG_CONTEXT>")


@pytest.mark.parametrize("name", [*SPECS, "phi3-chat", "internvl3_5_gpt_oss", "internvl_zh"])
def test_transformers_renders_the_same_prompt_from_our_folder(
    name: str, conversation: Messages, make_member: Make, tmp_path: Path
) -> None:
    """Those whose control tokens this tokenizer does not have are compared as the plain text they then are."""
    parts = _with_spec(make_member().bundle.parts, SPECS.get(name) or Spec(max_tiles=6, template=name))
    save_parts(parts, tmp_path / "model")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "model")
    messages = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in conversation
    ]
    inputs = parts.processor(conversation)
    tokens = [num_tiles(grid, parts.spec.thumbnail) * 4 for grid in inputs.grids]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = theirs(_expanded(rendered, tokens), add_special_tokens=False)["input_ids"]
    assert inputs.token_ids.tolist() == ids


BENIGN = st.text(alphabet=st.sampled_from(list("aB1 \n.,é漢😀'")), min_size=1, max_size=20).filter(str.strip)


@given(st.lists(BENIGN, min_size=1, max_size=4), st.booleans())
def test_any_turns_have_the_ids_of_transformers(make_member: Make, texts: list[str], system: bool) -> None:
    folder = make_member().folder
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), cascadevl.load(folder)
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": text.strip()} for i, text in enumerate(texts)]
    rendered = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
    )
    assert ours.preprocess(messages).token_ids.tolist() == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_from_picture_to_logits_through_their_own_image_processor(
    several_pictures: Messages, make_member: Make, read_oracle: Make
) -> None:
    """Tiles by their PIL image processor as our folder configures it, ids by ours."""
    folder = make_member().folder
    bundle = cascadevl.load(folder)
    pictures = [part["image"] for turn in several_pictures for part in turn["content"] if isinstance(part, dict)
                and part["type"] == "image"]  # fmt: skip
    processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
    pixels = torch.as_tensor(np.asarray(processor(pictures, return_tensors="np")["pixel_values"]))
    ids, logits = bundle.logits(several_pictures)
    with torch.inference_mode():
        theirs = read_oracle(folder)(input_ids=ids[None], pixel_values=pixels).logits[0]
    assert float((logits - theirs).abs().max() / theirs.abs().max()) < 4e-6


@pytest.mark.parametrize("name", SPECS)
def test_a_saved_spec_wins_in_every_layout_and_through_round_trips(
    name: str, several_pictures: Messages, make_member: Make, tmp_path: Path
) -> None:
    parts = _with_spec(make_member().bundle.parts, SPECS[name])
    expected = parts.processor(several_pictures)
    logits = parts.model(expected.token_ids, expected.tiles)
    bundle = Bundle(parts)
    for number, layout in enumerate(("hf", "chat", "chat", "hf")):
        bundle.save(tmp_path / f"{number}-{layout}", layout)
        bundle = cascadevl.load(tmp_path / f"{number}-{layout}")
        got = bundle.preprocess(several_pictures)
        assert bundle.spec == parts.spec and got.spec_hash == parts.spec.hash
        assert torch.equal(got.token_ids, expected.token_ids)
        assert torch.equal(got.trained, expected.trained)
        assert torch.equal(got.tiles, expected.tiles)
        assert torch.equal(bundle.model(got.token_ids, got.tiles), logits)


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.thumbnail])
def test_without_our_spec_the_hf_folder_alone_implies_the_same_inputs(
    name: str, conversation: Messages, make_member: Make, tmp_path: Path
) -> None:
    """`to_jinja` says what the named template says, also about what is trained on.

    The image processor of transformers has no switch for the thumbnail.
    """
    parts = _with_spec(make_member().bundle.parts, SPECS[name])
    save_parts(parts, tmp_path / "model")
    os.remove(tmp_path / "model" / FILE_NAME)
    bundle = cascadevl.load(tmp_path / "model")
    assert bundle.spec.template == "jinja"
    answered = [*conversation, {"role": "assistant", "content": "Yes.\n"}]
    for messages in (conversation, answered):
        got, expected = bundle.preprocess(messages), parts.processor(messages)
        assert torch.equal(got.token_ids, expected.token_ids)
        assert torch.equal(got.trained, expected.trained)
        assert torch.equal(got.tiles, expected.tiles)


@pytest.mark.parametrize("name", ["internvl2_5", "Hermes-2", "internlm2-chat", "a system message"])
def test_without_our_spec_the_chat_folder_alone_implies_the_same_inputs(
    name: str, several_pictures: Messages, make_member: Make, tmp_path: Path
) -> None:
    parts = _with_spec(make_member().bundle.parts, SPECS[name])
    save_parts(parts, tmp_path / "model", layout="chat")
    os.remove(tmp_path / "model" / FILE_NAME)
    bundle = cascadevl.load(tmp_path / "model")
    assert bundle.spec == parts.spec
    assert torch.equal(bundle.preprocess(several_pictures).token_ids, parts.processor(several_pictures).token_ids)


@pytest.mark.parametrize("printed", ["", "{{ bos_token }}", "{{- bos_token }}{{ eos_token }}"])
@pytest.mark.parametrize("adds", [False, True])
def test_the_bos_comes_once_as_from_the_processor_of_transformers(
    printed: str, adds: bool, make_member: Make, tmp_path: Path
) -> None:
    """It calls the tokenizer as it is, but where the rendered prompt begins with the BOS already."""
    folder = tmp_path / "model"
    shutil.copytree(make_member().folder, folder)
    os.remove(folder / FILE_NAME)
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.add_special_tokens([AddedToken("<s>", special=True)])
    if adds:
        bos = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[bos])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|im_end|>"}
    path = folder / "tokenizer_config.json"
    path.write_text(canonical_json({**read_json(path), **config}))
    path = folder / "chat_template.jinja"
    path.write_text(printed + path.read_text())

    tokenizer = AutoTokenizer.from_pretrained(folder)
    image_processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
    processor: Any = TextProcessor(image_processor, tokenizer, None, chat_template=path.read_text())
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is the total?"}]}]
    theirs = processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=True)
    ours = load_processor(folder)(messages).token_ids.tolist()
    assert ours == list(theirs["input_ids"][0])
    assert ours.count(tokenizer.convert_tokens_to_ids("<s>")) == (adds or bool(printed))


def test_templates_of_the_first_release_place_image_words(
    make_member: Make, one_picture: Messages, tmp_path: Path
) -> None:
    """Older HF folders write `<image>` where newer ones write `<IMG_CONTEXT>`, and keep the text in a JSON file."""
    folder = make_member().folder
    shutil.copytree(folder, tmp_path / "old")
    os.remove(tmp_path / "old" / FILE_NAME)
    expected = cascadevl.load(tmp_path / "old").preprocess(one_picture)
    source = (tmp_path / "old" / "chat_template.jinja").read_text().replace("<IMG_CONTEXT>", "<image>")
    os.remove(tmp_path / "old" / "chat_template.jinja")
    (tmp_path / "old" / "chat_template.json").write_text(canonical_json({"chat_template": source}))
    got = cascadevl.load(tmp_path / "old").preprocess(one_picture)
    assert torch.equal(got.token_ids, expected.token_ids)
