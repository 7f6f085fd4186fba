"""The commands around a personal model: `nufed personalize`, `nufed predict` and `nufed export`.

They work without a server and without a network, for whoever has a run's model and data of their own.
"""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nufed.common.config import RunConfig, Scalar
from nufed.common.errors import ConfigError
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.outputs import Force, check_output, read_from
from nufed.deploy.commands.terminal import stdout_console

if TYPE_CHECKING:
    from nufed.client.personal_model import PersonalModel
    from nufed.common.data.private.preparation import Preparation
    from nufed.common.data.private.rows import PrivateRows
    from nufed.common.examples import Examples, TaskInfo
    from nufed.common.params import Params

_Data = Annotated[
    str,
    typer.Option(
        help="your data: csv:FILE?label=COLUMN, parquet:FILE?label=COLUMN, images:FOLDER, npz:FILE, "
        "python:module:function, or digits#22/20 for trials",
        metavar="SPEC",
    ),
]
_AnyModel = Annotated[
    Path, typer.Option(help="a personal model, a run's model.safetensors or its folder", metavar="FILE")
]


def register(app: typer.Typer) -> None:
    """Mount the commands on the program's."""
    app.command("personalize")(personalize_command)
    app.command("predict")(predict_command)
    app.command("export")(export_command)


@with_option_groups
def personalize_command(  # noqa: PLR0913 - one parameter per option
    machine: MachineOptions,
    model: Annotated[Path, typer.Option(help="a run's model.safetensors, or its folder", metavar="FILE_OR_RUN")],
    data: _Data,
    out: Annotated[Path, typer.Option(help="the personal model", metavar="FILE")] = Path("personal.safetensors"),
    steps: Annotated[
        int | None,
        typer.Option(help="fine-tuning steps, S (default: the run's evaluation.num-adapt-steps)", min=0, max=10_000),
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="step size (default: the run's evaluation.adapt-lr, or α)", min=0)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="examples in a step; 0 takes all (default: the run's)", min=0)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="seed of the split and of the batches (default: the run's)", min=0)
    ] = None,
    name: Annotated[
        str, typer.Option(help="your name in the run, if you took part: your test examples stay the same")
    ] = "me",
    force: Force = False,
) -> None:
    """Adapt a run's model to your data, offline; show what it gains on data held out, and keep it in a file."""
    import torch

    from nufed.client.personal_model import personalize_after_run
    from nufed.client.workplace import workplace
    from nufed.common.data.private.load import is_slice
    from nufed.common.models.frozen import check_frozen
    from nufed.common.settings import process_settings
    from nufed.server.run_folder import load_model

    check_output(out, inputs=read_from(model, data), force=force)
    with machine.exported(), while_working("fine-tuning"):
        params, stored = load_model(model)
        config = _adaptation(RunConfig.parse(stored["config"]), steps=steps, lr=lr, batch_size=batch_size, seed=seed)
        node_config: dict[str, Scalar] = {"data": data, "client-id": name}
        if not is_slice(data):
            node_config["group"] = "new"  # all that is not held out for the test is there to adapt to
        settings = process_settings()
        torch.set_num_threads(settings.num_threads)
        place = workplace(config.flat(), node_config, settings)
        check_frozen(place.frozen, str(stored.get("frozen", "")), "the run's model")
        on_device = {name: tensor.to(settings.device) for name, tensor in params.items()}
        personal = personalize_after_run(place, on_device, out)
        _show(personal)
        typer.echo(f"personal model: {out}")


@with_option_groups
def predict_command(
    machine: MachineOptions,
    model: _AnyModel,
    data: _Data,
    out: Annotated[Path | None, typer.Option(help="CSV file (default: standard output)", metavar="CSV")] = None,
    force: Force = False,
) -> None:
    """Predict your data with a model, one CSV line per example; labels, where there are any, are compared with."""
    from nufed.client.personal_model import check_fits, predict
    from nufed.common.data.private.load import load_rows
    from nufed.common.durable_file import write_text
    from nufed.common.models import build_model
    from nufed.common.settings import process_settings

    if out is not None:
        check_output(out, inputs=read_from(model, data), force=force)
    with machine.exported(), while_working("predicting"):
        given = _load(model)
        rows, examples = load_rows(data, given.task, given.config, process_settings(), given.preparation)
        network = build_model(given.config.model, given.task, seed=given.config.seed).eval()
        check_fits(given.params, network, given.frozen)
        outputs = predict(network, given.task, given.params, examples.inputs).double().tolist()
        text = _as_csv(_lines(given.task, rows, outputs))
        if out is None:
            sys.stdout.write(text)
        else:
            write_text(out, text)
        if rows.targets is not None:
            typer.echo(_verdict(given, network, examples), err=out is None)


