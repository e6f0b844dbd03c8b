"""GGUF files of Llama's kin: sizes, tokenizer, what is refused, and a tower in front of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascadevl.api import Bundle
from cascadevl.checkpoints.gguf import LanguageParts, read_gguf
from cascadevl.checkpoints.graft import build_around
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.errors import CheckpointError
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS
from tests.checkpoints.gguf_files import BLOCK, Stored, byte_tokenizer, stored, write
from tests.preprocessing.sentencepiece_folders import CORPUS, yi

WIDTH, HEADS, KEYS, WIDE, VOCABULARY = 32, 4, 2, 48, 262

Change = Callable[[dict[str, Any], dict[str, Stored]], object]


def _contents(arch: str = "llama", vocabulary: int = VOCABULARY) -> tuple[dict[str, Any], dict[str, Stored]]:
    """One layer of random numbers, with a byte tokenizer."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"token_embd": (vocabulary, WIDTH), "output": (vocabulary, WIDTH), "output_norm": (WIDTH,)}
    head = WIDTH // HEADS
    inside = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (KEYS * head, WIDTH),
        "attn_v": (KEYS * head, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (WIDE, WIDTH),
        "ffn_up": (WIDE, WIDTH),
        "ffn_down": (WIDTH, WIDE),
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
    }
    shapes |= {f"blk.0.{name}": shape for name, shape in inside.items()}
    tensors = {f"{name}.weight": stored(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}
    sizes = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDE,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KEYS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in sizes.items()}}
    return {**metadata, **byte_tokenizer()}, tensors


def _write(folder: Path, change: Change = lambda metadata, tensors: None, **contents: Any) -> Path:
    metadata, tensors = _contents(**contents)
    change(metadata, tensors)
    return write(folder / "model.gguf", metadata, tensors)


def _read(folder: Path, *arguments: Any, **contents: Any) -> LanguageParts:
    return read_gguf(_write(folder, *arguments, **contents))


def _refused(folder: Path, change: Change) -> str:
    with pytest.raises(CheckpointError) as caught:
        _read(folder, change)
    assert "model.gguf" in str(caught.value)
    return str(caught.value)


def test_sizes_are_those_of_the_metadata(tmp_path: Path) -> None:
    config = _read(tmp_path).config
    assert (config.family, config.num_layers, config.hidden_size, config.mlp_size) == ("llama", 1, WIDTH, WIDE)
    assert (config.num_heads, config.num_kv_heads, config.head_size) == (HEADS, KEYS, 8)
    assert (config.vocab_size, config.tied, config.norm_eps) == (VOCABULARY, False, 1e-5)
    assert (config.rope.theta, config.rope.kind, config.rope.max_position) == (1e4, "default", 64)


def test_without_an_output_matrix_the_embeddings_are_it(tmp_path: Path) -> None:
    language = _read(tmp_path, lambda metadata, tensors: tensors.pop("output.weight"))
    assert language.config.tied and language.decoder.lm_head is None


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scalings_are_read(kind: str, tmp_path: Path) -> None:
    scaling = {"type": kind, "factor": 4.0, "original_context_length": 16}
    rope = _read(
        tmp_path, lambda metadata, _: metadata.update({f"llama.rope.scaling.{k}": v for k, v in scaling.items()})
    ).config.rope
    assert (rope.kind, rope.factor) == (kind, 4.0)
    assert rope.trained_position == (16 if kind == "yarn" else 0)


def test_neighbouring_rows_of_llamas_become_halves(tmp_path: Path) -> None:
    """Of a head of eight rows: 0, 4, 1, 5, … in the file are 0, 1, 2, … for us; values and qwens stay as they are."""
    rows = torch.arange(WIDTH, dtype=torch.float32)[:, None].expand(WIDTH, WIDTH).contiguous()
    order = torch.tensor([head * 8 + i for head in range(HEADS) for i in (0, 4, 1, 5, 2, 6, 3, 7)])

    def change(metadata: dict[str, Any], tensors: dict[str, Stored]) -> None:
        tensors["blk.0.attn_q.weight"] = tensors["blk.0.attn_output.weight"] = stored(rows[order])

    block = _read(tmp_path, change).decoder.model.layers[0]
    assert torch.equal(block.get_parameter("self_attn.q_proj.weight"), rows)
    assert torch.equal(block.get_parameter("self_attn.o_proj.weight"), rows[order])


def test_the_type_asked_for_is_that_of_every_tensor(tmp_path: Path) -> None:
    path = _write(tmp_path)
    half, whole = (read_gguf(path, dtype=dtype).decoder for dtype in (torch.bfloat16, torch.float32))
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name).bfloat16()) and not parameter.requires_grad


