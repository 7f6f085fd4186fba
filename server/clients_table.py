"""clients.csv: one line per client with its adaptation curves.

Columns are `<metric>_<s>` and `validation_<metric>_<s>`, s = 0..S; `baseline_<metric>`, what the same answer to every
example gets; `interval_low_<metric>` and `interval_high_<metric>`, 95 %, of the metric after s* steps where it was
found on few examples; and `count_<class>_<class taken for>` where a run asks for it. Cells are empty where a client has
diverged, and where a metric is undefined.
"""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import cast

from nufed.common.errors import RunError
from nufed.common.examples import Group
from nufed.server.client_curves import ClientCurves
from nufed.server.curve_means import Curve

CLIENTS = "clients.csv"
_SIZES = ("num_support", "num_validation", "num_test")
_CURVES = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "validation_accuracy": "validation_accuracy",
    "validation_loss": "validation_loss",
}
_STEP = re.compile(r"(.+)_(\d+)")
_NO_CURVES = ("baseline_", "interval_", "count_")


def clients_csv(clients: Sequence[ClientCurves]) -> str:
    """Return one line per client; what no client has makes no columns.

    Cells are empty where a client has no such curve, and where its numbers are not finite.
    """
    curves_by_name: dict[str, list[Curve | None]] = {
        name: [getattr(client, attribute) for client in clients] for name, attribute in _CURVES.items()
    }
    curves_by_name |= {
        _column(key): [client.metrics.get(key) for client in clients] for client in clients for key in client.metrics
    }
    columns = {
        name: _columns(curves) for name, curves in curves_by_name.items() if any(curve is not None for curve in curves)
    }
    singles = _singles(clients)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["client_id", "group", *_SIZES]
    steps = [f"{name}_{step}" for name, rows in columns.items() for step in range(len(rows[0]))]
    writer.writerow([*header, *steps, *singles])
    for index, client in enumerate(clients):
        sizes = [getattr(client, size) for size in _SIZES]
        numbers = [x for rows in columns.values() for x in rows[index]]
        writer.writerow(
            [client.client_id, client.group, *sizes, *numbers, *(cells[index] for cells in singles.values())]
        )
    return text.getvalue()


def read_clients_csv(text: str) -> list[ClientCurves]:
    """Return the curves that `clients_csv` has written; empty cells of a curve come back as NaN.

    Raises:
        RunError: it is no such table.
    """
    try:
        return [_client(row) for row in csv.DictReader(io.StringIO(text))]
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"Expected the clients' curves in {CLIENTS}, but {error}. Run it again.") from error


def curves_of_row(row: Mapping[str, str]) -> dict[str, Curve]:
    """Return the curves of one line by column name without the step, e.g. `validation_loss`, `balanced_accuracy`.

    Raises:
        ValueError: a cell is no number.
    """
    cells: dict[str, dict[int, str]] = {}
    for column, cell in row.items():
        if column and not column.startswith(_NO_CURVES) and (found := _STEP.fullmatch(column)):
            cells.setdefault(found[1], {})[int(found[2])] = cell
    return {
        name: tuple(float(steps[step] or "nan") for step in range(len(steps)))
        for name, steps in cells.items()
        if name == "loss" or any(steps.values())
    }


def metric_of(column: str) -> tuple[str, str]:
    """Return split and metric that a column's name without the step is about, e.g. `test` and `balanced-accuracy`."""
    split, name = ("validation", column[11:]) if column.startswith("validation_") else ("test", column)
    return split, name.replace("_", "-")


def _client(row: dict[str, str]) -> ClientCurves:
    curves = curves_of_row(row)
    if "loss" not in curves:
        raise KeyError("loss_0")
    lows, highs = _numbers(row, "interval_low_"), _numbers(row, "interval_high_")
    counts = [int(cell) for column, cell in row.items() if column and column.startswith("count_") and cell]
    return ClientCurves(
        client_id=row["client_id"],
        group=cast("Group", row["group"]),
        num_support=int(row["num_support"]),
        num_validation=int(row["num_validation"]),
        num_test=int(row["num_test"]),
        test_loss=curves["loss"],
        test_accuracy=curves.get("accuracy"),
        validation_loss=curves.get("validation_loss"),
        validation_accuracy=curves.get("validation_accuracy"),
        metrics={"-".join(metric_of(name)): curve for name, curve in curves.items() if name not in _CURVES},
        baselines=_numbers(row, "baseline_"),
        intervals={name: (low, highs[name]) for name, low in lows.items() if name in highs},
        confusion=tuple(counts),
    )


def _column(key: str) -> str:
    """Return what the columns of a further metric's curve begin with, e.g. `top_5` for `test-top-5`."""
    return key.removeprefix("test-").replace("-", "_")


def _singles(clients: Sequence[ClientCurves]) -> dict[str, list[float | str]]:
    """Return the columns that hold one number for each client."""
    columns: dict[str, list[float | str]] = {}
    for name in dict.fromkeys(name for client in clients for name in client.baselines):
        columns[f"baseline_{_column(name)}"] = [_cell(client.baselines.get(name, math.nan)) for client in clients]
    for name in dict.fromkeys(name for client in clients for name in client.intervals):
        for number, end in enumerate(("low", "high")):
            columns[f"interval_{end}_{_column(name)}"] = [
                _cell(client.intervals[name][number]) if name in client.intervals else "" for client in clients
            ]
    size = math.isqrt(max((len(client.confusion) for client in clients), default=0))
    for cell in range(size * size):
        columns[f"count_{cell // size}_{cell % size}"] = [
            client.confusion[cell] if len(client.confusion) == size * size else "" for client in clients
        ]
    return columns


def _numbers(row: Mapping[str, str], prefix: str) -> dict[str, float]:
    """Return metric -> number of the columns that begin so, of the cells that are not empty."""
    return {
        column.removeprefix(prefix).replace("_", "-"): float(cell)
        for column, cell in row.items()
        if column and column.startswith(prefix) and cell
    }


def _columns(curves: Sequence[Curve | None]) -> list[Sequence[float | str]]:
    length = max(len(curve) for curve in curves if curve is not None)
    return [[_cell(value) for value in curve] if curve is not None else [""] * length for curve in curves]


def _cell(value: float) -> float | str:
    return value if math.isfinite(value) else ""
