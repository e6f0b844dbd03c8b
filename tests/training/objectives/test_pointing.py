"""Pointing: its loss by hand, and that it changes nothing but gradients."""

import itertools

import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.data.batch import Batch
from cascadevl.ops.attention import Layer, packed
from cascadevl.recipes.nano import new_parts
from cascadevl.recipes.nano_data import GymBatches
from cascadevl.training.objectives.pointing import Pointing


def first_batch() -> tuple[Parts, Batch]:
    parts = new_parts()
    mixture = {"line:difficulty=easy": 1.0}
    batches = GymBatches(mixture=mixture, processor=parts.processor, max_tokens=512, max_tiles=9)
    return parts, next(itertools.islice(batches, 1))


def test_the_loss_is_the_share_of_attention_on_the_right_tokens() -> None:
    _, batch = first_batch()
    assert batch.pointers is not None
    torch.manual_seed(0)
    total = sum(batch.lengths)
    q, k, v = (torch.randn(total, 2, 8) for _ in range(3))
    layer = Layer(index=1, scale=8**-0.5)
    guide = Pointing(packed(batch.lengths), batch, layers=(1,))
    out = guide(layer, q, k, v)
    assert torch.equal(out, packed(batch.lengths)(layer, q, k, v))
    losses = []
    starts = [0, *itertools.accumulate(batch.lengths)]
    for token in batch.pointers[0].unique().tolist():
        start = max(s for s in starts if s <= token)
        weights = (k[start : token + 1, 0] @ q[token, 0] * layer.scale).softmax(0)
        right = batch.pointers[1][batch.pointers[0] == token] - start
        losses.append(-weights[right].sum().log())
    assert torch.allclose(guide.loss, torch.stack(losses).mean(), atol=1e-5)


def test_pointers_lead_from_answers_to_visual_tokens() -> None:
    parts, batch = first_batch()
    assert batch.pointers is not None
    tokens, seen = batch.pointers
    assert (batch.targets[tokens] != -100).all()
    assert (batch.token_ids[seen] == parts.model.config.image_token_id).all()


def test_layers_that_are_not_guided_cost_nothing() -> None:
    _, batch = first_batch()
    guide = Pointing(packed(batch.lengths), batch, layers=(3,))
    x = torch.randn(sum(batch.lengths), 2, 8)
    guide(Layer(index=0, scale=1.0), x, x, x)
    assert guide.losses == []
