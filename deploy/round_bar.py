"""The bar that shows how many rounds are done, on a terminal and in a notebook."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def round_bar(console: Console) -> Progress:
    """Return a bar that goes away at its end; its tasks have a field `last`, what is said of the last round."""
    columns = (
        TextColumn("round {task.completed}/{task.total}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[last]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True)
