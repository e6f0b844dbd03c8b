"""Pages for people: the picture beside the text, doubts coloured; and the table of all pages, the worst first."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from PIL import Image

PICTURE_PX = 1600
"""Longer side of the picture inside a page: enough to read a doubtful word, and some 200 KB."""


def page_html(name: str, image: Image.Image, facts: Mapping[str, Any], *, shown: float) -> str:
    """One file that needs nothing beside it: no network, no other file."""
    small = image.copy()
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    buffer = io.BytesIO()
    small.convert("RGB").save(buffer, "JPEG", quality=80)
    data = {"name": name, "shown": shown, **facts}
    return _fill(
        "page.html",
        TITLE=html.escape(name),
        PICTURE="data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(),
        DATA=_script_json(data),
    )


def index_html(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> str:
    """`rows` are entries of report.json, the most doubtful first."""
    body = "\n".join(_row(row) for row in rows)
    facts = " · ".join(f"{html.escape(str(name))} {html.escape(str(value))}" for name, value in summary.items())
    return _fill("index.html", SUMMARY=facts, ROWS=body)


def _row(row: Mapping[str, Any]) -> str:
    name = html.escape(str(row["name"]), quote=True)
    if "error" in row:
        return f'<tr class="bad"><td>{name}</td><td colspan="7">{html.escape(row["error"])}</td></tr>'
    failed = ", ".join(row["failed"])
    routed = f" → {row['expert']}" if row.get("expert") else ""
    expected = row["expected_error"]
    return (
        f'<tr class="{"bad" if row["doubtful"] else "good"}"><td><a href="{name}.html">{name}</a></td>'
        f'<td><span class="bar"><i style="width: {expected:.0%}"></i></span>{expected:.3f}</td>'
        f"<td>{row['unconfirmed']:.3f}</td><td>{row['doubt']:.3f}</td>"
        f"<td>{row['number_doubt']:.3f}</td><td>{row['num_doubts']}</td>"
        f"<td>{row['num_readers']}{html.escape(routed)}</td><td>{html.escape(failed)}</td></tr>"
    )


def _script_json(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")


def _fill(template: str, **values: str) -> str:
    """One pass, so that what a page says is never taken for a name to be filled in."""
    text = resources.files("cascadevl.apps.ocr_consensus").joinpath(template).read_text(encoding="utf-8")
    pieces = text.split("@@")
    assert len(pieces) % 2 == 1, f"{template}: @@ must come in pairs"
    return "".join(values[piece] if at % 2 else piece for at, piece in enumerate(pieces))
