"""A run that is over: its model, its numbers as frames, its figure; and the way to go on with it."""

import html
import math
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from nufed.common.config import RunConfig
from nufed.common.data import shared_scaling, task_of_run
from nufed.common.errors import ConfigError, RunError
from nufed.common.given import is_given
from nufed.common.json_text import parse_object
from nufed.common.meta.meta_sgd import split_step_sizes
from nufed.common.models import build_model
from nufed.common.models.frozen import check_frozen, frozen_hash
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.common.privacy.publishing import Publication
from nufed.common.settings import process_settings
from nufed.deploy.simulation.engine_options import EngineOptions, split_engine_options
from nufed.library.arguments import as_attack, as_folder
from nufed.library.given_task import names_by_argument, read_judging
from nufed.library.personal import remember_fine_tuning
from nufed.library.run_files import problem_of, read_rows, read_summary, read_text, unfinished
from nufed.library.turns import private
from nufed.library.wording import in_words_of_python
from nufed.server.adaptation_curves import GroupCurves
from nufed.server.checkpoint import load_checkpoint
from nufed.server.clients_table import curves_of_row, metric_of
from nufed.server.history import History
from nufed.server.hostile import attack_of, recorded_attack
from nufed.server.progress_lines import said
from nufed.server.resuming import stored_config
from nufed.server.round_record import group_metrics
from nufed.server.run_folder import kept_params
from nufed.server.run_log import METRICS
from nufed.server.shots import SHOTS_TABLE, shot_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

GROUPS = ("participating", "new")
_NOT_DRAWN = ("details", "intervals", "metrics", "baselines")
_SIZES = ("num_support", "num_validation", "num_test")


@dataclass(frozen=True)
class Origin:
    """What a run was made of that is in no file.

    Attributes:
        objects: data, model, task and metrics given in Python, by the names that the options have for them.
        engine: what runs the clients.
        machine: options of the machine.
        attack: name and number of attackers; None for an honest federation.
        engine_options: what the engine is told.
    """

    objects: Mapping[str, Any] = field(default_factory=dict)
    engine: str = "local"
    machine: Mapping[str, Any] = field(default_factory=dict)
    attack: tuple[str, int] | None = None
    engine_options: EngineOptions = field(default_factory=EngineOptions)


