"""Tables for the terminal and the log."""

import io
from collections.abc import Sequence

from rich.box import Box
from rich.console import Console
from rich.table import Table

# A line under the head and one above the footer rows, and nothing else.
_RULES = Box("    \n    \n ---\n    \n ---\n ---\n    \n    \n")


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, footer_rows: int = 0) -> str:
    """Lay out rows in columns.

    Args:
        head: titles of the columns.
        rows: their cells.
        left: columns at the left that are aligned to it; the others are aligned to the right, as numbers are.
        footer_rows: the number of rows at the end that are set off by a line.

    Returns:
        Lines without a line break at the end.
    """
    table = Table(box=_RULES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for index, title in enumerate(head):
        table.add_column(title, justify="left" if index < left else "right", no_wrap=True)
    for index, row in enumerate(rows):
        table.add_row(*row, end_section=index == len(rows) - footer_rows - 1)
    # Wide enough for every table, since a log is no terminal; names of labels are no markup.
    console = Console(file=io.StringIO(), width=10_000, markup=False, emoji=False, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
