"""The error tree. A message says what was got, what was expected, and what to do.

CascadeError
├── UserError                 the caller's mistake; the command line exits with 2
│   ├── MessageError          (ValueError) roles, parts, placeholders, empty questions
│   ├── MediaError            (ValueError) a picture or video that cannot be used
│   ├── DataError             (ValueError) a row of somebody's data that cannot be learned from
│   ├── ConfigError           (ValueError) settings that contradict each other or do not exist
│   ├── SpecMismatch          (ValueError) two preprocessing specs meet and differ
│   ├── CheckpointError       (ValueError) a folder whose contents do not fit
│   │   └── CheckpointNotFound    (FileNotFoundError) no such folder, no hub
│   └── MissingExtra          (ImportError) an optional package is not installed
└── InternalError             ours; the command line exits with 1
"""


class CascadeError(Exception):
    """Everything this package raises on purpose."""


class UserError(CascadeError):
    """The caller can mend it: the message says how."""


class MessageError(UserError, ValueError):
    """A conversation that cannot be rendered."""


class MediaError(UserError, ValueError):
    """A picture or video that cannot be opened, or is larger than allowed."""


class DataError(UserError, ValueError):
    """A row of somebody's data that cannot be learned from."""

    def __init__(self, where: str, problem: str, fix: str, kind: str = "other") -> None:
        # All four are arguments of the exception, so that it can be pickled by a worker.
        super().__init__(where, problem, fix, kind)
        self.where = where
        """The row, such as `receipts.jsonl:17`, or the file."""
        self.problem = problem
        self.fix = fix
        self.kind = kind
        """A few words that are the same for all rows with this problem."""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem} {self.fix}"


class ConfigError(UserError, ValueError):
    """Settings that contradict each other, or that nobody knows."""


class SpecMismatch(UserError, ValueError):
    """Two preprocessing specs that should agree differ; the message names the fields."""


class CheckpointError(UserError, ValueError):
    """A checkpoint folder whose files do not fit together."""


class CheckpointNotFound(CheckpointError, FileNotFoundError):
    """Neither a folder, nor an embedded model, nor reachable on a hub."""

    # OSError.__str__ formats errno tuples; a single message must print as it is.
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MissingExtra(UserError, ImportError):
    """An optional dependency is needed here; the message names the extra that brings it."""


class InternalError(CascadeError):
    """An invariant of ours broke: please report it."""
