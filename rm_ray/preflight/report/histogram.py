"""Text histograms."""

from __future__ import annotations

import numpy as np

BAR = 40
"""Width of the longest bar, in characters."""


def histogram(values: np.ndarray, *, most_rows: int = 10) -> list[str]:
    """Return the rows of a text histogram with up to ``most_rows`` ranges of equal width."""
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // most_rows))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(values, bins=edges)
    digits, most = len(f"{edges[-1]:,}"), counts.max()
    return [
        f"{edge:>{digits},} to {edge + width - 1:>{digits},}  {count:>{len(f'{most:,}')},}  "
        f"{'#' * round(BAR * count / most)}".rstrip()
        for edge, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True)
    ]
