"""Letters of every tensor name, and the integers that lead from pictures to tokens.

T  tokens of one packed sequence      S  tiles (square pictures of tile_px × tile_px)
D  width of a hidden state            P  patches of one tile, the CLS entry included
N  query heads                        L  visual tokens of one tile after pixel shuffle
K  key (and value) heads              C Y X  channels, rows and columns of pixels
H  size of one head                   R  requests of a batch
F  width of a feed-forward layer      E  experts
V  vocabulary                         G  rollouts of one prompt

A name carries its letters in order: `hidden_TD`, `tiles_SCYX`, `q_TNH`.
"""

Grid = tuple[int, int]
"""(columns, rows) of the tiles of one picture, the thumbnail not counted."""


def visual_tokens_per_tile(tile_px: int, patch_px: int, downsample_ratio: float) -> int:
    """L: tokens that one tile becomes; 448, 14, 0.5 give 256 (InternVL 1.5, §3.2)."""
    return int((tile_px // patch_px) ** 2 * downsample_ratio**2)


def num_tiles(grid: Grid, thumbnail: bool) -> int:
    """Tiles of one picture. A thumbnail follows whenever there is more than one tile."""
    columns, rows = grid
    tiles = columns * rows
    return tiles + 1 if thumbnail and tiles > 1 else tiles
