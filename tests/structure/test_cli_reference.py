"""docs/cli.md is what the command line says of itself. Run this file to write it again."""

import contextlib
import io
import os
import re
from pathlib import Path

from cascadevl.cli.main import VERBS, main, usage

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """\
# The command line

<!-- Generated: `python tests/structure/test_cli_reference.py` writes this page, a test compares it. -->

Exit codes: 0 done, 2 your mistake (the message says how to mend it), 1 ours, 130 interrupted.
`CASCADEVL_DEBUG=1` shows the traceback of a mistake as well; `HF_HUB_OFFLINE=1` forbids the network.
`CASCADEVL_NATIVE=0` leaves our C code out, `CASCADEVL_CACHE` names the folder of its compiled form.
"""


def reference() -> str:
    """The whole page."""
    sections = [HEAD, _block("cascadevl", usage())]
    for verb in VERBS:
        text = _help(verb)
        sections.append(_block(f"cascadevl {verb}", text))
        for name in re.findall(r"^ +• (\w+)", text, re.MULTILINE):
            sections.append(_block(f"cascadevl {verb} {name}", _help(verb, name)))
    return "\n".join(sections)


def _help(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue()


def _block(title: str, text: str) -> str:
    body = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## {title}\n\n```text\n{body}\n```\n"


def test_page_is_current(monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    assert PAGE.read_text() == reference(), "run: python tests/structure/test_cli_reference.py"


if __name__ == "__main__":
    os.environ["COLUMNS"] = "110"
    PAGE.write_text(reference())
