"""The balance loss is added to any objective, over the routers of all layers, and reaches them alone."""

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.training.balance import Balanced, routers
from cascadevl.training.compute import recompute
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from tests.training.samples import batch_of


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("again", [False, True])
def test_it_is_the_loss_of_switch_over_all_layers_at_once(family: str, again: bool) -> None:
    parts = tiny_parts(family, std=0.3)
    model = parts.model.requires_grad_(True).train()
    batch, seen = batch_of(parts, "seven"), []
    hooks = [router.register_forward_hook(lambda m, i, out: seen.append(out.detach())) for router in routers(model)]
    plain = NextToken()(model, batch)
    for hook in hooks:
        hook.remove()
    logits = torch.cat(seen)
    experts = model.config.decoder.experts
    assert experts is not None and len(seen) == 2
    share = torch.zeros(experts.num_experts)
    for row in logits.softmax(-1):
        share[row.topk(experts.num_per_token).indices] += 1 / len(logits)
    expected = experts.num_experts * (share * logits.softmax(-1).mean(0)).sum().item()
    if again:
        recompute(model)
    loss = Balanced(objective=NextToken(), coefficient=0.5)(model, batch)
    assert loss.terms["balance"] == pytest.approx(expected, rel=1e-5)
    assert loss.total.item() == pytest.approx(plain.total.item() + 0.5 * expected, rel=1e-5)


def test_balancing_alone_makes_the_routers_even() -> None:
    parts = tiny_parts("qwen3_moe", std=0.3)
    model = parts.model.requires_grad_(True)
    nothing = lambda model, batch: NextToken()(model, batch)._replace(total=torch.zeros(()))  # noqa: E731
    objective, batch = Balanced(objective=nothing, coefficient=1.0), batch_of(parts, "seven", "total")
    optimizer = torch.optim.Adam([p for router in routers(model) for p in router.parameters()], lr=0.02)
    uneven = []
    for _ in range(40):
        loss = objective(model, batch)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        uneven.append(loss.terms["balance"])
    experts = model.config.decoder.experts
    assert experts is not None
    assert uneven[-1] - experts.num_per_token < (uneven[0] - experts.num_per_token) / 2


def test_packs_of_a_step_share_it_by_their_weights() -> None:
    parts = tiny_parts("qwen3_moe", std=0.3)
    batch, tokens = batch_of(parts, "seven"), NextToken()
    import dataclasses

    whole = Balanced(objective=tokens, coefficient=1.0, weigh=tokens.weight)
    half = dataclasses.replace(batch, denominator=2 * tokens.weight(batch))
    loss = whole(parts.model, half)
    assert loss.total.item() == pytest.approx((whole(parts.model, batch).total / 2).item(), rel=1e-5)


def test_a_dense_model_has_no_routers() -> None:
    parts = tiny_parts("qwen3")
    assert routers(parts.model) == []
    loss = Balanced(objective=NextToken(), coefficient=1.0)(parts.model, batch_of(parts, "seven"))
    assert isinstance(loss, Loss) and "balance" not in loss.terms
