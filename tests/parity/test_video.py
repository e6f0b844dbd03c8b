"""Prompts and pixels of videos against transformers' InternVLProcessor, fed the same frames."""

import dataclasses
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor

import cascadevl
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.config import evolve
from cascadevl.core.messages import Video
from cascadevl.preprocessing.frame_rules import Clip, choose
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.video import open_frames
from tests.parity.conftest import picture
from tests.preprocessing.films import write_video

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}{{ '<IMG_CONTEXT>\n' }}"
    "{% elif c.type == 'video' %}{{ '<video>\n' }}{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class _VideoProcessor:
    """Theirs cannot be imported without torchvision: their PIL image processor, frame by frame, one tile each."""

    model_input_names = ("pixel_values_videos",)

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, videos: Any, **_: Any) -> BatchFeature:
        (frames,) = videos
        pixels = self.image_processor(list(frames), crop_to_patches=False, return_tensors="np")["pixel_values"]
        return BatchFeature({"pixel_values_videos": torch.as_tensor(np.asarray(pixels))[None]})


def _their_processor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(InternVLProcessor, "check_argument_for_proper_class", lambda *_: None)
    image_processor = GotOcr2ImageProcessorPil.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return InternVLProcessor(image_processor, tokenizer, _VideoProcessor(image_processor), image_seq_length=4)


@pytest.mark.parametrize("order", ["video", "video, picture", "picture, video"])
@pytest.mark.parametrize("rule", ["hf", "middle"])
def test_their_processor_makes_the_same_ids_and_pixels_of_the_same_frames(
    order: str, rule: str, make_member: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_member().bundle.parts
    spec = evolve(parts.spec, template="jinja", jinja=TEMPLATE, frame_rule=rule, num_frames=5)
    parts = dataclasses.replace(parts, spec=spec, processor=Processor(spec, parts.tokenizer))
    save_parts(parts, tmp_path / "model")
    theirs = _their_processor(tmp_path / "model", monkeypatch)
    film = write_video(tmp_path / "film.mp4", 30, (90, 50), b_frames=2)
    image = picture(130, 60)
    content = {
        "video": {"type": "video", "video": str(film)},
        "picture": {"type": "image", "image": image},
    }
    parts_said = [*(content[name] for name in order.split(", ")), {"type": "text", "text": "What happens?"}]
    messages = [{"role": "user", "content": parts_said}]

    with open_frames(Video(film), spec) as chosen:
        frames = [np.asarray(frame) for frame in chosen]
    text = theirs.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [image] if "picture" in order else None
    expected = theirs(images=images, text=[text], videos=[np.stack(frames)], return_tensors="pt")

    got = cascadevl.load(tmp_path / "model").preprocess(messages)
    assert got.token_ids.tolist() == expected["input_ids"][0].tolist()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    assert torch.allclose((got.tiles.float() / 255 - mean) / std, expected["pixel_values"].float(), atol=1e-5)


def test_hf_chooses_the_frames_that_their_video_processor_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is read with an empty torchvision in place; sampling does not use it."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.v2"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(
        sys.modules, "torchvision.transforms.v2.functional", types.ModuleType("torchvision.transforms.v2.functional")
    )
    sys.modules["torchvision.transforms.v2"].functional = sys.modules["torchvision.transforms.v2.functional"]  # type: ignore[attr-defined]
    module = importlib.import_module("transformers.models.internvl.video_processing_internvl")
    del sys.modules[module.__name__]
    sample: Any = module.InternVLVideoProcessor.sample_frames
    defaults = types.SimpleNamespace(num_frames=None, initial_shift=True)
    for total in (*range(8, 60), 97, 100, 451, 1799, 90_001):
        for count in (1, 3, 7, 8):
            theirs = sample(defaults, types.SimpleNamespace(total_num_frames=total, fps=25), num_frames=count)
            assert choose("hf", Clip(0, total - 1, 25.0), count, 0) == theirs.tolist(), (total, count)
