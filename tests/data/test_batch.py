"""Samples end to end: targets, positions and pointers stay with their own sample."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import InternalError
from cascadevl.core.messages import Conversation, Image, Text, Turn
from cascadevl.data.batch import IGNORE, collate, fractional_positions, shifted_targets
from cascadevl.ops.rope import v2pe_positions
from cascadevl.preprocessing.processor import ModelInputs, Processor
from cascadevl.preprocessing.template import to_jinja
from tests.data.talks import answered, photo


def _inputs(ids: list[int], said: list[int], num_tiles: int = 0) -> ModelInputs:
    return ModelInputs(
        token_ids=torch.tensor(ids),
        tiles=torch.full((num_tiles, 3, 2, 2), ids[0], dtype=torch.uint8),
        grids=[],
        sizes=[],
        trained=torch.tensor([i in said for i in range(len(ids))]),
        num_visual_tokens=0,
        spec_hash="",
    )


A = _inputs([10, 11, 12, 13, 14], said=[2, 3], num_tiles=2)
B = _inputs([20, 21, 22], said=[0, 2], num_tiles=1)


def test_the_target_of_a_token_is_the_next_one_if_the_assistant_says_it() -> None:
    assert shifted_targets(A).tolist() == [IGNORE, 12, 13, IGNORE, IGNORE]
    assert shifted_targets(B).tolist() == [IGNORE, 22, IGNORE], "what stands first has nobody to say it"


def test_samples_lie_end_to_end_and_nothing_crosses() -> None:
    batch = collate([A, B])
    assert batch.token_ids.tolist() == [10, 11, 12, 13, 14, 20, 21, 22]
    assert batch.targets.tolist() == [IGNORE, 12, 13, IGNORE, IGNORE, IGNORE, 22, IGNORE]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    assert batch.lengths == (5, 3)
    assert batch.tiles[:, 0, 0, 0].tolist() == [10, 10, 20]


def test_what_travels_with_a_sample_is_moved_along() -> None:
    def pointers(*pairs: tuple[int, int]) -> Tensor:
        return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T

    batch = collate([A, B, A], [torch.zeros(2, 4), torch.ones(1, 4), torch.zeros(2, 4)],
                    [pointers((1, 0)), pointers(), pointers((2, 1), (3, 0))])  # fmt: skip
    assert batch.pointers is not None and batch.glyphs is not None
    assert batch.pointers.T.tolist() == [[1, 0], [10, 9], [11, 8]]
    assert batch.glyphs[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_a_batch_moves_with_all_its_tensors() -> None:
    moved = collate([A, B], [torch.zeros(2, 4), torch.ones(1, 4)], ids=["x:1", "x:2"]).to("meta")
    assert moved.ids == ("x:1", "x:2") and moved.lengths == (5, 3) and moved.pointers is None
    tensors = (moved.token_ids, moved.targets, moved.positions, moved.tiles, moved.glyphs)
    assert all(each is not None and each.device.type == "meta" for each in tensors)


def test_positions_of_pictures_by_hand() -> None:
    """Text advances by 1, a picture by its own δ, and text behind it begins at the next whole number."""
    visual = torch.tensor([c == "v" for c in "tvvvvttvvvtvt"])
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 4.25, 4.5, 4.75, 6, 7, 8]
    # 4 + 3/4 is rounded up to 5, the next text stands one further.
    assert fractional_positions(visual, [0.5, 0.25, 1.0]).tolist() == expected


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.sampled_from([1.0, 0.5, 1 / 16, 0.3]))
def test_the_same_delta_for_all_pictures_is_what_answering_uses(visual: list[bool], delta: float) -> None:
    visual_T = torch.tensor(visual)
    runs = sum(b and not a for a, b in zip([False, *visual], visual, strict=False))
    torch.testing.assert_close(
        fractional_positions(visual_T, [delta] * runs), v2pe_positions(visual_T, delta), atol=1e-5, rtol=0
    )


def test_another_number_of_pictures_is_refused() -> None:
    with pytest.raises(InternalError, match=r"shows 2 picture\(s\), 1 δ were drawn"):
        fractional_positions(torch.tensor([True, False, True]), [0.5])


# What is learned, of conversations and of documents.

PROCESSOR = tiny_parts("qwen3").processor
NAMES = {number: name for name, number in PROCESSOR.tokenizer.controls.items()}


def _text(token_ids: Tensor) -> str:
    return "".join(NAMES.get(each) or PROCESSOR.tokenizer.decode([each]) for each in token_ids.tolist())


def _learned(conversation: Conversation) -> str:
    targets = shifted_targets(PROCESSOR(conversation))
    return _text(targets[targets != IGNORE])


def test_of_a_conversation_the_answers_and_their_ends_are_learned() -> None:
    turns = [*answered("one?", "yes", [photo(0)]).turns, *answered("two?", "no").turns]
    assert _learned(Conversation(tuple(turns))) == "yes<|im_end|>no<|im_end|>"


def test_of_a_document_all_text_is_learned_and_no_token_of_a_picture() -> None:
    parts = (Image(photo(0)), Text("Behind it,\nand "), Image(photo(1, 200, 60)), Text("between<|im_end|>."))
    document = Conversation((Turn("assistant", parts),))
    inputs = PROCESSOR(document)
    assert _learned(document) == "Behind it,\nand between<|im_end|>."
    assert inputs.num_visual_tokens == 4 * len(inputs.tiles) > 8
    read = _text(inputs.token_ids).replace("<IMG_CONTEXT>", "")
    assert read == "<img></img>Behind it,\nand <img></img>between<|im_end|>.", "no header, no separator, no end"
    end = PROCESSOR.tokenizer.id("<|im_end|>")
    assert end not in inputs.token_ids.tolist(), "what a document writes is no control token"


def test_a_document_is_the_same_with_a_template_in_jinja() -> None:
    spec = evolve(PROCESSOR.spec, template="jinja", jinja=to_jinja(PROCESSOR.spec))
    document = Conversation((Turn("assistant", (Text("a"), Image(photo(0)), Text("b"))),))
    one, other = PROCESSOR(document), Processor(spec, PROCESSOR.tokenizer)(document)
    assert one.token_ids.tolist() == other.token_ids.tolist() and one.trained.tolist() == other.trained.tolist()


def test_a_picture_that_an_assistant_shows_is_not_learned() -> None:
    shown = Turn("assistant", (Text("see "), Image(photo(0)), Text("!")))
    assert _learned(Conversation((Turn("user", (Text("q"),)), shown))) == "see \n!<|im_end|>"
