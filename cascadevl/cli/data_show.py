"""A sample as the model sees it: its prompt with the trained tokens coloured, and its tiles as a picture."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from PIL import Image
from rich.console import Console
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.cli.view import View
from cascadevl.core.errors import ConfigError
from cascadevl.core.messages import Conversation
from cascadevl.data.rows import READERS
from cascadevl.data.sources import Dataset, Example, open_data
from cascadevl.preprocessing.image import open_image

if TYPE_CHECKING:
    from torch import Tensor

GAP_PX = 4
"""Between tiles of a contact sheet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Show:
    """Print samples as the model sees them: cascadevl data show receipts.jsonl 17

    A picture and a question in quotes do as well: cascadevl data show receipt.png "What is the total?"
    """

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A file of rows, a folder of them, an InternVL meta file, or a picture."""
    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[INDEX … | QUESTION]")] = ()
    """Rows, counted from 1 over all files, or as in receipts.jsonl:17; the first if none is named."""
    model: str = "nano"
    """An embedded model, a folder, or a hub id."""
    tiles: Annotated[Path | None, tyro.conf.arg(metavar="OUT.png")] = None
    """Save the tiles that the model looks at, each picture as its grid with the thumbnail beside it."""
    max_tiles: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tile limit; None leaves it to the data set and the model."""
    format: Literal["auto", "conversations", "messages", "columns", "interleaved"] = "auto"
    """Form of the rows; auto is that of the first readable row of each file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where relative paths of pictures begin; None: where the file lies."""
    json: bool = False
    """Print one JSON object a sample."""


def show(order: Show) -> int:
    if order.path.is_dir() or order.path.suffix.lower() in READERS:
        found = [find(open_data(order.path, order.format, order.root), word) for word in order.words or ("1",)]
    else:
        if len(order.words) != 1:
            raise ConfigError(f"To show {str(order.path)!r}, a picture, give one question in quotes behind it.")
        question = Conversation.ask(order.words[0], [open_image(order.path)])
        found = [(Example(question, order.path.name), None)]
    if order.tiles and len(found) > 1:
        raise ConfigError("--tiles saves the tiles of one sample: name one row.")
    locate(order.model)
    from cascadevl.checkpoints.load import load_processor

    processor = load_processor(order.model)
    for example, max_tiles in found:
        view = View.of(processor, example.conversation, order.max_tiles or max_tiles)
        if order.json:
            print(json.dumps({"id": example.id, **view.facts()}, ensure_ascii=False))
        else:
            _print(example.id, view)
        if order.tiles:
            _save(contact_sheet(view), order.tiles)
    return 0


def find(datasets: list[Dataset], word: str) -> tuple[Example, int | None]:
    """A row by its number, and the tile limit of its data set."""
    name, _, number = word.rpartition(":")
    among = [dataset for dataset in datasets if not name or dataset.source.name == name]
    num_rows = sum(len(dataset.source) for dataset in among)
    if not number.isdecimal() or not 1 <= int(number) <= num_rows:
        names = ", ".join(f"{dataset.source.name} ({len(dataset.source)} rows)" for dataset in datasets[:5])
        raise ConfigError(f"There is no row {word!r} in {names}. Rows count from 1.")
    index = int(number) - 1
    for dataset in among:
        if index < len(dataset.source):
            return dataset.source[index], dataset.max_tiles
        index -= len(dataset.source)
    raise AssertionError("the number is within the sum of all rows")


def _print(id: str, view: View) -> None:
    """Trained tokens green on a terminal, between ⟦ and ⟧ in a file or a pipe."""
    console = Console()
    prompt = Text()
    for token, trained, before, behind in zip(
        view.tokens, view.trained, [False, *view.trained], [*view.trained[1:], False], strict=False
    ):
        if console.is_terminal:
            prompt.append(token, "bold green" if trained else "")
        else:
            prompt.append(f"{'⟦' * (trained and not before)}{token}{'⟧' * (trained and not behind)}")
    console.print(Text(id, "bold"))
    console.print(prompt, soft_wrap=True)
    console.print(Text(f"\n{view.summary}, {view.num_trained} trained; spec {view.spec['hash']}"), soft_wrap=True)


def contact_sheet(view: View) -> Image.Image:
    """Pictures one below the other, each as its grid with the thumbnail at its right."""
    tiles = list(view.tiles)
    rows: list[list[list[Tensor]]] = []
    rest = iter(tiles)
    for columns, num_rows in view.grids:
        grid = [[next(rest) for _ in range(columns)] for _ in range(num_rows)]
        if columns * num_rows > 1 and view.spec["thumbnail"]:
            grid[0].append(next(rest))
        rows.append(grid)
    if not rows:
        raise ConfigError("The sample has no pictures: there are no tiles to save.")
    side = view.spec["tile_px"] + GAP_PX
    width = max(len(line) for grid in rows for line in grid)
    sheet = Image.new("RGB", (width * side + GAP_PX, sum(map(len, rows)) * side + GAP_PX), "white")
    for top, line in enumerate(line for grid in rows for line in grid):
        for left, tile_CYX in enumerate(line):
            picture = Image.fromarray(tile_CYX.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(picture, (left * side + GAP_PX, top * side + GAP_PX))
    return sheet


def _save(sheet: Image.Image, path: Path) -> None:
    try:
        sheet.save(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--tiles cannot be saved as {str(path)!r}: {error}. Name a .png in a folder.") from None