@with_option_groups
def export_command(
    machine: MachineOptions,
    model: _AnyModel,
    out: Annotated[Path, typer.Option(help="the file", metavar="FILE")],
    form: Annotated[
        str, typer.Option("--format", help="torch-export, torchscript or onnx", metavar="NAME")
    ] = "torch-export",
    force: Force = False,
) -> None:
    """Write a model as a file for other programs, and compare what the file computes with the model."""
    from nufed.client.model_export import Exportable, export_model
    from nufed.client.personal_model import check_fits
    from nufed.common.models import build_model

    check_output(out, inputs=read_from(model), force=force)
    with machine.exported(), while_working("exporting"):
        given = _load(model)
        network = build_model(given.config.model, given.task, seed=given.config.seed)
        check_fits(given.params, network, given.frozen)
        difference = export_model(Exportable(network, given.params, given.task, given.preparation), form, out)
        shape = ", ".join(map(str, ("N", *given.task.input_shape)))
        typer.echo(
            f"{form}: {out} takes [{shape}] {given.config.model.dtype}, returns [N, {given.task.num_outputs}] "
            f"{'logits' if given.task.kind == 'classification' else 'values'}; "
            f"differs from the model by at most {difference:.1e}"
        )


@dataclass(frozen=True)
class _GivenModel:
    """A model from a file, personal or a run's."""

    params: "Params"
    config: RunConfig
    task: "TaskInfo"
    preparation: "Preparation | None" = None
    frozen: str = ""


def _load(path: Path) -> _GivenModel:
    from nufed.client.personal_model import PERSONAL_FORMAT, load_personal_model
    from nufed.common.data import task_of_run
    from nufed.common.durable_file import read_metadata
    from nufed.common.meta.meta_sgd import split_step_sizes
    from nufed.common.settings import process_settings
    from nufed.server.run_folder import load_model

    if not path.is_dir() and read_metadata(path).get("format") == PERSONAL_FORMAT:
        personal = load_personal_model(path)
        return _GivenModel(personal.params, personal.config, personal.task, personal.preparation, personal.frozen)
    arrays, stored = load_model(path)
    config = RunConfig.parse(stored["config"])
    params, _ = split_step_sizes(arrays)
    task = task_of_run(config, process_settings())
    return _GivenModel(params, config, task, frozen=str(stored.get("frozen", "")))


def _adaptation(
    config: RunConfig, *, steps: int | None, lr: float | None, batch_size: int | None, seed: int | None
) -> RunConfig:
    """Return the run's options with those of the adaptation that was asked for."""
    if lr == 0:
        raise ConfigError("--lr=0 adapts nothing. Give a step size above 0, or --steps 0 for the model as it is.")
    evaluation = config.evaluation
    num_steps = evaluation.num_adapt_steps if steps is None else steps
    changes: dict[str, Any] = {
        "evaluation.num-adapt-steps": num_steps,
        "evaluation.primary-step": min(evaluation.primary_step, num_steps),
        "evaluation.adapt-lr": evaluation.adapt_lr if lr is None else lr,
        "evaluation.adapt-batch-size": evaluation.adapt_batch_size if batch_size is None else batch_size,
        "seed": config.seed if seed is None else seed,
    }
    return config.updated(changes)


def _show(personal: "PersonalModel") -> None:
    """Print what the adaptation gained on the test split."""
    typer.echo(
        f"{personal.client_id}: {personal.num_steps} steps of {personal.step_size:g} on {personal.num_support} examples"
    )
    table = Table(f"on {personal.num_test} held-out examples", box=None, pad_edge=False)
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    before, after = personal.before, personal.after
    table.add_row("loss", f"{before.loss:.4f}", f"{after.loss:.4f}")
    if before.accuracy is not None and after.accuracy is not None:
        table.add_row("accuracy", *(Text(f"{100 * value:.1f} %") for value in (before.accuracy, after.accuracy)))
    stdout_console().print(table)


def _lines(task: "TaskInfo", rows: "PrivateRows", outputs: list[list[float]]) -> Iterator[list[Any]]:
    """Yield the header and one line per example: its position in the data, what is predicted, what is known."""
    known = rows.targets
    if task.kind == "classification":
        label = ["label"] if known is not None else []
        yield ["row", "prediction", *label, *(f"probability_{name}" for name in task.class_names)]
        for index, values in enumerate(outputs):
            best = max(range(len(values)), key=values.__getitem__)
            truth = [task.class_names[int(known[index])]] if known is not None else []
            yield [int(rows.numbers[index]), task.class_names[best], *truth, *(f"{value:.6f}" for value in values)]
        return
    numbers = range(1, task.num_outputs + 1)
    targets = [f"target_{number}" for number in numbers] if known is not None else []
    yield ["row", *(f"prediction_{number}" for number in numbers), *targets]
    for index, values in enumerate(outputs):
        truth = known[index].tolist() if known is not None else []
        yield [int(rows.numbers[index]), *(f"{value:.9g}" for value in [*values, *truth])]


def _as_csv(lines: Iterator[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _verdict(given: _GivenModel, network: Any, examples: "Examples") -> str:
    from nufed.common.task import judge

    loss, accuracy = judge(network, given.task, given.params, examples.as_batch())
    share = "" if accuracy is None else f", accuracy {100 * accuracy:.1f} %"
    return f"of {len(examples)} labelled examples: loss {loss:.4f}{share}"
