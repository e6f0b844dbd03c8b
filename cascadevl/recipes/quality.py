"""The quality card: what a rounded model lost against the one it was made of, on samples that neither was fitted to.

Both models read the same conversations; every figure comes from their forward passes. Legend: T tokens of answers.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.weights import shard_files
from cascadevl.core.errors import MessageError
from cascadevl.core.files import write_json, write_text
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.simple import generate
from cascadevl.ops.attention import dense
from cascadevl.preprocessing.processor import ModelInputs

MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """The rounded model against the whole one."""

    num_samples: int
    num_tokens: int
    """Of the reference answers, on which the first figures are taken."""
    perplexity_whole: float
    perplexity: float
    kl_mean: float
    """KL(whole ‖ rounded) of the next token, nats."""
    kl_p99: float
    token_agreement: float
    """Share of tokens at which both rank the same one first."""
    answer_agreement: float
    """Share of greedy answers that are the same to the letter."""
    layer_errors: tuple[float, ...]
    """States behind each layer of the decoder: root of the mean square of the difference over that of the states.
    What earlier layers lost is in it."""
    bytes_whole: int = 0
    bytes: int = 0
    """Of the files of weights."""


@torch.inference_mode()
def compare(whole: Parts, rounded: Parts, conversations: Sequence[Conversation]) -> Quality:
    """Ask both models. Every conversation must end with the answer that is right."""
    kls, losses_whole, losses, same, equal = [], [], [], [], 0
    differences = torch.zeros(len(whole.model.language_model.model.layers), 2, dtype=torch.float64)
    for conversation in conversations:
        inputs = whole.processor(conversation)
        targets_T = inputs.token_ids[1:][inputs.trained[1:]]
        if not len(targets_T):
            raise MessageError("A sample of the quality card has no answer: its last message must be the assistant's.")
        (first_TV, first), (second_TV, second) = _read(whole, inputs), _read(rounded, inputs)
        differences += torch.tensor([_squares(one, other) for one, other in zip(first, second, strict=True)])
        log_first_TV, log_second_TV = first_TV.log_softmax(-1), second_TV.log_softmax(-1)
        kls.append((log_first_TV.exp() * (log_first_TV - log_second_TV)).sum(-1))
        losses_whole.append(-log_first_TV.gather(1, targets_T[:, None]))
        losses.append(-log_second_TV.gather(1, targets_T[:, None]))
        same.append(first_TV.argmax(-1) == second_TV.argmax(-1))
        asked = Conversation(conversation.turns[:-1])
        equal += _answer(whole, asked) == _answer(rounded, asked)
    kl_T = torch.cat(kls).double().clamp(min=0)
    return Quality(
        num_samples=len(conversations),
        num_tokens=len(kl_T),
        perplexity_whole=math.exp(float(torch.cat(losses_whole).mean())),
        perplexity=math.exp(float(torch.cat(losses).mean())),
        kl_mean=float(kl_T.mean()),
        kl_p99=float(kl_T.quantile(0.99)),
        token_agreement=float(torch.cat(same).float().mean()),
        answer_agreement=equal / len(conversations),
        layer_errors=tuple((differences[:, 0] / differences[:, 1]).sqrt().tolist()),
    )


def _read(parts: Parts, inputs: ModelInputs) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V) in front of each token of the answers, and the states behind every layer."""
    model = parts.model
    with _states(model.language_model.model.layers) as states:
        token_ids_T = inputs.token_ids.to(model.device)
        embed_TD = model.embed(token_ids_T, inputs.tiles.to(model.device))
        hidden_TD = model.language_model(embed_TD, model.positions(token_ids_T), dense)
    logits_TV = model.language_model.logits(hidden_TD[:-1][inputs.trained[1:].to(model.device)])
    return logits_TV.cpu(), states


@contextmanager
def _states(layers: nn.ModuleList) -> Iterator[list[Tensor]]:
    states: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        states.append(out)

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()


def _squares(one_TD: Tensor, other_TD: Tensor) -> tuple[float, float]:
    difference_TD = other_TD.double() - one_TD.double()
    return float(difference_TD.square().sum()), float(one_TD.double().square().sum())


def _answer(parts: Parts, conversation: Conversation) -> str:
    *_, generation = generate(parts, parts.processor(conversation), Sampling(max_new_tokens=MAX_NEW_TOKENS))
    assert isinstance(generation, Generation)
    return generation.text


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in shard_files(folder))


def write_card(folder: Path, quality: Quality, made: dict[str, Any]) -> None:
    """quality.json and quality.md; `made` says how the model was made."""
    write_json(folder / "quality.json", {"made": made, **asdict(quality)})
    rows = [
        ("perplexity of the right answers", f"{quality.perplexity_whole:.4f}", f"{quality.perplexity:.4f}"),
        ("bytes of weights", f"{quality.bytes_whole:,}", f"{quality.bytes:,}"),
        ("KL per token, mean (nats)", "0", f"{quality.kl_mean:.5f}"),
        ("KL per token, 99th percentile", "0", f"{quality.kl_p99:.5f}"),
        ("same token ranked first", "", f"{quality.token_agreement:.2%}"),
        ("same greedy answer, to the letter", "", f"{quality.answer_agreement:.2%}"),
    ]
    layers = "\n".join(f"| {index} | {error:.5f} |" for index, error in enumerate(quality.layer_errors))
    write_text(
        folder / "quality.md",
        "# What rounding cost\n\n"
        + "".join(f"- {key}: {value}\n" for key, value in made.items())
        + f"\n{quality.num_samples} held-out samples, {quality.num_tokens} tokens of answers, read by the whole model "
        "and by this folder, loaded again.\n\n"
        "| | whole | this folder |\n|---|---|---|\n"
        + "".join(f"| {' | '.join(row)} |\n" for row in rows)
        + "\nStates behind each layer of the decoder: how far they lie from those of the whole model, over their size "
        f"(root mean square).\n\n| layer | error |\n|---|---|\n{layers}\n",
    )
