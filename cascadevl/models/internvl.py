"""READ FIRST. InternVL: pictures become tokens, tokens are read by a language model.

1. token ids (T,) hold one `<IMG_CONTEXT>` for every visual token to come;
2. `embed`          ids -> embed_TD;
3. `encode_tiles`   uint8 tiles (S, 3, Y, X) -> tower -> pixel shuffle -> projector -> visual_SLD;
4. `splice`         visual tokens replace the embeddings at `<IMG_CONTEXT>`, counts checked;
5. `language_model` embed_TD -> hidden_TD, asking `attend` who sees whom;
6. `logits`         hidden_TD -> (T, V).

A Flash model (InternVL3.5) may tell some tiles in fewer tokens, and only when it generates: then
`embed_prompt` takes the place of 2 to 4. `forward` and training read every tile in full.
"""

import torch
from torch import Tensor, nn

from cascadevl.core.errors import InternalError
from cascadevl.models.config import InternVLConfig
from cascadevl.models.decoder import Decoder
from cascadevl.models.projector import mlp1, mlp2, pixel_shuffle
from cascadevl.models.router import AttentionPooling, Gating, compressible, shortened
from cascadevl.models.vision import InternViT
from cascadevl.ops.attention import Attend, dense
from cascadevl.ops.rope import v2pe_positions


class InternVL(nn.Module):
    """Vision tower, projector and decoder under their official names."""

    def __init__(self, config: InternVLConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = InternViT(config.vision)
        self.mlp1 = mlp1(config)
        self.language_model = Decoder(config.decoder)
        flash, width = config.flash, config.vision.hidden_size
        self.pooling_before_gating = AttentionPooling(width) if flash else None
        self.gating = Gating(width) if flash else None
        self.mlp2 = mlp2(config) if flash else None

    @property
    def dtype(self) -> torch.dtype:
        return self.language_model.model.embed_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.language_model.model.embed_tokens.weight.device

    def encode_tiles(self, tiles_SCYX: Tensor) -> Tensor:
        """(S, 3, Y, X), uint8 or normalised -> visual tokens (S, L, D)."""
        return self.project(self.vision_model(tiles_SCYX, self.config.select_layer))

    def project(self, patches_SPD: Tensor) -> Tensor:
        """States of patches -> visual tokens (S, L, D)."""
        return self.mlp1(pixel_shuffle(patches_SPD, self.config.downsample_ratio, self.config.pixel_shuffle))

    def embed(self, token_ids_T: Tensor, tiles_SCYX: Tensor | None = None) -> Tensor:
        """Embeddings (T, D), with the visual tokens of the tiles at their places."""
        embed_TD = self.language_model.embed(token_ids_T)
        if tiles_SCYX is None or len(tiles_SCYX) == 0:
            return self.splice(embed_TD, token_ids_T, embed_TD.new_empty(0, embed_TD.shape[-1]))
        return self.splice(embed_TD, token_ids_T, self.encode_tiles(tiles_SCYX).flatten(0, 1))

    def splice(self, embed_TD: Tensor, token_ids_T: Tensor, visual_TD: Tensor) -> Tensor:
        """Put visual tokens where `<IMG_CONTEXT>` stands; both counts must agree."""
        places = token_ids_T == self.config.image_token_id
        expected = int(places.sum())
        if expected != len(visual_TD):
            raise InternalError(
                f"The prompt has {expected} <IMG_CONTEXT> places, the tiles gave {len(visual_TD)} visual tokens."
            )
        if expected == 0:
            return embed_TD
        return embed_TD.index_put((places.nonzero(as_tuple=True)[0],), visual_TD.to(embed_TD.dtype))

    def embed_prompt(self, token_ids_T: Tensor, tiles_SCYX: Tensor) -> tuple[Tensor, Tensor]:
        """What generation reads: token ids, fewer than given where tiles are compressed, and their embeddings."""
        flash = self.config.flash
        if flash is None or not flash.enabled or len(tiles_SCYX) == 0:
            return token_ids_T, self.embed(token_ids_T, tiles_SCYX)
        token_ids_T, visual_TD = self.compress(token_ids_T, tiles_SCYX)
        return token_ids_T, self.splice(self.language_model.embed(token_ids_T), token_ids_T, visual_TD)

    def compress(self, token_ids_T: Tensor, tiles_SCYX: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and visual tokens of one request after routing all its tiles together."""
        patches_SPD = self.vision_model(tiles_SCYX, self.config.select_layer)
        compress_S = self.route(patches_SPD)
        places_T, full = token_ids_T == self.config.image_token_id, self.config.visual_tokens_per_tile
        short = round(full * self.config.downsample_ratio**2)
        return shortened(token_ids_T, places_T, compress_S, full, short), self.project_routed(patches_SPD, compress_S)

    def route(self, patches_SPD: Tensor) -> Tensor:
        """Which tiles (S,) of one request are compressed."""
        assert self.config.flash is not None
        return compressible(self.gate(patches_SPD).softmax(-1)[:, 0], self.config.flash)

    def gate(self, patches_SPD: Tensor) -> Tensor:
        """The router's logits (S, 2): compress, keep."""
        assert self.pooling_before_gating is not None and self.gating is not None
        return self.gating(self.pooling_before_gating(patches_SPD))

    def project_routed(self, patches_SPD: Tensor, compress_S: Tensor) -> Tensor:
        """Visual tokens (T, D) of all tiles in order, each by its own way."""
        full, short = iter(self.project(patches_SPD[~compress_S])), iter(self.project_short(patches_SPD[compress_S]))
        return torch.cat([next(short if compress else full) for compress in compress_S.tolist()])

    def project_short(self, patches_SPD: Tensor) -> Tensor:
        """Visual tokens of compressed tiles: shuffled by the square of the ratio, L/4 of them with 1/2."""
        assert self.mlp2 is not None
        return self.mlp2(pixel_shuffle(patches_SPD, self.config.downsample_ratio**2, self.config.pixel_shuffle))

    def positions(self, token_ids_T: Tensor, delta: float = 1.0) -> Tensor:
        """Rotary positions (T,); delta < 1 lets visual tokens take less room (V2PE)."""
        return v2pe_positions(token_ids_T == self.config.image_token_id, delta)

    def forward(
        self,
        token_ids_T: Tensor,
        tiles_SCYX: Tensor | None = None,
        attend: Attend = dense,
        positions_T: Tensor | None = None,
    ) -> Tensor:
        """Logits (T, V), fp32, of one sequence, or of several if `attend` and positions say so."""
        positions_T = self.positions(token_ids_T) if positions_T is None else positions_T
        hidden_TD = self.language_model(self.embed(token_ids_T, tiles_SCYX), positions_T, attend)
        return self.language_model.logits(hidden_TD)


def fresh(config: InternVLConfig, *, seed: int, std: float = 0.02) -> InternVL:
    """A model with random weights: normal(0, std) for matrices, zero biases, ones for scales."""
    model = InternVL(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    return model
