"""The results of a suite as tidy tables, CSV and (where pyarrow is installed) Parquet: one observation per row.

results: method, seed, group, s.   rounds: method, seed, round, s.   clients: method, seed, client, s.
tuning: method, grid point.        All with the setting; numbers of accuracy in [0, 1].
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nufed.common.durable_file import replace_durably
from nufed.common.metric_looks import sign_of
from nufed.deploy.experiments.finished import ClientTable, FinishedRun
from nufed.deploy.experiments.statistics import spread, worst_decile
from nufed.deploy.experiments.tuning import Choice

Row = dict[str, Any]


def write_tables(out: Path, runs: Iterable[FinishedRun], choices: Mapping[str, Choice]) -> None:
    """Write results, rounds, clients and tuning as .csv, and .parquet if `has_parquet`; empty tables are left out."""
    finished = list(runs)
    tables: dict[str, list[Row]] = {
        "results": [row for run in finished for row in result_rows(run)],
        "rounds": [row for run in finished for row in round_rows(run)],
        "clients": [row for run in finished for row in client_rows(run)],
        "tuning": list(tuning_rows(choices)),
    }
    for name, rows in tables.items():
        if rows:
            _write(out / name, rows)


def result_rows(run: FinishedRun) -> Iterator[Row]:
    """Yield a run's final numbers: one row for each group and s."""
    for group, table in run.groups.items():
        sign = sign_of(run.better)
        for step in range(table.loss.shape[1]):
            judged = table.at(run.measure, step)
            yield {
                **_identity(run),
                "group": group,
                "s": step,
                "num_clients": len(table.client_ids),
                **_means(table, step),
                "worst_client": sign * float((sign * judged).min()),
                "worst_decile": sign * float(worst_decile(sign * judged)),
                "spread": float(spread(judged)),
            }


def round_rows(run: FinishedRun) -> Iterator[Row]:
    """Yield a run's progress: one row for each evaluation and s, mean over the participating clients."""
    progress = run.progress
    for index, done in enumerate(progress.rounds):
        for step, value in enumerate(progress.curves[index]):
            yield {
                **_identity(run),
                "round": int(done),
                "s": step,
                _column(run.measure): float(value),
                "gradient_equivalents": float(progress.gradients[index]),
                "bytes": float(progress.num_bytes[index]),
            }


def client_rows(run: FinishedRun) -> Iterator[Row]:
    """Yield every client's final curve, one row for each s."""
    for group, table in run.groups.items():
        for index, client_id in enumerate(table.client_ids):
            for step in range(table.loss.shape[1]):
                found = {_column(name): float(values[index, step]) for name, values in table.measures.items()}
                yield {
                    **_identity(run),
                    "group": group,
                    "client_id": client_id,
                    "num_test": int(table.num_test[index]),
                    "s": step,
                    **found,
                }


def tuning_rows(choices: Mapping[str, Choice]) -> Iterator[Row]:
    """Yield every grid point with its score; a run that diverged leaves the score empty."""
    for choice in choices.values():
        method, _, setting = choice.entry.partition("@")
        for scored in choice.scored:
            yield {
                "setting": setting,
                "method": method,
                **scored.point,
                "score": scored.score if math.isfinite(scored.score) else None,
                "chosen": scored.point == choice.point,
            }


def _identity(run: FinishedRun) -> Row:
    return {"setting": run.setting, "method": run.method, "seed": run.seed}


def _means(table: ClientTable, step: int) -> Row:
    weights = table.num_test / table.num_test.sum()
    row: Row = {}
    for name, values in table.measures.items():
        row[_column(name)] = float(table.at(name, step).mean())
        if name in ("accuracy", "loss"):
            row[f"{name}_weighted"] = float(np.sum(weights * values[:, step]))
    return row


def _column(name: str) -> str:
    return name.replace("-", "_")


def has_parquet() -> bool:
    """Return whether tables are written as Parquet too, which needs the extra `nufed[parquet]`."""
    return find_spec("pyarrow") is not None


def _write(path: Path, rows: list[Row]) -> None:
    import pandas as pd

    names = list(dict.fromkeys(name for row in rows for name in row))
    frame = pd.DataFrame(rows, columns=names, dtype=object)  # whole numbers stay whole beside missing ones
    replace_durably(path.with_suffix(".csv"), lambda partial: frame.to_csv(partial, index=False))
    if has_parquet():
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.table({name: [row.get(name) for row in rows] for name in names})
        replace_durably(path.with_suffix(".parquet"), lambda partial: parquet.write_table(table, partial))
