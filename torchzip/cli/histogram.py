"""A histogram in characters."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:#"
#: Characters of the plot, and of the widest bar.
_WIDTH = 64
_BAR = 8
#: The widest label of the axis, which is 999,999,999, with the line beside it.
_LABEL = 13


def can_encode(encoding: str | None) -> bool:
    try:
        _BLOCKS.encode(encoding or "ascii")
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def histogram_lines(
    counts: Sequence[int],
    ends: tuple[str, str],
    *,
    height: int = 6,
    blocks: bool = True,
    width: int | None = None,
) -> list[str]:
    """Return bars in lines of at most 80 characters, with the two ends of the axis below.

    On a screen of a smaller ``width``, neighbouring bins are put together until the plot fits. The
    scale is linear, but every bin that is not empty is visible.

    >>> print("\\n".join(histogram_lines([1, 4], ("0", "8"), height=2)))
    4 ┤        ████████
      │▄▄▄▄▄▄▄▄████████
    0 └────────────────
       0              8
    """
    levels = _BLOCKS if blocks else _ASCII
    full = len(levels) - 1
    room = _WIDTH if width is None else min(_WIDTH, width - _LABEL)
    counts = _put_together(counts, room)
    most = max(counts)
    bar = max(1, min(_BAR, room // len(counts)))
    sizes = [max(1, round(count * height * full / most)) if count else 0 for count in counts]
    top = f"{most:,}" if most < 10**9 else f"{most:.3g}"
    tick, side, corner, line = "┤│└─" if blocks else "||+-"
    lines = []
    for row in reversed(range(height)):
        cells = "".join(levels[min(max(size - row * full, 0), full)] * bar for size in sizes)
        label = top if row == height - 1 else ""
        lines.append(f"{label:>{len(top)}} {tick if label else side}{cells}".rstrip())
    plot = bar * len(counts)
    lines.append(f"{'0':>{len(top)}} {corner}{line * plot}")
    left, right = ends
    gap = max(1, plot - len(left) - len(right))
    lines.append(f"{'':{len(top)}}  {left}{'' if left == right else ' ' * gap + right}")
    return lines


def _put_together(counts: Sequence[int], room: int) -> Sequence[int]:
    """Return sums of neighbouring bins, no more than ``room`` of them; the last may have fewer."""
    each = -(-len(counts) // room)
    return [sum(counts[start : start + each]) for start in range(0, len(counts), each)]
