"""Histograms as SVG."""

from __future__ import annotations

from collections.abc import Sequence

from torchzip.errors import printable

_WIDTH, _HEIGHT = 256, 64


def histogram_svg(counts: Sequence[int], label: str) -> str:
    """Return bars as one path; a bin that is not empty has a height that can be seen."""
    most = max(counts)
    if len(counts) == 1:  # one value is a line, not a block
        counts = (0, 0, 0, 0, 0, *counts, 0, 0, 0, 0, 0)
    step = _WIDTH / len(counts)
    gap = 0.5 if len(counts) > 16 else 2.0
    bars = []
    for place, count in enumerate(counts):
        if count:
            height = max(1.0, count / most * _HEIGHT)
            bars.append(
                f"M{place * step:.4g} {_HEIGHT}v-{height:.3g}h{step - gap:.4g}v{height:.3g}z"
            )
    return (
        f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{printable(label)}"><path d="{"".join(bars)}"/></svg>'
    )
