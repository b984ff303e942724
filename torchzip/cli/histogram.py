"""A histogram in characters."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:#"
#: Characters of the plot, and of the widest bar.
_WIDTH = 64
_BAR = 8


def can_encode(encoding: str | None) -> bool:
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def histogram_lines(
    counts: Sequence[int], ends: tuple[str, str], *, height: int = 6, blocks: bool = True
) -> list[str]:
    """Return bars in lines of at most 80 characters, with the two ends of the axis below.

    The scale is linear, but every bin that is not empty is visible.

    >>> print("\\n".join(histogram_lines([1, 4], ("0", "8"), height=2)))
    4 ┤        ████████
      │▄▄▄▄▄▄▄▄████████
    0 └────────────────
       0              8
    """
    levels = _BLOCKS if blocks else _ASCII
    full = len(levels) - 1
    most = max(counts)
    bar = max(1, min(_BAR, _WIDTH // len(counts)))
    sizes = [max(1, round(count * height * full / most)) if count else 0 for count in counts]
    top = f"{most:,}" if most < 10**9 else f"{most:.3g}"
    tick, side, corner, line = "┤│└─" if blocks else "||+-"
    lines = []
    for row in reversed(range(height)):
        cells = "".join(levels[min(max(size - row * full, 0), full)] * bar for size in sizes)
        label = top if row == height - 1 else ""
        lines.append(f"{label:>{len(top)}} {tick if label else side}{cells}".rstrip())
    width = bar * len(counts)
    lines.append(f"{'0':>{len(top)}} {corner}{line * width}")
    left, right = ends
    gap = max(1, width - len(left) - len(right))
    lines.append(f"{'':{len(top)}}  {left}{'' if left == right else ' ' * gap + right}")
    return lines