class TemporaryFolder:
    """A folder that is removed when nobody holds this object any more, or the program ends."""

    def __init__(self) -> None:
        """Make the folder, for this user alone."""
        self.path = Path(tempfile.mkdtemp(prefix="nufed-run-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class Run:
    """A run of a federation, as `nufed.simulate` and `nufed.load_run` return it.

    One that was interrupted or killed has what there is of it, as `summary["status"]` says; `resume` finishes it.

    Holds what the run's folder said when it was made; going on with the run makes another one.

    Attributes:
        path: the run's folder (README, "What a run leaves").
        config: the run's options.
        summary: content of summary.json: mean curves over s = 0 … S steps per group, costs, status.
        params: the trained parameters by name, and the learned step sizes of Meta-SGD.

    Examples:
        >>> import nufed
        >>> run = nufed.simulate("sinusoid", num_clients=4, num_new_clients=2, num_rounds=1, progress=False)
        >>> run.clients["group"].tolist()
        ['participating', 'participating', 'participating', 'participating', 'new', 'new']
    """

    path: Path
    config: RunConfig
    summary: dict[str, Any]
    params: dict[str, Tensor]

    def __init__(self, path: Path, origin: Origin | None = None, *, temporary: TemporaryFolder | None = None) -> None:
        """Read a run's folder.

        Raises:
            RunError: it is not a run's, or a file in it is torn.
        """
        self.path, self.origin, self.temporary = as_folder(path, "path"), origin or Origin(), temporary
        self.config = stored_config(self.path)
        self.summary = read_summary(self.path) or unfinished(self.path, self.config)
        self._rows = read_rows(self.path)
        self.params, self._frozen = kept_params(self.path)

    @cached_property
    def model(self) -> nn.Module:
        """The trained starting point, a module in evaluation mode; `nufed.personalize` adapts it.

        Raises:
            RunError: the run has not finished a round.
            DataError: the run's data, which say what the model must fit, are not here.
            ModelError: the run's model is not here.
        """
        if not self.params:
            raise RunError(f"Expected a model in {self.path}, but no round is finished. Go on with run.resume().")
        if self.summary["status"] == "nothing-trained":
            raise RunError(
                f"Expected a trained model in {self.path}, but nothing was trained. {self.summary['reason']}"
            )
        with private(self.origin.machine, self.origin.objects):
            task = task_of_run(self.config, process_settings())
            model = build_model(self.config.model, task, seed=self.config.seed)
            scaling = shared_scaling(self.config.data, process_settings(), seed=self.config.seed)
        check_frozen(frozen_hash(model), self._frozen, "the run's model")
        params, sizes = split_step_sizes(self.params)
        model.load_state_dict(params, strict=False)  # buffers, if any, are the architecture's
        remember_fine_tuning(model, self.config, sizes, task, scaling, self.origin.objects)
        return model.eval()

    def curves(self, group: str | None = None) -> "DataFrame":
        """Return every client's loss and metrics after s fine-tuning steps of the trained model.

        Args:
            group: `participating` or `new`; None is both, with a column that says which.

        Returns:
            A frame with one row per number: client, step (0 … S), split (`test`, or `validation` where there is one),
            metric (`loss`, `accuracy` in [0, 1], …; `evaluation.metrics`), value; none where a metric is undefined.

        Raises:
            ConfigError: there is no such group.
        """
        import pandas as pd

        if group is not None and group not in GROUPS:
            raise ConfigError(f"Expected group 'participating' or 'new', or None for both, but got {group!r}.")
        columns = ["client", "group", "step", "split", "metric", "value"]
        frame = pd.DataFrame(list(self._numbers()), columns=columns)
        return frame if group is None else frame[frame["group"] == group].drop(columns="group").reset_index(drop=True)

    @cached_property
    def shots(self) -> "DataFrame":
        """How the clients fare with few examples (`evaluation.shots`); no rows without.

        One row per number: client, group, shots (support examples asked for, of each class where there are classes),
        num_support (those that there were), short (whether that is fewer), step (0 … S), metric, value on the client's
        test split.

        Raises:
            RunError: shots.csv is torn.
        """
        import pandas as pd

        columns = ["client", "group", "shots", "num_support", "short", "step", "metric", "value"]
        return pd.DataFrame(list(shot_rows(read_text(self.path / SHOTS_TABLE))), columns=columns)

    @cached_property
    def clients(self) -> "DataFrame":
        """The clients that were judged: client, group, and examples in support, validation and test split."""
        import pandas as pd

        rows = [(row["client_id"], row["group"], *(int(row.get(size) or 0) for size in _SIZES)) for row in self._rows]
        return pd.DataFrame(rows, columns=["client", "group", *_SIZES])

    @cached_property
    def attackers(self) -> tuple[str, ...]:
        """The clients that attacked (`nufed.simulate(attack=...)`): in no mean, but in `curves` and `clients`."""
        return tuple((recorded_attack(self.path) or {"clients": ()})["clients"])

    @cached_property
    def history(self) -> "DataFrame":
        """The rounds: loss after ν steps, clients chosen and counted, costs, seconds; one row per round.

        `accuracy_0` … `accuracy_S`, `loss_0` …, or what else the run is judged by, are means over the participating
        clients where a round was evaluated, else NaN.

        Raises:
            RunError: metrics.jsonl cannot be read.
        """
        import pandas as pd

        try:
            lines = (self.path / METRICS).read_text(encoding="utf-8").splitlines()
            records = [parse_object(line) for line in lines]
            rows = [_flat(record) for record in records if record["round"] <= self.summary["rounds"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"Expected a round's JSON object on each line of {self.path / METRICS}, but "
                f"{problem_of(error)}. Put the line right."
            ) from error
        return pd.DataFrame(rows)

    def plot(self) -> "Figure":
        """Return the figure of progress over rounds and of the final adaptation curves; a notebook shows it.

        Raises:
            RunError: the run's checkpoint is torn.
        """
        from nufed.server.figures import curves_figure

        checkpoint = load_checkpoint(self.path)
        evaluations = History.from_json(checkpoint.history).evaluations if checkpoint else ()
        groups = {group: _group(self.summary.get(group)) for group in GROUPS}
        return curves_figure(evaluations, groups["participating"], groups["new"], config=self.config)

    @in_words_of_python
    def resume(  # noqa: PLR0913 - all but one by name
        self,
        num_rounds: int | None = None,
        *,
        dataset: Any = None,
        model: Any = None,
        task: Any = None,
        metrics: Any = None,
        primary_metric: Any = None,
        engine: str | None = None,
        attack: str | None = None,
        attackers: int | None = None,
        progress: bool = True,
        **tables: Any,
    ) -> "Run":
        """Go on with the run, in its folder, and return it as it is then; this `Run` keeps its numbers.

        The model is the one that a run of as many rounds without a break has, bit for bit.

        Args:
            num_rounds: K, rounds in all; None finishes a run that was interrupted.
            dataset: what the run was given in Python, if it was loaded without it.
            model: likewise.
            task: likewise.
            metrics: likewise.
            primary_metric: likewise.
            engine: None is the one that the run was started with, `local` for a run that was loaded.
            attack: None is the run's own, as its environment.json has it; another one is refused.
            attackers: likewise.
            progress: show a bar.
            **tables: `new_clients` and columns, as they were given; and what an engine is told, as `nufed.simulate`
                takes it, where that changes.

        Raises:
            NufedError: nothing is left to do, or data, model, task, metrics or attack are not those of the run.
        """
        from nufed.library.simulation import conduct, given_again

        config = self.config
        if num_rounds is not None:
            config = config.updated({"federation.num-rounds": num_rounds})
        said = read_judging(task, metrics, primary_metric)
        tables, told = split_engine_options(tables)
        if told == EngineOptions() and engine in (None, self.origin.engine):
            told = self.origin.engine_options
        objects = {**self.origin.objects, **given_again(self.config, said, dataset, model, **tables)}
        for name, what in names_by_argument(config):
            if is_given(name) and name not in objects:
                raise ConfigError(
                    f"{what} is missing: the run was given it in Python. Give the same again: run.resume({what}=...)."
                )
        chosen = as_attack(attack, attackers) or attack_of(self.path)
        origin = Origin(objects, engine or self.origin.engine, self.origin.machine, chosen, told)
        return conduct(config, origin, self, shown=progress)

    def save(self, path: "str | Path") -> "Run":
        """Copy the run's folder and return the run there; a run in a temporary folder is kept by it.

        Args:
            path: the new folder, which must not exist.

        Raises:
            RunError: it exists or cannot be written.
        """
        target = as_folder(path, "path")
        try:
            shutil.copytree(self.path, target)
        except OSError as error:
            raise RunError(
                f"Expected to copy the run to {target}, but the system refused ({error.strerror or error}). Name a "
                "folder that does not exist, where you may write."
            ) from error
        return Run(target, self.origin)

    @property
    def epsilon(self) -> float | None:
        """ε that the run has spent: of a client, or with `dp="record"` the largest of a record that the records know.

        None without differential privacy, and where each client alone knows it; summary.json has δ. Of a run that was
        killed or goes on it is that of what was charged until the folder was read.

        Raises:
            RunError: the run has not ended, and its privacy.jsonl is missing or changed.
        """
        if self.config.privacy.dp == "record":
            return cast("float | None", (self.summary.get("record_privacy") or {}).get("worst_epsilon"))
        if self.config.privacy.dp != "client":
            return None
        if (told := self.summary.get("privacy")) is None:
            return PrivacyLedger.open_existing(self.path / LEDGER, to_go_on=False).epsilon
        return math.inf if told["epsilon"] is None else float(told["epsilon"])

    @property
    def withheld(self) -> tuple[str, ...]:
        """What the run's records do not show, because ε does not cover it; empty without differential privacy.

        What was published all the same is in `summary["outside_epsilon"]["published"]`.
        """
        return Publication.of(self.config).withheld

    def __repr__(self) -> str:
        """Return what was run and what came out, in one line."""
        results = ", ".join(f"{group} {_told(curves, self)}" for group, curves in self._groups())
        results = results or ("evaluations are withheld" if "evaluation" in self.withheld else "no evaluation")
        return f"<Run {self.config.name!r}: {self.summary['rounds']} rounds, {self.summary['status']}; {results}>"

    def _repr_html_(self) -> str:
        """Return a table of the results for a notebook."""
        cells = [
            f"<tr><th>{group}</th><td>{curves['num_clients']}</td><td>{html.escape(_told(curves, self))}</td></tr>"
            for group, curves in self._groups()
        ]
        caption = html.escape(f"{self.config.name}: {self.summary['rounds']} rounds, {self.summary['status']}")
        head = "<tr><th>clients</th><th>n</th><th>mean on test examples</th></tr>"
        return f"<table><caption>{caption}</caption>{head}{''.join(cells)}</table>"

    def _groups(self) -> list[tuple[str, dict[str, Any]]]:
        return [(group, self.summary[group]) for group in GROUPS if self.summary.get(group)]

    def _numbers(self) -> Iterator[tuple[str, str, int, str, str, float]]:
        for row in self._rows:
            for column, curve in curves_of_row(row).items():
                split, metric = metric_of(column)
                for step, value in enumerate(curve):
                    if value == value:
                        yield row["client_id"], row["group"], step, split, metric, value


def _told(curves: Mapping[str, Any], run: Run) -> str:
    """Return `accuracy 11.1 % → 98.0 % after 5 steps` of a group."""
    step, measure = run.summary["primary_step"], curves["measure"]
    before, after = (said(curves, each) for each in (0, step))
    return f"{measure} {before} → {after} after {step} steps"


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a round's numbers, with the mean curve of its evaluation spread over columns."""
    row = {key: value for key, value in record.items() if not isinstance(value, dict | list) and key != "evaluation"}
    participating = (record.get("evaluation") or {}).get("participating") or {}
    for measure, curve in group_metrics(participating).items():
        for step, value in enumerate(curve):
            row[f"{measure.replace('-', '_')}_{step}"] = value
    return row


def _group(stored: Mapping[str, Any] | None) -> GroupCurves | None:
    """Return a group's curves from summary.json, numbers that were not finite as NaN."""
    if not stored:
        return None

    def read(value: Any) -> Any:
        if isinstance(value, list):
            return tuple(read(each) for each in value)
        return value

    counted = {"num_diverged": (0,) * len(stored["loss"])}  # which NuFed 0.1 did not count
    values = counted | {name: read(value) for name, value in stored.items() if name not in _NOT_DRAWN}
    for name in ("loss", "loss_weighted", "worst_decile", "spread", "accuracy"):
        if values[name] is not None:
            values[name] = tuple(float("nan") if number is None else number for number in values[name])
    means = stored.get("metrics") or {}
    values["metrics"] = {key: tuple(math.nan if each is None else each for each in means[key]) for key in means}
    values["baselines"] = {key: each for key, each in (stored.get("baselines") or {}).items() if each is not None}
    return GroupCurves(**cast("Any", values))
