"""nano's stages: what it is shown, in which order, how long and at which rate.

A curriculum: letters, then one short line, then lines, then pages and receipts, then all families of the gym. What the
weights that ship went through is in the card, `cascadevl/embedded/nano/README.md`; "joint" is its last part as it was
run, the stages before it are a cleaned form of what came first. Nothing here needs torch, so that a command line can
name the stages before it is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cascadevl.core.errors import ConfigError

START, LAST = "start", "last"
"""In the folder of a run: the model it began with, and its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stretch of training."""

    name: str
    mixture: Mapping[str, float]
    """Weight of each family; settings of a family follow its name: "line:difficulty=easy"."""
    steps: int
    lr: float
    warmup: int = 100
    decay: int = 0
    """Last steps, in which a cosine takes the rate to zero."""
    parts: tuple[str, ...] = ("",)
    """Beginnings of the names of the parameters that learn; "" is all of them."""
    glyph_weight: float = 1.0
    """Weight of the dense character targets of the tower."""
    next_token: bool = True
    """Off: the decoder is not even run."""
    pointing: tuple[int, ...] = (1, 2, 3)
    """Decoder layers with a head that is shown where to look."""
    max_tiles: int = 64
    max_tokens: int = 4096
    """Budget of a pack; the optimizer steps once per pack."""


def stages() -> list[Stage]:
    """All of them, in order."""
    return [
        Stage(
            name="letters",
            mixture={"letters": 4.0, "letters:difficulty=easy": 1.0, "line": 0.5, "paragraph": 1.0},
            steps=2500,
            lr=2e-3,
            parts=("vision_model.", "out."),
            next_token=False,
            max_tiles=48,
        ),
        Stage(
            name="words",
            mixture={"line:difficulty=easy,max_tiles=1": 1.0},
            steps=300,
            lr=2e-3,
            parts=("language_model.", "mlp1."),
            glyph_weight=0.0,
            max_tiles=48,
        ),
        Stage(
            name="lines",
            mixture={
                "line:difficulty=easy,max_tiles=1": 1.0,
                "line:difficulty=easy": 2.0,
                "line:max_tiles=3": 1.0,
                "letters": 1.0,
            },
            steps=5000,
            lr=2e-3,
            max_tiles=40,
        ),
        Stage(
            name="everything",
            mixture={"line": 4.0, "paragraph": 2.0, "keyvalue": 3.0, "charts": 1.5, "shapes": 1.0, "locate": 0.5},
            steps=12000,
            decay=3000,
            lr=2e-3,
            max_tiles=48,
        ),
        joint(),
    ]


def joint() -> Stage:
    """All families at once, one cosine to zero: what nano is trained on with, again and again."""
    return Stage(
        name="joint",
        mixture={
            "line:difficulty=easy": 1.0,
            "line": 1.4,
            "letters": 0.3,
            "paragraph": 0.9,
            "keyvalue": 2.0,
            "charts": 2.4,
            "shapes": 2.4,
            "locate:max_tiles=1": 0.7,
            "locate": 0.3,
            "several": 0.4,
            "clips": 0.4,
            "captions": 5.0,
            "reports": 0.4,
        },
        steps=2450,
        warmup=10,
        decay=2440,
        lr=1e-3,
        glyph_weight=0.6,
        max_tiles=48,
    )


def number_of(name: str, course: Sequence[Stage]) -> int:
    """Where a stage stands. Raises ConfigError for a name that none has."""
    names = [stage.name for stage in course]
    if name not in names:
        raise ConfigError(f"There is no stage {name!r}: expected one of {', '.join(names)}.")
    return names.index(name)


def is_run(init: str) -> bool:
    """Whether this names the folder of a run, and no model."""
    return all((Path(init) / name).is_dir() for name in (START, LAST))