def _set(**settings: Any) -> Change:
    return lambda metadata, tensors: metadata.update({f"llama.{key}": value for key, value in settings.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m, t: m.update({"general.architecture": "mamba"}), "the architecture 'mamba'. Supported: llama, qwen2"),
        (lambda m, t: m.update({"general.architecture": "clip"}), "the vision part of a model"),
        (lambda m, t: m.pop("general.architecture"), "the architecture None"),
        (lambda m, t: m.pop("llama.block_count"), "llama.block_count is None; a positive int"),
        (_set(**{"attention.head_count": 0}), "attention.head_count is 0"),
        (_set(**{"attention.head_count": [4, 4]}), "attention.head_count is array"),
        (_set(**{"attention.head_count_kv": 3}), "4 query heads cannot share 3 key heads"),
        (_set(**{"attention.head_count_kv": 4}), "has the shape [16, 32], the metadata imply [32, 32]"),
        (_set(embedding_length=2**31), "the metadata imply [262, 2147483648]"),
        (_set(block_count=2**31), "claims 2147483648 layers and has 12 tensors"),
        (_set(block_count=2), "9 missing (blk.1.attn_k.weight, "),
        (_set(**{"rope.dimension_count": 4}), "rope.dimension_count is 4; 8 was expected (whole heads turned)"),
        (_set(expert_count=8), "expert_count is 8; 0 was expected"),
        (_set(**{"attention.sliding_window": 64}), "attention.sliding_window is 64"),
        (_set(**{"rope.scaling.attn_factor": 2.0}), "rope.scaling.attn_factor is not supported"),
        (_set(**{"rope.scaling.type": "su", "rope.scaling.factor": 2.0}), "incomplete"),
        (lambda m, t: t.pop("token_embd.weight"), "lacks the tensor 'token_embd.weight'"),
        (lambda m, t: t.pop("blk.0.attn_v.weight"), "1 missing (blk.0.attn_v.weight)"),
        (lambda m, t: t.update({"blk.0.attn_q.bias": stored(torch.ones(WIDTH))}), "1 unexpected (blk.0.attn_q.bias)"),
        (lambda m, t: t.update({"output_norm.weight": stored(torch.ones(3))}), "output_norm.weight has the shape [3]"),
        (lambda m, t: t.update({"rope_freqs.weight": stored(torch.ones(3))}), "rope_freqs.weight has the shape [3]"),
        (lambda m, t: m.update({"tokenizer.ggml.model": "bert"}), "a tokenizer of the kind 'bert'. Supported: gpt2"),
        (lambda m, t: m.update({"tokenizer.ggml.pre": "viking"}), "the rules 'viking'. Supported: gpt-2"),
        (lambda m, t: m.update({"tokenizer.ggml.token_type": [1]}), "as many tokens as types"),
        (lambda m, t: m.update({"tokenizer.ggml.token_type": [-9] * 262}), "types [-9]; 1 to 6 exist"),
        (lambda m, t: m.update({"tokenizer.ggml.tokens": ["a"] * 262}), "the token 'a' 262 times"),
        (lambda m, t: m.update({"tokenizer.ggml.merges": ["t zz"]}), "cannot be read"),
    ],
)
def test_files_that_do_not_fit_are_refused_by_name(change: Change, message: str, tmp_path: Path) -> None:
    assert message in _refused(tmp_path, change)


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 262 tokens, its embeddings only 200"):
        _read(tmp_path, vocabulary=200)


