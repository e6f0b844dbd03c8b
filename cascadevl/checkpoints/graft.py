"""A language model gets a tower and a projector: the start of training, and a way to ask it about text."""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from cascadevl.checkpoints.alone import read_language, read_tower
from cascadevl.checkpoints.gguf import LanguageParts
from cascadevl.checkpoints.load import Dtype
from cascadevl.checkpoints.parts import Parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError
from cascadevl.models.config import InternVLConfig, VisionConfig
from cascadevl.models.decoder import Decoder
from cascadevl.models.internvl import InternVL, fresh
from cascadevl.models.vision import InternViT
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.template import answer_ends, find_template
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS

TEMPLATE_OF = {"phi3": "phi3-chat", "gpt_oss": "internvl3_5_gpt_oss"}
"""Family -> the template of its released InternVLs; others speak internvl2_5."""


def join(
    vision: str | os.PathLike[str],
    language: str | os.PathLike[str],
    *,
    template: str | None = None,
    max_tiles: int = 12,
    dtype: Dtype = "stored",
    seed: int = 0,
) -> Parts:
    """The model that a published first stage starts from: a tower, a language model, a fresh projector.

    `vision` is an InternViT folder or an InternVL whose tower is taken, `language` a language model's own folder or a
    GGUF file. As in every release the output matrix lies apart from the embeddings, also where the language model had
    one for both. Releases from Qwen2.5 cut off rows that no token uses; here they stay.
    """
    words = read_language(language, dtype=dtype)
    template = template or TEMPLATE_OF.get(words.config.family, "internvl2_5")
    _check_template(template, words)
    tower = read_tower(vision, dtype=words.decoder.model.embed_tokens.weight.dtype)
    spec = Spec(template=template, max_tiles=max_tiles, mean=tower.config.pixel_mean, std=tower.config.pixel_std)
    return build_around(words, tower, spec, untie=True, seed=seed)


def build_around(
    language: LanguageParts,
    vision: VisionConfig | InternViT,
    spec: Spec,
    *,
    untie: bool = False,
    seed: int = 0,
    std: float = 0.02,
) -> Parts:
    """A model whose decoder is the given one and whose projector is random; so is the tower, if only sizes are given.

    InternVL's tokens that the tokenizer lacks are added behind its others; their embeddings begin as the mean
    of all. Sizes and BOS of `spec` are taken from the model; its template is the caller's choice, such as
    `Spec(template="jinja", jinja=language.chat_template)` where that knows how to show pictures. With `untie`, a
    matrix that was embeddings and output becomes two.
    """
    tokenizer = _with_tokens(language.tokenizer, SPECIAL_TOKENS)
    decoder = _grown(language.decoder, len(language.tokenizer), len(tokenizer), untie)
    tower = vision if isinstance(vision, InternViT) else None
    sizes = vision.config if isinstance(vision, InternViT) else vision
    config = InternVLConfig(
        vision=sizes,
        decoder=decoder.config,
        downsample_ratio=0.5,
        pixel_shuffle="v2",
        select_layer=-1,
        image_token_id=tokenizer.id(spec.image_context),
    )
    spec = evolve(spec, tile_px=sizes.tile_px, visual_tokens_per_tile=config.visual_tokens_per_tile, bos=language.bos)
    ends = [tokenizer.controls[end] for end in answer_ends(spec, tokenizer.controls)]
    return Parts(
        name=language.name,
        model=_joined(config, decoder, tower, seed, std).eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=Processor(spec, tokenizer, max_tokens=decoder.config.rope.longest),
        spec=spec,
        stop_ids=tuple(dict.fromkeys((*language.stop_ids, *ends))),
    )


def _check_template(name: str, language: LanguageParts) -> None:
    """A template is of no use to a tokenizer that would spell its marks letter by letter."""
    template = find_template(name)
    said = "".join((template.system, template.user, template.assistant, template.turn_end, template.stop))
    unknown = sorted(set(re.findall(r"<\|\w+\|>", said)) - language.tokenizer.controls.keys())
    if unknown:
        raise CheckpointError(
            f"The chat template {name!r} speaks with {', '.join(unknown)}, which the tokenizer of {language.name} does "
            "not have: choose another template, or add these tokens to the language model first."
        )


def _joined(config: InternVLConfig, decoder: Decoder, tower: InternViT | None, seed: int, std: float) -> InternVL:
    # Blocks and words that are given later would be made large and thrown away.
    small = evolve(config, decoder={"num_layers": 0, "vocab_size": 1, "tied": True})
    small = small if tower is None else evolve(small, vision={"num_layers": 0})
    model = fresh(small, seed=seed, std=std)
    model.config = config
    model.to(decoder.model.embed_tokens.weight.dtype)
    model.language_model = decoder
    if tower is not None:
        model.vision_model = tower
    return model


def _grown(decoder: Decoder, num_known: int, num_tokens: int, untie: bool) -> Decoder:
    """The decoder with rows for that many tokens at least; it shares everything else with the given one."""
    tied = decoder.config.tied and not untie
    config = evolve(decoder.config, vocab_size=max(num_tokens, decoder.config.vocab_size), tied=tied)
    with torch.device("meta"):
        grown = Decoder(config)
    modules = dict(grown.named_modules())
    for name, parameter in decoder.named_parameters():
        owner, _, attribute = name.rpartition(".")
        weight = parameter.detach()
        if owner.endswith(("embed_tokens", "lm_head")):
            weight = _with_rows(weight, num_known, num_tokens)
        setattr(modules[owner], attribute, torch.nn.Parameter(weight))
    if grown.lm_head is not None and decoder.lm_head is None:
        grown.lm_head.weight = torch.nn.Parameter(grown.model.embed_tokens.weight.detach().clone())
    return grown


def _with_rows(weight: Tensor, num_known: int, num_tokens: int) -> Tensor:
    """New tokens begin as the mean of the known ones, also in rows that were there and belonged to none."""
    if num_tokens == num_known:
        return weight
    mean = weight[:num_known].mean(dim=0, keepdim=True, dtype=torch.float32).to(weight.dtype)
    return torch.cat([weight[:num_known], mean.expand(num_tokens - num_known, -1), weight[num_tokens:]])


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
