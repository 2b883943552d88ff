"""Tables of text, for a terminal and as Markdown: the first line is the header."""

from collections.abc import Sequence

Table = Sequence[Sequence[str]]
_BAR = "\\|"  # a bar inside of a cell


def as_lines(table: Table) -> list[str]:
    """Columns of equal width, for a terminal."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]


def as_markdown(table: Table) -> str:
    """As Markdown, each line ended."""
    lines = (table[0], ["---"] * len(table[0]), *table[1:])
    return "".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |\n" for line in lines)
