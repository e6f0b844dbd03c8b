"""Scores of located things: intersection over union, and the share of right boxes."""

from collections.abc import Sequence

from cascadevl.core.boxes import Box, parse_boxes


def iou(first: Box, second: Box) -> float:
    """Area that two boxes share, as a part of the area that either covers; 0 where both are empty."""
    across = min(first.right, second.right) - max(first.left, second.left)
    down = min(first.bottom, second.bottom) - max(first.top, second.top)
    shared = max(0.0, across) * max(0.0, down)
    either = _area(first) + _area(second) - shared
    return shared / either if either > 0 else 0.0


def grounded(answer: str, reference: Box, width_px: int, height_px: int, *, threshold: float = 0.5) -> bool:
    """Whether the first box of an answer meets the reference (RefCOCO's Acc@0.5); no box is wrong."""
    found = parse_boxes(answer, width_px, height_px)
    return bool(found) and iou(found[0], reference) >= threshold


def grounding_accuracy(
    answers: Sequence[str],
    references: Sequence[Box],
    sizes_px: Sequence[tuple[int, int]],
    *,
    threshold: float = 0.5,
) -> float:
    """Share of answers that are `grounded`; sizes are (width, height) of the original pictures."""
    assert answers, "no answers to score"
    rows = zip(answers, references, sizes_px, strict=True)
    return sum(grounded(answer, box, *size, threshold=threshold) for answer, box, size in rows) / len(answers)


def _area(box: Box) -> float:
    return max(0.0, box.right - box.left) * max(0.0, box.bottom - box.top)
