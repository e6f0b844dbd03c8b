"""From the words of the command line to readers at their desks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cascadevl.apps.ocr_consensus.hosted import Hosted, Kept
from cascadevl.apps.ocr_consensus.models import ModelReader, ModelSpec, model_version, open_endpoint, open_model, parse
from cascadevl.apps.ocr_consensus.readers import (
    PACKAGES,
    READERS,
    Cleaned,
    EasyOcr,
    OnLines,
    Program,
    RapidOcr,
    Reader,
    Tesseract,
    check_installed,
    check_language,
    is_installed,
)
from cascadevl.apps.ocr_consensus.run import Desk
from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.core.generation import Sampling

CLEAN = "clean:"
"""Before the name of a reader: it is shown the cleaned picture."""
STRONG = ("rapidocr", "clean:tesseract", "easyocr")
"""What "auto" takes: three families that were trained apart, as measured by benchmarks/ocr_consensus.py."""
WEAK = ("clean:gocr", "clean:ocrad")
"""What it takes besides where too few of those are installed."""
FINDERS = ("rapidocr", "tesseract")
"""Whose lines a line reader reads, the better one first."""
FEWEST = 2
"""Readers without which nothing can be compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Who reads, and who is the expert; checked when made, before a page is opened or a weight loaded."""

    readers: tuple[str, ...]
    """Names of `READERS`, models, addresses; "auto" alone: what is installed of the three strong ones."""
    expert: str | None = None
    language: str = "eng"
    timeout_s: float = 300.0
    max_new_tokens: int = 2048
    key: str | None = None
    """Sent to addresses as a bearer token."""

    def __post_init__(self) -> None:
        names = [each.name for spec in self.specs for each in _named(spec)]
        if len(names) < FEWEST:
            raise ConfigError(
                f"{', '.join(names) or 'Nobody'} alone has nobody to disagree with: name two readers or more."
            )
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"Two readers are called {name!r}: their doubts could not be told apart.")
        for spec in (*self.specs, *([self.expert] if self.expert else [])):
            self._check(spec)

    @property
    def specs(self) -> tuple[str, ...]:
        if self.readers != ("auto",):
            return self.readers
        found = tuple(spec for spec in STRONG if is_installed(spec.removeprefix(CLEAN)))
        if len(found) < FEWEST:
            found += tuple(spec for spec in WEAK if is_installed(spec.removeprefix(CLEAN)))
        if len(found) < FEWEST:
            ways = "; ".join(f"{name}: {how}" for name, how in PACKAGES.items())
            raise MissingExtra(
                f"Of the readers that are programs, {', '.join(found) or 'none'} is installed, and two are needed. "
                f"Install some ({ways}), or name models with --readers."
            )
        return found

    def desk(self, cache: Path) -> Desk:
        """One worker's readers. Nothing is loaded until the first page that nobody has read yet."""
        opened: dict[str, list[Reader]] = {}
        hosted: list[Hosted] = []
        readers = [reader for spec in self.specs for reader in self._open(spec, cache, opened, hosted)]
        expert = self._open(self.expert, cache, opened, hosted)[0] if self.expert else None
        kept = [Kept(reader, cache) for reader in readers]
        assert expert is None or isinstance(expert, Hosted | ModelReader)
        return Desk(readers=kept, expert=expert, close=lambda: [each.close() for each in hosted])

    def _check(self, spec: str) -> None:
        name = spec.removeprefix(CLEAN)
        if spec == self.expert and (name in READERS or len(_named(spec)) > 1):
            raise ConfigError(f"The expert {spec!r} must be one model: it is shown the readings of the others.")
        if name in READERS:
            check_installed(name)
            if name == "tesseract":
                check_language(self.language)
        elif spec.startswith(CLEAN):
            raise ConfigError(f"{spec!r}: {CLEAN} goes before one of {', '.join(READERS)}.")
        else:
            for model in parse(spec):
                model_version(model)

    def _open(self, spec: str, cache: Path, opened: dict[str, list[Reader]], hosted: list[Hosted]) -> list[Reader]:
        """The readers of a spec; what two specs share, such as rapidocr and its lines for easyocr, is made once."""
        if spec not in opened:
            found = self._make(spec, lambda inner: self._open(inner, cache, opened, hosted)[0], cache, hosted)
            hosted += [each for each in found if isinstance(each, Hosted)]
            opened[spec] = found
        return opened[spec]

    def _make(self, spec: str, other: Callable[[str], Reader], cache: Path, hosted: list[Hosted]) -> list[Reader]:
        if spec.startswith(CLEAN):
            return [Cleaned(other(spec.removeprefix(CLEAN)))]
        match spec:
            case "tesseract":
                return [Tesseract(language=self.language, timeout_s=self.timeout_s)]
            case "rapidocr":
                return [Hosted("rapidocr", RapidOcr().version, RapidOcr, timeout_s=self.timeout_s)]
            case "easyocr":
                worker = Hosted("easyocr", EasyOcr().version, EasyOcr, timeout_s=self.timeout_s)
                hosted.append(worker)
                finder = next(filter(is_installed, FINDERS), None)
                return [OnLines(worker, Kept(other(finder), cache) if finder else None)]
            case "gocr" | "ocrad":
                program = READERS[spec]()
                assert isinstance(program, Program)
                return [Program(name=spec, command=program.command, timeout_s=self.timeout_s)]
            case _:
                return [self._open_model(model) for model in parse(spec)]

    def _open_model(self, spec: ModelSpec) -> Reader:
        sampling = Sampling(max_new_tokens=self.max_new_tokens)
        if spec.is_address:
            return open_endpoint(spec, sampling, self.key, self.timeout_s)
        make = functools.partial(open_model, spec, sampling)
        return Hosted(spec.name, f"{model_version(spec)} {self.max_new_tokens}", make, timeout_s=self.timeout_s)


def _named(spec: str) -> list[ModelSpec]:
    return [ModelSpec(spec)] if spec.removeprefix(CLEAN) in READERS else parse(spec)
