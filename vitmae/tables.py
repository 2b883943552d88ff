"""Tables of text: for a terminal or a log, and as Markdown. The first row is the header."""

from collections.abc import Sequence
from io import StringIO

Table = Sequence[Sequence[str]]


def as_text(table: Table) -> str:
    """The table with aligned columns; lines are never wrapped, so that a log stays readable."""
    from rich import box  # here, because most commands print no table and start faster
    from rich.console import Console
    from rich.table import Table as RichTable

    drawn = RichTable(*table[0], box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for row in table[1:]:
        drawn.add_row(*row)
    text = StringIO()
    Console(file=text, width=10_000, color_system=None, markup=False, emoji=False).print(drawn)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def as_markdown(table: Table) -> str:
    """The table in Markdown: one line per row, each with a line break."""
    rows = ([cell.replace("|", "\\|") for cell in row] for row in (table[0], ["---"] * len(table[0]), *table[1:]))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
