"""What the families share and what tells them apart."""

import torch

from cascadevl.checkpoints.tiny import TINY_DECODERS, tiny_parts
from cascadevl.core.config import evolve
from cascadevl.models.decoder import Decoder
from cascadevl.ops.attention import dense, packed


def _logits(decoder: Decoder, embed_TD: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return decoder.logits(decoder(embed_TD, torch.arange(len(embed_TD)), dense))


def test_a_token_does_not_see_what_follows() -> None:
    decoder = tiny_parts("qwen3", std=0.2).model.language_model
    embed_TD = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    changed = embed_TD.clone()
    changed[5:] += 1
    before, after = _logits(decoder, embed_TD), _logits(decoder, changed)
    assert torch.equal(before[:5], after[:5])
    assert not torch.allclose(before[5:], after[5:], atol=1e-2)


def test_families_differ_by_biases_and_head_norms_alone() -> None:
    def extras(family: str) -> set[str]:
        return {
            name.rpartition("layers.0.")[2]
            for name, _ in Decoder(TINY_DECODERS[family]).named_parameters()
            if "layers.0." in name
        }

    shared = extras("qwen2") & extras("qwen3")
    assert extras("qwen2") - shared == {f"self_attn.{x}_proj.bias" for x in "qkv"}
    assert extras("qwen3") - shared == {f"self_attn.{x}_norm.weight" for x in "qk"}


def test_a_tied_output_matrix_is_the_embedding_and_learns_from_both_sides() -> None:
    torch.manual_seed(0)
    decoder = Decoder(evolve(TINY_DECODERS["qwen3"], tied=True))
    assert decoder.lm_head is None
    torch.nn.init.normal_(decoder.model.embed_tokens.weight)
    hidden_TD = torch.randn(3, 32)
    assert torch.equal(decoder.logits(hidden_TD), hidden_TD @ decoder.model.embed_tokens.weight.T)
    decoder.logits(decoder(decoder.embed(torch.tensor([1, 2])), torch.arange(2), dense)).sum().backward()
    gradient = decoder.model.embed_tokens.weight.grad
    assert gradient is not None
    assert int((gradient != 0).any(-1).sum()) == 272


def test_logits_are_fp32_whatever_the_weights_are() -> None:
    decoder = tiny_parts("qwen3", std=0.2).model.language_model.bfloat16()
    assert _logits(decoder, torch.randn(3, 32).bfloat16()).dtype == torch.float32


def test_states_of_some_tokens_are_those_among_all() -> None:
    """What the last block leaves out, nothing else depends on: values and gradients are the same."""
    lengths, asked_T = (6, 1, 5), torch.tensor([2, 3, 6, 11])
    positions_T = torch.cat([torch.arange(float(n)) for n in lengths])
    embed_TD = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    for family in ("qwen3", "qwen2", "llama"):
        decoder = tiny_parts(family, std=0.2).model.language_model.requires_grad_(True)
        some_AD = decoder(embed_TD, positions_T, packed(lengths), asked_T=asked_T)
        all_AD = decoder(embed_TD, positions_T, packed(lengths))[asked_T]
        torch.testing.assert_close(some_AD, all_AD, atol=1e-5, rtol=1e-5)
        learned = [p for name, p in decoder.model.named_parameters() if name != "embed_tokens.weight"]
        direction_AD = torch.randn(some_AD.shape, generator=torch.Generator().manual_seed(1))
        found = (torch.autograd.grad(out, learned, direction_AD) for out in (some_AD, all_AD))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
