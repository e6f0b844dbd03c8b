"""A language model gets a tower and a projector: the start of training, and a way to ask it about text."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from cascadevl.checkpoints.gguf import LanguageParts
from cascadevl.checkpoints.parts import Parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError
from cascadevl.models.config import InternVLConfig, VisionConfig
from cascadevl.models.decoder import Decoder
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS


def build_around(
    language: LanguageParts, vision: VisionConfig, spec: Spec, *, seed: int = 0, std: float = 0.02
) -> Parts:
    """A model whose decoder is the given one and whose tower and projector are random.

    InternVL's tokens that the tokenizer lacks are added behind its others; their embeddings begin as the mean
    of all. Sizes and BOS of `spec` are taken from the model; its template is the caller's choice, such as
    `Spec(template="jinja", jinja=language.chat_template)` where that knows how to show pictures.
    """
    tokenizer = _with_tokens(language.tokenizer, SPECIAL_TOKENS)
    decoder = _grown(language.decoder, len(tokenizer))
    config = InternVLConfig(
        vision=vision,
        decoder=decoder.config,
        downsample_ratio=0.5,
        pixel_shuffle="v2",
        select_layer=-1,
        image_token_id=tokenizer.id(spec.image_context),
    )
    spec = evolve(spec, tile_px=vision.tile_px, visual_tokens_per_tile=config.visual_tokens_per_tile, bos=language.bos)
    return Parts(
        name=language.name,
        model=_joined(config, decoder, seed, std).eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=Processor(spec, tokenizer, max_tokens=decoder.config.rope.longest),
        spec=spec,
        stop_ids=language.stop_ids,
    )


def _joined(config: InternVLConfig, decoder: Decoder, seed: int, std: float) -> InternVL:
    # A decoder without blocks and words in the meantime: a large one would be made and thrown away.
    model = fresh(evolve(config, decoder={"num_layers": 0, "vocab_size": 1, "tied": True}), seed=seed, std=std)
    model.config = config
    model.to(decoder.model.embed_tokens.weight.dtype)
    model.language_model = decoder
    return model


def _grown(decoder: Decoder, vocab_size: int) -> Decoder:
    """The decoder with rows for that many tokens at least; it shares everything else with the given one."""
    config = evolve(decoder.config, vocab_size=max(vocab_size, decoder.config.vocab_size))
    with torch.device("meta"):
        grown = Decoder(config)
    modules = dict(grown.named_modules())
    for name, parameter in decoder.named_parameters():
        owner, _, attribute = name.rpartition(".")
        rows = config.vocab_size if owner.endswith(("embed_tokens", "lm_head")) else len(parameter)
        setattr(modules[owner], attribute, torch.nn.Parameter(_with_rows(parameter.detach(), rows)))
    return grown


def _with_rows(weight: Tensor, num: int) -> Tensor:
    if num == len(weight):
        return weight
    mean = weight.float().mean(dim=0, keepdim=True).to(weight.dtype)
    return torch.cat([weight, mean.expand(num - len(weight), -1)])


def _with_tokens(tokenizer: TextTokenizer, tokens: Iterable[str]) -> TextTokenizer:
    """A tokenizer that has these control tokens too, by way of its files."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    missing = [token for token in tokens if not _has(tokenizer, token)]
    added = {len(tokenizer) + n: {"content": token, **plain} for n, token in enumerate(missing)}
    files = dict(tokenizer.files)
    if "tokenizer.json" in files:
        definition = json.loads(files["tokenizer.json"])
        definition["added_tokens"] += [{"id": i, **token} for i, token in added.items()]
        files["tokenizer.json"] = json.dumps(definition, ensure_ascii=False)
    else:
        config = json.loads(files["tokenizer_config.json"])
        known = config.get("added_tokens_decoder", {})
        config["added_tokens_decoder"] = {**known, **{str(i): token for i, token in added.items()}}
        files["tokenizer_config.json"] = json.dumps(config, indent=2, ensure_ascii=False)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return TextTokenizer.from_folder(Path(folder))


def _has(tokenizer: TextTokenizer, token: str) -> bool:
    try:
        tokenizer.id(token)
    except CheckpointError:
        return False
    return True
