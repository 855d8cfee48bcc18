"""Tables of text for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Lines with columns as wide as their widest cell; numbers stand on the right, None is a dash."""
    body = [tuple(row) for row in rows]
    texts = [tuple(head), *(tuple("-" if cell is None else str(cell) for cell in row) for row in body)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    right = [bool(body) and all(isinstance(row[at], int) for row in body) for at in range(len(head))]
    for line in texts:
        cells = zip(line, widths, right, strict=True)
        yield "  ".join(text.rjust(width) if number else text.ljust(width) for text, width, number in cells).rstrip()
