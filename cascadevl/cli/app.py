"""Programs for people, made of the engine and the methods."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cascadevl.core.errors import ConfigError

DOUBTFUL = 3
"""Exit code: all went well, and pages remain that nobody should trust unread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ocr:
    """Read pages with several readers and mark where they disagree: cascadevl app ocr scans/ --out read/

    Started again, it goes on where it stopped. Exit code 3: doubtful pages remain.
    """

    pages: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="PAGES …")]
    """Pictures, PDFs, or folders of them."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """Folder for text, Markdown, JSON, hOCR and HTML of each page, report.json and index.html."""
    readers: str = "auto"
    """Separated by commas, the first decides ties: tesseract, rapidocr, easyocr, gocr, ocrad, clean:NAME (shown a
    cleaned picture), a model's name or folder (MODEL*3 draws three samples), http://host:8000/v1#model.
    "auto" takes what is installed."""
    language: str = "eng"
    """Of tesseract; several joined by +."""
    max_error: float = 0.04
    """Pages with a larger expected error rate are doubtful."""
    max_doubt: float = 0.1
    """Pages whose two nearest readings differ by more are doubtful."""
    max_number_doubt: float = 0.15
    """Pages with a number that is more doubtful are doubtful too."""
    expert: str | None = None
    """A model, or an address as above, that is shown the doubtful lines of doubtful pages with all readings."""
    expert_share: float = 0.1
    """Part of all pages that the expert may see, the most doubtful first."""
    truth: Path | None = None
    """Folder of true texts, NAME.txt: error rates and the best --max-doubt go into report.json."""
    workers: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Pages that are read at once, None: one per core; each worker loads the models for itself."""
    timeout: Annotated[float, tyro.conf.arg(metavar="S")] = 120.0
    """Seconds after which a reader of a page is killed; the others go on."""
    max_new_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = 2048
    """Length of what a model reads."""
    pdf: bool = False
    """Also a searchable PDF of every file."""
    daft: bool = False
    """Share out the pages with Daft: over the cores, or with DAFT_RUNNER=ray over a cluster."""
    json: bool = False
    """Print report.json."""

    def __post_init__(self) -> None:
        if not self.pages:
            raise ConfigError("No pages: name pictures, PDFs, or folders of them.")
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"--workers must be at least 1, got {self.workers}.")
        if self.truth is not None and not self.truth.is_dir():
            raise ConfigError(f"--truth must be a folder of texts, got {str(self.truth)!r}.")
        if not self.timeout > 0:
            raise ConfigError(f"--timeout must be positive, got {self.timeout}.")


def main(arguments: list[str]) -> int:
    order = tyro.extras.subcommand_cli_from_dict(
        APPS,
        prog="cascadevl app",
        description="Programs made of the engine and the methods.",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return ocr(order)


def ocr(order: Ocr) -> int:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from cascadevl.apps.ocr_consensus.choose import Choice
    from cascadevl.apps.ocr_consensus.pages import find_pages
    from cascadevl.apps.ocr_consensus.run import Limits, Run

    limits = Limits(
        max_error=order.max_error,
        max_doubt=order.max_doubt,
        max_number_doubt=order.max_number_doubt,
        expert_share=order.expert_share,
    )
    choice = Choice(
        readers=tuple(filter(None, order.readers.split(","))),
        expert=order.expert,
        language=order.language,
        timeout_s=order.timeout,
        max_new_tokens=order.max_new_tokens,
        key=os.environ.get("OPENAI_API_KEY"),
    )
    sources = find_pages(order.pages)
    workers = order.workers or os.cpu_count() or 1
    if order.daft:
        from cascadevl.apps.ocr_consensus.cluster import read_on_cluster

        read_on_cluster(sources, choice, Run(out=order.out, desks=(), limits=limits, pdf=order.pdf), workers)
    desks = [choice.desk(order.out / ".readings") for _ in range(min(workers, len(sources)))]
    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        run = Run(out=order.out, desks=desks, limits=limits, truth=order.truth, pdf=order.pdf, progress=progress)
        report = run(sources)
    if order.json:
        print(json.dumps(report, ensure_ascii=False))
    print(
        f"{report['num_pages']} pages, {report['num_doubtful']} doubtful, {report['num_failed']} could not be read. "
        f"The worst first: {order.out / 'index.html'}",
        file=sys.stderr,
    )
    return DOUBTFUL if report["num_doubtful"] else 0


APPS = {"ocr": Ocr}
"""Name -> what it takes."""
