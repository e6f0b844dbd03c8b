"""The loop: what it does per step, when it stops, and that it goes on where it was."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.resume import load_training, save_training
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Generation, Sampling
from cascadevl.data.batch import Batch, collate
from cascadevl.engine.simple import generate
from cascadevl.training.fit import Diverged, FitState, fit
from cascadevl.training.muon import muon
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.schedule import WarmupStableDecay


def _picture(text: str) -> Image.Image:
    picture = Image.new("RGB", (112, 56), "white")
    ImageDraw.Draw(picture).text((10, 15), text, fill="black", font_size=28)
    return picture


def _asked(text: str, question: str = "Read.") -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", "image": _picture(text)}, {"type": "text", "text": question}]}
    ]


def _taught(parts: Parts, *texts: str) -> Batch:
    return collate([parts.processor([*_asked(text), {"role": "assistant", "content": text}]) for text in texts])


def _run(
    parts: Parts,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float = 1e-2,
    state: FitState | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    save: object = None,
) -> list[Loss]:
    losses: list[Loss] = []
    fit(
        model=parts.model.requires_grad_(True),
        objective=NextToken(),
        batches=batches,
        optimizer=optimizer or muon(parts.model.named_parameters(), lr=lr, weight_decay=0.0),
        schedule=WarmupStableDecay(steps=steps, warmup=min(5, steps), decay=0),
        state=state or FitState(),
        observe=lambda state, loss, norm: losses.append(loss),
        save=save or (lambda state: None),  # type: ignore[arg-type]
    )
    return losses


def test_one_batch_is_learned_and_then_said_from_the_pictures_alone() -> None:
    """Same question, different pictures: who does not look cannot know which answer is right."""
    parts = tiny_parts("qwen3", std=0.1)
    batch = _taught(parts, "total", "seven")
    losses = _run(parts, [batch] * 150, steps=150)
    assert losses[0].terms["next_token"] > 3
    assert losses[-1].terms["next_token"] < 0.05
    assert losses[-1].terms["token_accuracy"] == 1.0
    parts.model.eval()
    for text in ("total", "seven"):
        *_, answer = generate(parts, parts.processor(_asked(text)), Sampling(max_new_tokens=20))
        assert isinstance(answer, Generation)
        assert (answer.text, answer.finish_reason) == (text, "stop")


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 4.0]))


def _batches(num: int) -> Iterator[Batch]:
    one = torch.zeros(1, dtype=torch.int64)
    for _ in range(num):
        yield Batch(token_ids=one, targets=one, positions=one, lengths=(1, 1, 1), tiles=one)


def test_each_step_by_hand_clips_scales_and_counts() -> None:
    """The gradient (3, 4)·1 of ½|w|² has norm 5, is clipped to 1, and SGD moves by peak · schedule."""
    model, seen = _Line(), []
    optimizer = torch.optim.SGD([{"params": [model.w], "lr": 9.0, "peak_lr": 0.5}])
    state = fit(
        model=model,
        objective=lambda model, batch: Loss(model.w.square().sum() / 2, {}, 1),
        batches=_batches(2),
        optimizer=optimizer,
        schedule=lambda step: 1.0 if step == 0 else 0.1,
        state=FitState(),
        observe=lambda state, loss, norm: seen.append((state.step, norm, model.w.grad, model.training)),
        save=lambda state: seen.append((state.step, state.num_samples)),
    )
    # 5 - 0.5 · 1, then 4.5 - 0.05 · 1, along (0.6, 0.8).
    torch.testing.assert_close(model.w.detach(), torch.tensor([0.6, 0.8]) * (5 - 0.5 - 0.05))
    assert [row[0] for row in seen] == [1, 1, 2, 2]
    assert [row[1] for row in seen[::2]] == pytest.approx([5, 4.5])
    assert [row[2] for row in seen[::2]] == [None, None], "gradients are dropped before anyone looks"
    assert [row[1] for row in seen[1::2]] == [3, 6]
    assert all(row[3] for row in seen[::2])
    assert (state.step, state.num_samples) == (2, 6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(value: float) -> None:
    model = _Line()
    with pytest.raises(Diverged, match=r"The loss is (nan|inf) at step 7: lower the learning rate"):
        fit(
            model=model,
            objective=lambda model, batch: Loss(model.w.sum() * value, {}, 1),
            batches=_batches(1),
            optimizer=torch.optim.SGD([{"params": [model.w], "lr": 1.0, "peak_lr": 1.0}]),
            schedule=lambda step: 1.0,
            state=FitState(step=7),
            observe=lambda *_: pytest.fail("a step was taken"),
            save=lambda _: pytest.fail("a spoilt model was saved"),
        )
    assert model.w.tolist() == [3.0, 4.0]


def test_a_gradient_that_is_no_number_stops_before_the_weights_change() -> None:
    """A finite loss may have an infinite slope: √0."""
    model = _Line()
    with pytest.raises(Diverged, match="gradient"):
        fit(
            model=model,
            objective=lambda model, batch: Loss((model.w - model.w.detach()).square().sum().sqrt(), {}, 1),
            batches=_batches(1),
            optimizer=torch.optim.SGD([{"params": [model.w], "lr": 1.0, "peak_lr": 1.0}]),
            schedule=lambda step: 1.0,
            state=FitState(),
            observe=lambda *_: None,
            save=lambda _: pytest.fail("a spoilt model was saved"),
        )
    assert model.w.tolist() == [3.0, 4.0]


def test_three_steps_saved_and_three_more_are_six_bit_for_bit(tmp_path: Path) -> None:
    words = ["one", "two", "three", "four", "five", "six"]

    def start() -> tuple[Parts, torch.optim.Optimizer]:
        parts = tiny_parts("qwen2", std=0.1)
        return parts, muon(parts.model.named_parameters(), lr=1e-2, weight_decay=0.1)

    def batches(parts: Parts, first: int, last: int) -> list[Batch]:
        return [_taught(parts, word) for word in words[first:last]]

    whole, optimizer = start()
    _run(whole, batches(whole, 0, 6), steps=6, optimizer=optimizer)

    half, optimizer = start()

    def save(state: FitState) -> None:
        save_training(
            tmp_path / "last", {"model": half.model}, optimizer, {"step": state.step, "samples": state.num_samples}
        )

    _run(half, batches(half, 0, 3), steps=6, optimizer=optimizer, save=save)

    resumed, optimizer = start()
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.zero_()
    saved = load_training(tmp_path / "last", {"model": resumed.model}, optimizer)
    state = FitState(saved["step"], saved["samples"])
    _run(resumed, batches(resumed, 3, 6), steps=6, optimizer=optimizer, state=state)
    assert (state.step, state.num_samples) == (6, 6)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name
