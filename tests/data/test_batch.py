"""Samples end to end: targets, positions and pointers stay with their own sample."""

import torch
from torch import Tensor

from cascadevl.data.batch import IGNORE, collate, shifted_targets
from cascadevl.preprocessing.processor import ModelInputs


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