def test_the_tokenizer_merges_decodes_and_keeps_control_tokens_apart(tmp_path: Path) -> None:
    language = _read(tmp_path)
    tokenizer = language.tokenizer
    assert tokenizer.decode(tokenizer.encode("the cat, ü 漢")) == "the cat, ü 漢"
    assert tokenizer.encode("the th") == [257, tokenizer.id("Ġ"), 256]
    assert tokenizer.controls == {"<|endoftext|>": 258, "<|im_start|>": 259, "<|im_end|>": 260}
    assert 259 not in tokenizer.encode("<|im_start|>") and tokenizer.encode("<tool_call>") == [261]
    assert language.stop_ids == (260,) and language.bos is None
    assert language.chat_template is not None and "messages" in language.chat_template


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["1", "2", "3", "4", "Ġit", "'s"]),
        ("gpt-2", ["1234", "Ġit", "'s"]),
        ("llama-bpe", ["123", "4", "Ġit", "'s"]),
        ("qwen2", ["1", "2", "3", "4", "Ġit", "'s"]),
    ],
)
def test_words_are_cut_by_the_rules_that_the_file_names(pre: str, words: list[str], tmp_path: Path) -> None:
    """Every merge within a word exists, so that a word becomes one token and its borders show."""
    text = "1234 it's"
    pieces = ["12", "123", "1234", "Ġi", "Ġit", "'s"]
    merges = ["1 2", "12 3", "123 4", "Ġ i", "Ġi t", "' s"]

    def change(metadata: dict[str, Any], tensors: dict[str, Stored]) -> None:
        tokens = metadata["tokenizer.ggml.tokens"] + pieces
        types = metadata["tokenizer.ggml.token_type"] + [1] * len(pieces)
        metadata |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types}
        metadata |= {"tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges}

    tokenizer = _read(tmp_path, change, vocabulary=VOCABULARY + len(pieces)).tokenizer
    assert tokenizer.encode(text) == [tokenizer.id(word) for word in words]


def test_the_bos_is_there_where_the_file_says_so(tmp_path: Path) -> None:
    language = _read(tmp_path, lambda m, t: m.update({"tokenizer.ggml.add_bos_token": True}))
    assert language.bos == "<|im_start|>"
    assert _read(tmp_path, lambda m, t: m.update({"tokenizer.ggml.pre": "llama-bpe"})).bos == "<|im_start|>"


def _sentencepiece(folder: Path, **changes: Any) -> tuple[LanguageParts, Any]:
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(yi(folder / "yi") / "tokenizer.model"))
    ids = range(processor.get_piece_size())
    kinds = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
    types = [next((kind for name, kind in kinds.items() if getattr(processor, name)(i)), 1) for i in ids]

    def change(metadata: dict[str, Any], tensors: dict[str, Stored]) -> None:
        metadata |= {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in ids],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": [processor.get_score(i) for i in ids],
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            **changes,
        }

    return _read(folder, change, vocabulary=len(ids)), processor


def test_a_sentencepiece_vocabulary_encodes_as_the_model_it_came_from(tmp_path: Path) -> None:
    """The model has types and scores only; user-defined pieces, which never lose a merge, are left plain here."""
    language, processor = _sentencepiece(tmp_path)
    for text in (*set(CORPUS), "  two  spaces ", "日本 unseen ✓"):
        assert language.tokenizer.encode(text) == processor.encode(text)
        assert language.tokenizer.decode(processor.encode(text)) == text
    assert language.bos == "<s>" and language.stop_ids == (2,)
    assert language.tokenizer.controls.keys() == {"<unk>", "<s>", "</s>"}


def test_a_sentencepiece_vocabulary_needs_its_scores(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 2 scores for"):
        _sentencepiece(tmp_path, **{"tokenizer.ggml.scores": [0.5, 1.5]})


@pytest.mark.parametrize("layout", ["hf", "chat"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_around_it_is_a_model_like_any_other(kind: str, layout: str, tmp_path: Path) -> None:
    language = _read(tmp_path) if kind == "gpt2" else _sentencepiece(tmp_path)[0]
    spec = Spec(template="internvl2_5", system="") if kind == "gpt2" else Spec(template="internvl_zh")
    parts = build_around(language, TINY_VISION, spec, seed=1, std=0.2)
    size = len(language.tokenizer)
    assert [parts.tokenizer.id(token) for token in SPECIAL_TOKENS] == list(range(size, size + 9))
    decoder = parts.model.language_model
    assert torch.equal(decoder.model.embed_tokens.weight[:size], language.decoder.model.embed_tokens.weight)
    mean = language.decoder.model.embed_tokens.weight.mean(dim=0)
    assert torch.allclose(decoder.model.embed_tokens.weight[size:], mean.expand(9, -1))
    assert decoder.model.layers[0].get_parameter("mlp.up_proj.weight").data_ptr() == (
        language.decoder.model.layers[0].get_parameter("mlp.up_proj.weight").data_ptr()
    )

    messages = [{"role": "user", "content": [{"type": "image", "image": _picture()}, {"type": "text", "text": "the?"}]}]
    ids, logits = Bundle(parts).logits(messages)
    assert (ids == parts.model.config.image_token_id).sum() > 0 and logits.isfinite().all()
    assert int(ids[0]) == 1 or language.bos is None
    saved = Bundle(load_parts(save_parts(parts, tmp_path / "saved", layout=layout)))
    again, theirs = saved.logits(messages)
    assert torch.equal(again, ids) and torch.equal(theirs, logits)


def _picture() -> Any:
    from PIL import Image

    return Image.linear_gradient("L").convert("RGB").resize((60, 60))


def test_the_names_of_our_blocks_are_all_known() -> None:
    from cascadevl.checkpoints.gguf import file_name

    for ours, theirs in BLOCK.items():
        assert file_name(f"model.layers.3.{ours}.weight") == f"blk.3.{theirs}.weight"
