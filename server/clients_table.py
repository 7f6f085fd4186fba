"""clients.csv: one line per client with its adaptation curve; where it diverged, the cells are empty."""

import csv
import io
import math
from collections.abc import Sequence
from typing import cast

from nufed.common.errors import RunError
from nufed.common.examples import Group
from nufed.common.metrics import further_curves
from nufed.server.adaptation_curves import ClientCurves, Curve

CLIENTS = "clients.csv"
_SIZES = ("num_support", "num_validation", "num_test")
_CURVES = {
    "accuracy": "test_accuracy",
    "loss": "test_loss",
    "validation_accuracy": "validation_accuracy",
    "validation_loss": "validation_loss",
}


def clients_csv(clients: Sequence[ClientCurves]) -> str:
    """Return one line per client; curves that no client has make no columns.

    Cells are empty where a client has no such curve, and where its numbers are not finite because it diverged.
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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header = ["client_id", "group", *_SIZES]
    writer.writerow([*header, *(f"{name}_{step}" for name, rows in columns.items() for step in range(len(rows[0])))])
    for index, client in enumerate(clients):
        sizes = [getattr(client, size) for size in _SIZES]
        writer.writerow(
            [client.client_id, client.group, *sizes, *(x for rows in columns.values() for x in rows[index])]
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


def _client(row: dict[str, str]) -> ClientCurves:
    test_loss = _curve(row, "loss")
    if test_loss is None:
        raise KeyError("loss_0")
    return ClientCurves(
        client_id=row["client_id"],
        group=cast("Group", row["group"]),
        num_support=int(row["num_support"]),
        num_validation=int(row["num_validation"]),
        num_test=int(row["num_test"]),
        test_loss=test_loss,
        test_accuracy=_curve(row, "accuracy"),
        validation_loss=_curve(row, "validation_loss"),
        validation_accuracy=_curve(row, "validation_accuracy"),
        metrics={key: curve for key in further_curves() if (curve := _curve(row, _column(key))) is not None},
    )


def _column(key: str) -> str:
    """Return what the columns of a further metric's curve begin with, e.g. `top_5` for `test-top-5`."""
    return key.removeprefix("test-").replace("-", "_")


def _curve(row: dict[str, str], name: str) -> Curve | None:
    cells: list[str] = []
    while (cell := row.get(f"{name}_{len(cells)}")) is not None:
        cells.append(cell)
    has_numbers = any(cells) or (name == "loss" and cells)
    return tuple(float(cell or "nan") for cell in cells) if has_numbers else None


def _columns(curves: Sequence[Curve | None]) -> list[Sequence[float | str]]:
    length = max(len(curve) for curve in curves if curve is not None)
    return [[_cell(value) for value in curve] if curve is not None else [""] * length for curve in curves]


def _cell(value: float) -> float | str:
    return value if math.isfinite(value) else ""
