"""How many errors to expect of a transcript: what its readers disagree on, and how sure the best of them says it is.

Both find bad pages, and neither sees what the other does: readers that share an error agree on it, and a reader may be
sure of what it misread. Their product, each to about the power of a half, predicts the error of a page better than
either; a fit of the logarithms on the development pages of `benchmarks/ocr_signals.py` says so, and gives the numbers.
Of third figures (doubts of tokens and numbers, other readers' confidences, lengths) one gained more, doubt of tokens,
and that by lowering the expectation as it grows, which we do not believe of other pages.
"""

FLOOR = 0.01
"""Added to rates before logarithms are taken: below it, more or less is chance."""
BY_DISTANCE = (0.289, 0.796)
"""Factor, and power of the distance to the nearest other reading."""
BY_BOTH = (0.965, 0.569, 0.519)
"""Factor, power of that distance, and power of one less the best reader's confidence (that of rapidocr)."""


def expected_error(unconfirmed: float, own_doubt: float | None = None) -> float:
    """Edits per character, at most 1: a middle value, which half of such pages exceed.

    `own_doubt` is 1 less the own confidence of the best reader, as far as it tells one that means what rapidocr's does.
    """
    if own_doubt is None:
        factor, power = BY_DISTANCE
        return min(1.0, factor * (unconfirmed + FLOOR) ** power)
    factor, power, own_power = BY_BOTH
    return min(1.0, factor * (unconfirmed + FLOOR) ** power * (own_doubt + FLOOR) ** own_power)
