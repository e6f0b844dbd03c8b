"""Generation with a Flash model: the prompt really is shorter."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.generation import Generation, Sampling
from cascadevl.engine.simple import banned_ids, generate
from cascadevl.models.config import FlashConfig
from cascadevl.models.internvl import fresh
from cascadevl.ops.attention import dense
from cascadevl.preprocessing.processor import ModelInputs

WIDE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.radial_gradient("L").resize((170, 110))},
            {"type": "text", "text": "q"},
        ],
    }
]
SINGLE: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.radial_gradient("L").resize((56, 56))},
            {"type": "text", "text": "q"},
        ],
    }
]


def _parts(enabled: bool = True, relative: float = 0.4, absolute: float = 0.0) -> Parts:
    flash = FlashConfig(enabled=enabled, relative_threshold=relative, absolute_threshold=absolute)
    parts = tiny_parts("qwen3", std=0.2)
    model = fresh(evolve(parts.model.config, flash=flash), seed=0, std=0.2)
    return evolve(parts, model=model.eval().requires_grad_(False))


def _run(parts: Parts, messages: Any, **sampling: Any) -> Generation:
    settings: dict[str, Any] = {"max_new_tokens": 12, "logprobs": 5, "loop_guard": False, **sampling}
    generation = list(generate(parts, parts.processor(messages), Sampling(**settings)))[-1]
    assert isinstance(generation, Generation)
    return generation


def _by_hand(parts: Parts, inputs: ModelInputs) -> tuple[list[int], Tensor]:
    """Prompt ids and embeddings, put together one token at a time."""
    model, config = parts.model, parts.model.config
    assert config.flash is not None and config.flash.relative_threshold is not None
    patches_SPD = torch.cat([model.vision_model(tile[None], -1) for tile in inputs.tiles])
    p = torch.cat([model.gate(patches_PD[None]).softmax(-1)[:, 0] for patches_PD in patches_SPD])
    above_S = p > p.quantile(config.flash.relative_threshold)
    ids, rows, place = [], [], 0
    for token_id in inputs.token_ids.tolist():
        if token_id != config.image_token_id:
            ids.append(token_id)
            rows.append(model.language_model.embed(torch.tensor([token_id]))[0])
            continue
        tile, offset = divmod(place, config.visual_tokens_per_tile)
        place += 1
        visual_LD = (model.project_short if above_S[tile] else model.project)(patches_SPD[tile][None])[0]
        if offset < len(visual_LD):
            ids.append(token_id)
            rows.append(visual_LD[offset])
    return ids, torch.stack(rows)


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_the_answer_is_that_of_the_shorter_prompt_built_by_hand(penalty: float) -> None:
    """Greedy, without a cache: the whole sequence is read again for every token."""
    parts = _parts()
    language, inputs = parts.model.language_model, parts.processor(WIDE)
    generation = _run(parts, WIDE, repetition_penalty=penalty)
    ids, embed_TD = _by_hand(parts, inputs)
    said = []
    for token_id, given in zip(generation.token_ids, generation.logprobs or (), strict=True):
        embed_all = torch.cat([embed_TD, language.embed(torch.tensor(said, dtype=torch.int64))])
        logits_V = language.logits(language(embed_all, torch.arange(len(embed_all)), dense)[-1])
        logits_V[list(banned_ids(parts))] = float("-inf")
        assert float(logits_V.log_softmax(-1)[token_id]) == pytest.approx(given.logprob, abs=2e-5)
        for seen in {*ids, *said}:
            logits_V[seen] = logits_V[seen] / penalty if logits_V[seen] > 0 else logits_V[seen] * penalty
        assert int(logits_V.argmax()) == token_id
        said.append(token_id)
    assert len(said) == 12
    assert generation.usage.prompt_tokens == len(ids) < len(inputs.token_ids)


def test_usage_counts_the_visual_tokens_that_were_read() -> None:
    parts = _parts()
    inputs, usage = parts.processor(WIDE), _run(parts, WIDE).usage
    compressed = int(parts.model.route(parts.model.vision_model(inputs.tiles, -1)).sum())
    assert 0 < compressed < len(inputs.tiles) == usage.tiles
    assert usage.visual_tokens == inputs.num_visual_tokens - 3 * compressed
    assert usage.prompt_tokens == len(inputs.token_ids) - 3 * compressed


@pytest.mark.parametrize(
    ("parts", "messages"),
    [(_parts(), SINGLE), (_parts(relative=1.0), WIDE), (_parts(absolute=1.0), WIDE), (_parts(), "only words")],
    ids=["one tile", "quantile one", "certainty asked for", "no picture"],
)
def test_where_no_tile_is_compressed_the_answer_is_the_plain_one(parts: Parts, messages: Any) -> None:
    plain = _parts(enabled=False)
    ours, theirs = _run(parts, messages), _run(plain, messages)
    assert (ours.token_ids, ours.logprobs, ours.usage) == (theirs.token_ids, theirs.logprobs, theirs.usage)


def test_compression_changes_what_is_said() -> None:
    assert _run(_parts(), WIDE).logprobs != _run(_parts(enabled=False), WIDE).logprobs


def test_the_room_for_an_answer_grows_by_what_was_compressed() -> None:
    """A context that the plain prompt fills to its last two places."""
    flash, plain = _parts(), _parts(enabled=False)
    length = len(flash.processor(WIDE).token_ids) + 2
    compressed = length - 2 - _run(flash, WIDE).usage.prompt_tokens
    for parts, room in ((flash, 2 + compressed), (plain, 2)):
        rope = evolve(parts.model.config.decoder.rope, max_position=length)
        parts.model.config = evolve(parts.model.config, decoder={"rope": rope})
        generation = _run(parts, WIDE, max_new_tokens=100)
        assert (generation.finish_reason, len(generation.token_ids)) == ("length", room)
