"""How clients fare with few examples: shots.csv, and `shots` of summary.json.

Each number of support examples k (`evaluation.shots`) has a curve over the fine-tuning steps, for each client and for
each group; every k is judged on the same test examples, and the examples of a smaller k are among those of a larger.
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from nufed.common.config import EvaluationConfig
from nufed.common.errors import RunError
from nufed.common.metric_looks import look_of
from nufed.common.shots import SHOTS
from nufed.server.client_curves import ClientCurves
from nufed.server.curve_means import as_curve, mean_of_finite, worst_decile
from nufed.server.shot_curves import ShotCurves

SHOTS_TABLE = "shots.csv"


def shots_summary(
    clients: Sequence[ClientCurves], evaluation: EvaluationConfig, measure: str, *, lower_is_better: bool | None = None
) -> dict[str, Any]:
    """Return `shots` for summary.json: for each group and number of examples, means over clients; {} without any.

    `worst_decile` is the mean over the tenth of the clients that is worst at s, as of the whole support split; `short`
    counts the clients that have fewer examples than asked for, `without` those that answered without shots.

    Args:
        clients: of all groups, without attackers.
        evaluation: says which numbers of examples were asked for.
        measure: what `worst_decile` is about.
        lower_is_better: whether its smallest value is the best; None is for the loss alone.
    """
    lower = look_of(measure).better == "lower" if lower_is_better is None else lower_is_better
    found: dict[str, Any] = {}
    for group in ("participating", "new"):
        members = [client for client in clients if client.group == group]
        sizes = evaluation.shot_sizes if members else ()
        by_size = {size: [client.shots.get(size) for client in members] for size in sizes}
        found[group] = {str(size): _of_size(shots, measure, lower=lower) for size, shots in by_size.items()} or None
    return {SHOTS: found} if evaluation.shot_sizes else {}


def shots_csv(clients: Sequence[ClientCurves]) -> str | None:
    """Return one line for each client and number of examples; None without any. Cells are empty where it diverged."""
    rows = [(client, size, shot) for client in clients for size, shot in client.shots.items()]
    if not rows:
        return None
    names = list(dict.fromkeys(name for _, _, shot in rows for name in shot.curves))
    length = max(len(curve) for _, _, shot in rows for curve in shot.curves.values())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{name.replace('-', '_')}_{step}" for name in names for step in range(length)]
    writer.writerow(["client_id", "group", "shots", "num_support", "short", *columns])
    for client, size, shot in rows:
        nothing = (math.nan,) * length
        cells = [value for name in names for value in shot.curves.get(name, nothing)]
        written = [value if math.isfinite(value) else "" for value in cells]
        writer.writerow([client.client_id, client.group, size, shot.num_support, int(shot.is_short), *written])
    return text.getvalue()


def with_shots(clients: Sequence[ClientCurves], text: str) -> list[ClientCurves]:
    """Return clients read from clients.csv with their shots from shots.csv.

    Raises:
        RunError: it is no such table.
    """
    shots: dict[str, dict[int, ShotCurves]] = {}
    for client, _, size, shot in _read(text):
        shots.setdefault(client, {})[size] = shot
    return [replace(client, shots=shots.get(client.client_id, {})) for client in clients]


def shot_rows(text: str) -> Iterator[tuple[str, str, int, int, bool, int, str, float]]:
    """Yield (client, group, k, examples there were, whether fewer, step, metric, value) of each number in shots.csv.

    Raises:
        RunError: it is no such table.
    """
    for client, group, size, shot in _read(text):
        for name, curve in shot.curves.items():
            for step, value in enumerate(curve):
                if not math.isnan(value):
                    yield client, group, size, shot.num_support, shot.is_short, step, name, value


def _read(text: str) -> Iterator[tuple[str, str, int, ShotCurves]]:
    """Yield (client, group, k, curves) of each line of shots.csv.

    Raises:
        RunError: it is no such table.
    """
    try:
        for row in csv.DictReader(io.StringIO(text)):
            curves: dict[str, dict[int, float]] = {}
            for column, cell in list(row.items())[5:]:
                name, _, step = column.rpartition("_")
                curves.setdefault(name.replace("_", "-"), {})[int(step)] = float(cell or "nan")
            own = {name: tuple(curve.values()) for name, curve in curves.items()}
            shot = ShotCurves(int(row["num_support"]), row["short"] == "1", own)
            yield row["client_id"], row["group"], int(row["shots"]), shot
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"Expected the clients' shots in {SHOTS_TABLE}, but {error}. Run it again.") from error


def _of_size(shots: Sequence[ShotCurves | None], measure: str, *, lower: bool) -> dict[str, Any]:
    known = [shot for shot in shots if shot is not None]
    found: dict[str, Any] = {
        "num_clients": len(known),
        "without": len(shots) - len(known),
        "short": sum(shot.is_short for shot in known),
        "num_support": sum(shot.num_support for shot in known) / len(known) if known else None,
        "measure": measure,
    }
    for name in dict.fromkeys(name for shot in known for name in shot.curves):
        values = np.array([shot.curves[name] for shot in known if name in shot.curves])
        with np.errstate(invalid="ignore"):
            found[name] = list(as_curve(mean_of_finite(values)))
        if name == measure:
            sign = -1 if lower else 1
            found["worst_decile"] = list(as_curve(sign * worst_decile(sign * values, ~np.isfinite(values))))
    return found
