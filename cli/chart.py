"""A curve in the terminal, in braille characters: each is 2 dots wide and 4 high."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH, HEIGHT = 60, 10
"""Of the curve, in characters."""

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of each dot in U+2800 and the characters after it, by row and column."""


def draw(title: str, at: Sequence[float], values: Sequence[float]) -> str:
    """The line through values at ascending places, with the numbers of both axes at their ends.

    >>> print(draw("lr", [0, 99], [0.1, 0.1]).splitlines()[-1].split())
    ['0', '99', 'steps']
    """
    columns, rows = 2 * WIDTH, 4 * HEIGHT
    low, high = min(values), max(values)
    first, span = at[0], (at[-1] - at[0]) or 1
    cells = [[0] * WIDTH for _ in range(HEIGHT)]

    def row(value: float) -> int:
        return round((high - value) / (high - low) * (rows - 1)) if high > low else rows // 2

    points = [(round((a - first) / span * (columns - 1)), row(v)) for a, v in zip(at, values, strict=True)]
    for (left, start), (right, end) in zip(points[:1] + points, points, strict=False):
        count = max(right - left, abs(end - start), 1)
        for k in range(count + 1):  # a line from one point to the next, without a gap where it is steep
            x, y = left + round((right - left) * k / count), start + round((end - start) * k / count)
            cells[y // 4][x // 2] |= DOTS[y % 4][x % 2]
    numbers = [f"{high:.4g}", *[""] * (HEIGHT - 2), f"{low:.4g}" if high > low else ""]
    margin = max(map(len, numbers))
    lines = [
        f"{number:>{margin}} ┤" + "".join(chr(0x2800 + bits) for bits in line)
        for number, line in zip(numbers, cells, strict=True)
    ]
    ends = f"{at[0]:,}", f"{at[-1]:,} steps"
    axis = " " * margin + " └" + "─" * WIDTH
    return "\n".join([title, *lines, axis, " " * (margin + 2) + ends[0] + ends[1].rjust(WIDTH - len(ends[0]))])
