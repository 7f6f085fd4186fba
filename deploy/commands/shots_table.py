"""The table of few examples at the end of a run: what each number of support examples comes to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table


def shots_table(
    summary: Mapping[str, Any], steps: Sequence[int], number: Callable[[float | None, str], str]
) -> Table | None:
    """Return a row for each group and number of support examples; None where the run asked for none.

    Args:
        summary: of a run.
        steps: fine-tuning steps that are shown.
        number: how a value of a metric is written.
    """
    groups = {name: found for name, found in (summary.get("shots") or {}).items() if found}
    if not groups:
        return None
    measure = next(iter(next(iter(groups.values())).values()))["measure"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(f"test {measure}\nof clients", no_wrap=True)
    for title in ("support\nexamples", "n", *(f"\ns = {step}" for step in steps), "clients with\nfewer"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, found in groups.items():
        for size, own in found.items():
            curve = own.get(measure)
            values = [number(curve[step], measure) if curve else "" for step in steps]
            table.add_row(name, size, str(own["num_clients"]), *values, str(own["short"] or ""))
    return table
