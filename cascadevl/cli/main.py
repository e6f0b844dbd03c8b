"""The table of verbs, and what a user sees when something goes wrong.

Nothing heavy is imported here: help, a wrong verb and the version are answered from the table alone,
and a verb's own file is imported when it is called.
"""

import difflib
import errno
import importlib
import os
import sys
import traceback
from types import ModuleType

import cascadevl
from cascadevl.core.errors import UserError

VERBS = {
    "ask": ("cascadevl.cli.ask", "Ask a model about pictures and videos; without any words, chat with it."),
    "app": ("cascadevl.cli.app", "Programs made of the models: ocr reads pages several times and marks the doubts."),
    "bench": ("cascadevl.cli.bench", "How fast a model is here, beside what is possible; bench serve: a server."),
    "convert": (
        "cascadevl.cli.convert",
        "Rewrite a checkpoint in another official layout, and prove it equal.",
    ),
    "data": (
        "cascadevl.cli.data",
        "Look at data before training: check, show, stats, schema; diff two models.",
    ),
    "doctor": ("cascadevl.cli.doctor", "What this machine has, what is missing, and what that would unlock."),
    "estimate": ("cascadevl.cli.estimate", "What a question will take before it is asked: memory, products, seconds."),
    "quantize": ("cascadevl.cli.quantize", "Round a model's weights to few bits; a card says what it cost."),
    "serve": ("cascadevl.cli.serve", "Serve a model over HTTP to whatever speaks OpenAI's API."),
    "train": ("cascadevl.cli.train", "Run a training recipe."),
}
"""Verb -> (its file, one line of help). The file has `main(arguments: list[str]) -> int`."""

OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
"""Disks that are full or closed to the user: whoever calls can mend them, and no report would."""

DONE, OURS, THEIRS, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 2 the user's mistake, 1 ours."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if verb in ("-h", "--help"):
            code = _say(usage())
        elif verb in ("-V", "--version"):
            code = _say(f"cascadevl {cascadevl.__version__}")
        else:
            code = _room(verb).main(rest)
        sys.stdout.flush()
        return code
    except UserError as mistake:
        if os.environ.get("CASCADEVL_DEBUG") == "1":
            traceback.print_exc()
        print(f"error: {mistake}", file=sys.stderr)
        return THEIRS
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more on its way out: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
            where = f" ({error.filename})" if error.filename else ""
            print(f"error: {error.strerror}{where}. Make room, or choose a place you may use.", file=sys.stderr)
            return THEIRS
        traceback.print_exc()
        print(
            f"error: this is our mistake, not yours (cascadevl {cascadevl.__version__}, verb {verb!r}). "
            "Please report the lines above.",
            file=sys.stderr,
        )
        return OURS


def usage() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items())
    return (
        "usage: cascadevl VERB …\n\n"
        f"{rows}\n\n"
        "`cascadevl VERB --help` tells the rest; `cascadevl --version` the version.\n"
        'Try: cascadevl ask receipt.png "What is the total?"'
    )


def _room(verb: str) -> ModuleType:
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Expected one of {', '.join(VERBS)}."
        raise UserError(f"Unknown verb {verb!r}. {hint} `cascadevl --help` explains them.")
    return importlib.import_module(VERBS[verb][0])


def _say(text: str) -> int:
    print(text)
    return DONE
