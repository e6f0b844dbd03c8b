"""Which character stands in which patch: targets by hand, and a head that learns them."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.task import Glyph
from cascadevl.data.batch import Batch, collate
from cascadevl.gym.glyph_targets import ALPHABET, COLUMNS, IGNORE, NUM_CLASSES, glyph_targets
from cascadevl.training.fit import FitState, fit
from cascadevl.training.muon import muon
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.objectives.read_patches import ReadPatches, glyph_loss, new_head

A, B = (ALPHABET.index(char) + 1 for char in "AB")
PARTS = tiny_parts("qwen3", std=0.1)


def test_two_characters_across_the_border_of_two_tiles() -> None:
    """A picture of 112×56, two tiles of 4×4 patches of 14 px, a point every 3.5 px: 1.75, 5.25, …

    A covers 7 ≤ x < 49 and the rows of patches 0 and 1 (their middles 7 and 21); B covers 49 ≤ x < 63, across
    the border at 56, and row 2 (middle 35).
    """
    glyphs = [Glyph("A", 7, 0, 49, 28), Glyph("B", 49, 30, 63, 36)]
    targets = glyph_targets(glyphs, (112, 56), (2, 1), 56, 14, thumbnail=True)
    assert targets.shape == (3, 16, COLUMNS)
    left, right = (targets[tile].reshape(4, 4 * COLUMNS).tolist() for tile in (0, 1))
    row_a = [0, 0, *[A] * 12, 0, 0]
    assert left == [row_a, row_a, [0] * 14 + [B] * 2, [0] * 16]
    assert right == [[0] * 16, [0] * 16, [B] * 2 + [0] * 14, [0] * 16]
    assert (targets[2] == IGNORE).all(), "letters of the thumbnail are too small"


def test_rows_of_tiles_follow_each_other_in_reading_order() -> None:
    """The same picture upright: tiles above each other, twice as large as their canvas."""
    targets = glyph_targets([Glyph("A", 0, 112, 112, 224)], (112, 224), (1, 2), 56, 14, thumbnail=False)
    assert (targets[0] == 0).all() and (targets[1] == A).all()


def test_later_characters_stand_before_earlier_ones_and_unknown_ones_are_not_asked() -> None:
    glyphs = [Glyph("A", 0, 0, 56, 56), Glyph("é", 0, 0, 14, 14), Glyph("B", 42, 42, 56, 56)]
    (tile,) = glyph_targets(glyphs, (56, 56), (1, 1), 56, 14, thumbnail=True)
    grid = tile.reshape(4, 4, COLUMNS)
    assert (grid[0, 0] == IGNORE).all() and (grid[3, 3] == B).all()
    assert (grid[1:3] == A).all()


def test_boxes_outside_the_picture_are_cut_off() -> None:
    (tile,) = glyph_targets([Glyph("A", -20, -20, 14, 14), Glyph("B", 100, 0, 200, 56)], (56, 56), (1, 1), 56, 14, True)
    grid = tile.reshape(4, 4, COLUMNS)
    assert (grid[0, 0] == A).all()
    assert int((tile > 0).sum()) == COLUMNS


def test_letters_weigh_four_fifths_however_many_blanks_there_are() -> None:
    scores = torch.randn(50, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(50, dtype=torch.int64)
    targets[:3], targets[3:9] = A, IGNORE
    losses = -scores.double().log_softmax(-1)
    expected = 0.8 * losses[:3, A].mean() + 0.2 * losses[9:, 0].mean()
    loss, right = glyph_loss(scores, targets)
    assert abs(float(loss) - float(expected)) < 1e-5
    assert right == float((scores[:3].argmax(-1) == A).float().mean())


def test_a_picture_without_letters_has_a_loss_too() -> None:
    loss, right = glyph_loss(torch.zeros(5, NUM_CLASSES), torch.zeros(5, dtype=torch.int64))
    assert abs(float(loss) - np.log(NUM_CLASSES)) < 1e-5
    assert right == 1.0


def _batch() -> Batch:
    picture = Image.new("RGB", (112, 56), "white")
    ImageDraw.Draw(picture).text((6, 8), "AB", fill="black", font_size=40)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Read."}]},
        {"role": "assistant", "content": "AB"},
    ]
    inputs = PARTS.processor(messages)
    glyphs = [Glyph("A", 6, 12, 34, 48), Glyph("B", 34, 12, 62, 48)]
    targets = glyph_targets(glyphs, (112, 56), inputs.grids[0], 56, 14, thumbnail=True)
    return collate([inputs], [torch.from_numpy(targets)])


def test_the_tower_learns_to_read_one_batch() -> None:
    batch, head = _batch(), new_head(32, torch.Generator().manual_seed(0))
    model, seen = tiny_parts("qwen3", std=0.1).model.requires_grad_(True), []
    named = [*model.vision_model.named_parameters(), *head.named_parameters()]
    fit(
        model=model,
        objective=ReadPatches(head=head),
        batches=[batch] * 160,
        optimizer=muon(named, lr=1e-2, weight_decay=0.0),
        schedule=lambda step: 1.0,
        state=FitState(),
        observe=lambda state, loss, norm: seen.append(loss.terms),
        save=lambda state: None,
    )
    assert seen[0]["glyphs"] > 3
    assert seen[-1]["glyphs"] < 0.3
    assert seen[-1]["glyph_accuracy"] > 0.95


def test_both_objectives_together_are_their_sum() -> None:
    batch, head = _batch(), new_head(32, torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = NextToken()(PARTS.model, batch)
        read = ReadPatches(head=head, weight=0.5)(PARTS.model, batch)
        both = ReadPatches(head=head, weight=0.5, next_token=NextToken())(PARTS.model, batch)
    assert abs(float(both.total) - float(said.total) - float(read.total)) < 1e-5
    assert abs(float(read.total) - 0.5 * read.terms["glyphs"]) < 1e-5
    assert both.terms.keys() == {"glyphs", "glyph_accuracy", "next_token", "token_accuracy"}
    assert both.num_tokens == said.num_tokens == 3
