"""The consensus of a page with places on the picture, as text, Markdown, JSON and hOCR."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cascadevl.apps.ocr_consensus.lines import PixelBox, box_of, corners_of
from cascadevl.apps.ocr_consensus.readers import Reading, Span
from cascadevl.scoring.consensus import PageQuality
from cascadevl.scoring.lattice import Column

SHOWN = 0.05
"""Doubts below it are not marked for people: a weak reader alone against all others."""


@dataclass(frozen=True, slots=True)
class Transcript:
    """What the readers of a page came to."""

    size_px: tuple[int, int]
    readers: tuple[str, ...]
    readings: tuple[Reading, ...]
    quality: PageQuality
    boxes: tuple[PixelBox | None, ...]
    """Of every column, where a reader told them."""

    @classmethod
    def of(
        cls, size_px: tuple[int, int], readers: Sequence[str], readings: Sequence[Reading], quality: PageQuality
    ) -> "Transcript":
        # Of the readers who tell places, the one whose boxes are the smallest: words rather than lines.
        spans = [sorted(reading.spans, key=lambda span: span.start) for reading in readings]
        order = sorted((at for at in range(len(spans)) if spans[at]), key=lambda at: (-len(spans[at]), readers[at]))
        boxes = tuple(_box(column, order, spans) for column in quality.columns)
        return cls(size_px, tuple(readers), tuple(readings), quality, boxes)

    @property
    def text(self) -> str:
        return self.quality.text.strip() + "\n"

    def markdown(self) -> str:
        """The text, every doubt with a footnote of what was read there."""
        out, notes = "", []
        for column in self.quality.columns:
            if column.doubt < SHOWN:
                out += (column.gap + column.text) if column.text else ""
                continue
            read = ", ".join(f"`{each.text or '(nothing)'}` {each.share:.0%}" for each in column.candidates)
            notes.append(f"[^{len(notes) + 1}]: {read}")
            out += (column.gap if column.text else "") + f"{column.text}[^{len(notes)}]"
        hard_breaks = "  \n".join(out.strip().split("\n"))
        return "\n".join([hard_breaks, "", *notes]).strip() + "\n"

    def facts(self) -> dict[str, Any]:
        """JSON: the quality of the page, its lines, and every token with doubt, candidates and box."""
        quality = self.quality
        return {
            "text": self.text,
            "expected_error": round(quality.expected_error, 4),
            "unconfirmed": round(quality.unconfirmed, 4),
            "doubt": round(quality.doubt, 4),
            "number_doubt": round(quality.number_doubt, 4),
            "raw_doubt": round(quality.raw_doubt, 4),
            "size_px": list(self.size_px),
            "readers": [
                {"name": name, "entropy": round(entropy, 4), "weight": round(weight, 4), "text": reading.text}
                for name, entropy, weight, reading in zip(
                    self.readers, quality.entropies, quality.weights, self.readings, strict=True
                )
            ],
            "medoid": self.readers[quality.medoid],
            "lines": [
                {
                    "text": line.text,
                    "doubt": round(line.doubt, 4),
                    "box": _rounded(union([self.boxes[at] for at in line.columns])),
                    "tokens": [self._token(at) for at in line.columns],
                }
                for line in quality.per_line
            ],
        }

    def _token(self, at: int) -> dict[str, Any]:
        column = self.quality.columns[at]
        facts: dict[str, Any] = {
            "text": column.text,
            "space": column.gap,
            "kind": column.kind,
            "doubt": round(column.doubt, 4),
            "box": _rounded(self.boxes[at]),
        }
        if column.doubt > 0:
            facts["candidates"] = [
                {
                    "text": each.text,
                    "share": round(each.share, 4),
                    "readers": [self.readers[reading] for reading in each.readings],
                }
                for each in column.candidates
            ]
        return facts

    def hocr(self, picture: str) -> str:
        """hOCR 1.2: lines and words with boxes, x_wconf is 100 × (1 - doubt). Tools make searchable PDFs of it.

        A token nobody placed takes the box of its line, a line nobody placed that of the page.
        """
        page: PixelBox = (0, 0, *self.size_px)
        body = []
        for number, line in enumerate(self.quality.per_line, start=1):
            whole = union([self.boxes[at] for at in line.columns]) or page
            words = [
                f"<span class='ocrx_word' id='word_1_{at}' title='{_bbox(self.boxes[at] or whole)}; "
                f"x_wconf {100 * (1 - self.quality.columns[at].doubt):.0f}'>"
                f"{html.escape(self.quality.columns[at].text)}</span>"
                for at in line.columns
                if self.quality.columns[at].text
            ]
            spaced = " ".join(words)
            body.append(f"<span class='ocr_line' id='line_1_{number}' title='{_bbox(whole)}'>{spaced}</span>")
        title = html.escape(f'image "{picture}"; {_bbox(page)}; ppageno 0', quote=True)
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html>\n'
            '<html xmlns="http://www.w3.org/1999/xhtml"><head><meta charset="utf-8"/><title></title>'
            "<meta name='ocr-system' content='cascadevl'/>"
            "<meta name='ocr-capabilities' content='ocr_page ocr_line ocrx_word ocrp_wconf'/></head><body>\n"
            f"<div class='ocr_page' id='page_1' title='{title}'>\n" + "\n".join(body) + "\n</div></body></html>\n"
        )


def union(boxes: Sequence[PixelBox | None]) -> PixelBox | None:
    """The smallest box around all that are known."""
    known = [box for box in boxes if box is not None]
    if not known:
        return None
    left, top, right, bottom = zip(*known, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _box(column: Column, order: Sequence[int], spans: Sequence[Sequence[Span]]) -> PixelBox | None:
    """Of the first reader who has something in the column and tells where."""
    for reading in order:
        place = column.places[reading]
        if place and (box := union([_part(span, *place) for span in spans[reading]])):
            return box
    return None


def _part(span: Span, start: int, end: int) -> PixelBox | None:
    """The part of a place that some of its characters take, all being of one width."""
    first, last = max(span.start, start), min(span.end, end)
    if first >= last:
        return None
    x1, y1, x2, y2, x3, y3, x4, y4 = span.corners or corners_of(span.box)
    a, b = ((at - span.start) / (span.end - span.start) for at in (first, last))
    top, bottom = (x2 - x1, y2 - y1), (x3 - x4, y3 - y4)
    return box_of(
        (
            *(x1 + a * top[0], y1 + a * top[1], x1 + b * top[0], y1 + b * top[1]),
            *(x4 + b * bottom[0], y4 + b * bottom[1], x4 + a * bottom[0], y4 + a * bottom[1]),
        )
    )


def _bbox(box: PixelBox) -> str:
    return "bbox " + " ".join(f"{edge:.0f}" for edge in box)


def _rounded(box: PixelBox | None) -> list[float] | None:
    return [round(edge, 1) for edge in box] if box else None
