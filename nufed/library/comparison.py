"""`nufed.compare`: runs side by side, by the options in which they differ."""

import math
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nufed.common.errors import ConfigError
from nufed.library.arguments import as_collection, as_count
from nufed.library.run import GROUPS, Run
from nufed.library.simulation import load_run
from nufed.server.progress_lines import mean_of

if TYPE_CHECKING:
    from pandas import DataFrame

RunOrPath = Run | str | os.PathLike[str]


def compare(runs: Iterable[RunOrPath] | Mapping[str, RunOrPath], *, step: int | None = None) -> "DataFrame":
    """Return the options in which runs differ and their results, a row for each run and group of clients.

    Args:
        runs: runs or their folders; or these by a label of your own. Without labels, a run is called by its folder.
        step: s, the fine-tuning step to compare at; None takes each run's primary step, s*.

    Returns:
        A frame: run, a column for each option that is not the same in all (by its field name, `num_inner_steps`),
        group, num_clients, metric (the primary one, e.g. `accuracy`), step, before (mean over clients at s = 0),
        after (at `step`), worst_decile (mean of the worst tenth at `step`), spread (standard deviation over clients).
        NaN where a model diverged.

    Raises:
        ConfigError: there is no run, two labels are the same, or a run has no such step.
        RunError: a folder is not a run's.

    Examples:
        >>> import nufed
        >>> runs = [
        ...     nufed.simulate("sinusoid", num_inner_steps=steps, local_lr=0.01, num_rounds=1, progress=False)
        ...     for steps in (0, 1)
        ... ]
        >>> nufed.compare(runs)[["num_inner_steps", "group", "num_clients"]].values.tolist()
        [[0, 'participating', 20], [0, 'new', 10], [1, 'participating', 20], [1, 'new', 10]]
    """
    import pandas as pd

    labelled = _labelled(runs)
    at = None if step is None else as_count(step, "step")
    options = {label: run.config.flat() for label, run in labelled}
    first = next(iter(options.values()))
    differing = [key for key in first if len({repr(values[key]) for values in options.values()}) > 1]
    rows: list[dict[str, Any]] = []
    for label, run in labelled:
        chosen = {_column(key): options[label][key] for key in differing}
        groups = {group: stored for group in GROUPS if (stored := run.summary.get(group))}
        rows += [
            {"run": label, **chosen, "group": group, **_results(stored, run, at)} for group, stored in groups.items()
        ]
    return pd.DataFrame(rows)


def _labelled(runs: Iterable[RunOrPath] | Mapping[str, RunOrPath]) -> list[tuple[str, Run]]:
    given = runs.items() if isinstance(runs, Mapping) else [("", run) for run in as_collection(runs, "runs")]
    pairs = [(str(label), run) for label, run in given]
    loaded = [(label, run if isinstance(run, Run) else load_run(run)) for label, run in pairs]
    if not loaded:
        raise ConfigError("Expected runs to compare, but got none. Give runs, or the folders of runs.")
    if isinstance(runs, Mapping):
        if twice := [label for label, _ in loaded if [each for each, _ in loaded].count(label) > 1]:
            raise ConfigError(f"Expected labels that differ as text, but {twice[0]!r} is there twice. Rename one.")
        return loaded
    names = [run.path.name for _, run in loaded]
    return [
        (name if names.count(name) == 1 else f"{name} ({number})", run)
        for number, (name, (_, run)) in enumerate(zip(names, loaded, strict=True), start=1)
    ]


def _column(key: str) -> str:
    """Return an option's field name; the model's name is its section's, `name` is the run's."""
    return {"data.source": "dataset", "model.name": "model"}.get(key, key.rpartition(".")[2].replace("-", "_"))


def _results(stored: Mapping[str, Any], run: Run, step: int | None) -> dict[str, Any]:
    at = run.summary["primary_step"] if step is None else step
    means = mean_of(stored)
    if not 0 <= at < len(means):
        raise ConfigError(
            f"Expected a step from 0 to {len(means) - 1}, the end of the curves of {run.path.name}, but got {at}."
        )
    numbers = (means[0], means[at], stored["worst_decile"][at], stored["spread"][at])
    before, after, worst, spread = (math.nan if number is None else number for number in numbers)
    return {
        "num_clients": stored["num_clients"],
        "metric": stored["measure"],
        "step": at,
        "before": before,
        "after": after,
        "worst_decile": worst,
        "spread": spread,
    }
