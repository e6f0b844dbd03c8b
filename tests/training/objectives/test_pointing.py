"""Pointing: the share of attention on the right visual tokens, computed with loops; nothing else changes."""

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import Batch
from cascadevl.ops.attention import Layer, packed
from cascadevl.training.objectives.pointing import Pointing

LENGTHS = (4, 6)


def _batch(*pairs: tuple[int, int]) -> Batch:
    ids = torch.zeros(sum(LENGTHS), dtype=torch.int64)
    pointers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T.contiguous()
    positions = torch.cat([torch.arange(n, dtype=torch.float32) for n in LENGTHS])
    return Batch(token_ids=ids, targets=ids, positions=positions, lengths=LENGTHS, tiles=ids, pointers=pointers)


def _qkv() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(10, heads, 8, generator=generator) for heads in (4, 2, 2)]


def test_the_loss_by_hand() -> None:
    """Token 3 of the first sample points at 1; tokens 7 and 9, of the second, at {4, 5} and 6."""
    q, k, v = _qkv()
    pointing = Pointing(packed(LENGTHS), _batch((3, 1), (7, 4), (7, 5), (9, 6)), (1,))
    pointing(Layer(index=1, scale=0.4), q, k, v)
    expected = []
    for token, start, right in ((3, 0, [1]), (7, 4, [4, 5]), (9, 4, [6])):
        weights = torch.stack([q[token, 0] @ k[s, 0] * 0.4 for s in range(start, token + 1)]).softmax(0)
        expected.append(-torch.stack([weights[s - start] for s in right]).sum().log())
    torch.testing.assert_close(pointing.loss, torch.stack(expected).mean())


def test_what_the_decoder_sees_does_not_change_and_only_chosen_layers_are_asked() -> None:
    decoder = tiny_parts("qwen3", std=0.2).model.language_model
    batch = _batch((3, 1), (9, 6))
    embed_TD = torch.randn(10, 32, generator=torch.Generator().manual_seed(0))
    pointing = Pointing(packed(LENGTHS), batch, (1,))
    with torch.no_grad():
        assert torch.equal(
            decoder(embed_TD, batch.positions, pointing), decoder(embed_TD, batch.positions, batch.attend)
        )
    assert len(pointing.losses) == 1


def test_its_gradient_turns_attention_towards_the_target() -> None:
    q, k, v = _qkv()
    losses: list[float] = []
    for _ in range(60):
        q.requires_grad_(True)
        pointing = Pointing(packed(LENGTHS), _batch((3, 1), (9, 6)), (0,))
        pointing(Layer(index=0, scale=0.4), q, k, v)
        losses.append(float(pointing.loss.detach()))
        (gradient,) = torch.autograd.grad(pointing.loss, q)
        assert float(gradient[:, 1:].abs().max()) == 0, "other heads stay free"
        q = (q - 2 * gradient).detach()
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("pairs", [[(3, 1)], [(7, 4), (7, 4)]])
def test_a_pair_named_twice_counts_once(pairs: list[tuple[int, int]]) -> None:
    q, k, v = _qkv()
    losses = []
    for given in (pairs, [*pairs, pairs[0]]):
        pointing = Pointing(packed(LENGTHS), _batch(*given), (0,))
        pointing(Layer(index=0, scale=0.4), q, k, v)
        losses.append(float(pointing.loss))
    assert losses[0] == losses[1]
