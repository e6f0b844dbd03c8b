"""The pages of a large collection read by a Daft cluster: every worker has readers of its own.

Daft (https://www.daft.ai, the package daft) runs on the cores of one machine or, with DAFT_RUNNER=ray, on the
machines of a cluster that see the same folders. A page that a worker has finished is finished for everybody: the run
that follows only reports, and resumes what is missing.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cascadevl.apps.ocr_consensus.choose import Choice
from cascadevl.apps.ocr_consensus.pages import Source
from cascadevl.apps.ocr_consensus.run import Run
from cascadevl.core.errors import MissingExtra


def read_on_cluster(sources: Sequence[Source], choice: Choice, run: Run, workers: int) -> list[dict[str, Any]]:
    """Rows of the report, in order. `run` has no desks: each worker makes one."""
    # Daft tells its makers that it was imported; where somebody reads which pages is nobody else's business.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        import daft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtra("Reading on a cluster needs Daft: pip install daft.") from error
    frame = daft.from_pydict(
        {
            "path": [str(source.path.absolute()) for source in sources],
            "page": [source.page for source in sources],
            "name": [source.name for source in sources],
        }
    )
    reader = daft.cls(PageReader, max_concurrency=workers)(choice, run)
    rows = frame.with_column("row", reader(frame["path"], frame["page"], frame["name"])).to_pydict()["row"]
    return [json.loads(row) for row in rows]


class PageReader:
    """A worker: its readers live as long as it does."""

    def __init__(self, choice: Choice, run: Run) -> None:
        self.desk = choice.desk(run.out / ".readings")
        self.run = run

    def __call__(self, path: str, page: int, name: str) -> str:
        return json.dumps(self.run.read(Source(Path(path), page, name), self.desk))
