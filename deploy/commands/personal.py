"""The commands around a personal model: `nufed personalize`, `nufed predict` and `nufed export`.

They work without a server and without a network, for whoever has a run's model and data of their own.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from nufed.common.config import RunConfig, Scalar
from nufed.common.errors import ConfigError
from nufed.deploy.commands.given_model import AnyModel, Data, load_given
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.outputs import Force, check_output, read_from
from nufed.deploy.commands.prediction import predict_command, shown_value
from nufed.deploy.commands.terminal import stdout_console

if TYPE_CHECKING:
    from nufed.client.personal_model import PersonalModel
    from nufed.client.workplace import Workplace


def register(app: typer.Typer) -> None:
    """Mount the commands on the program's."""
    app.command("personalize")(personalize_command)
    app.command("predict")(predict_command)
    app.command("export")(export_command)


@with_option_groups
def personalize_command(  # noqa: PLR0913 - one parameter per option
    machine: MachineOptions,
    model: Annotated[Path, typer.Option(help="a run's model.safetensors, or its folder", metavar="FILE_OR_RUN")],
    data: Data,
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
    keep: Annotated[
        str | None,
        typer.Option(
            help="best keeps the run's model where the personal one is worse on validation examples, always the "
            "personal one (default: best where there are validation examples)",
            metavar="best|always",
        ),
    ] = None,
    validation: Annotated[
        float | None,
        typer.Option(
            help="share of the examples to adapt to that is kept for that choice (default: none; with --keep best the "
            "run's data.validation-fraction)",
            min=0,
            max=0.9,
        ),
    ] = None,
    client_state: Annotated[
        Path | None,
        typer.Option(
            help="what your client kept between rounds, if the run's method has it keep something; the file ends in "
            ".client-state",
            metavar="FILE",
        ),
    ] = None,
    force: Force = False,
) -> None:
    """Adapt a run's model to your data, offline; show what it gains on data held out, and keep it in a file."""
    import torch

    from nufed.client.keeping import find_keep
    from nufed.client.personal_model import personalize_after_run
    from nufed.client.workplace import workplace
    from nufed.common.data.private.load import is_slice
    from nufed.common.models.frozen import check_frozen
    from nufed.common.settings import process_settings
    from nufed.server.run_folder import load_model

    kept = [client_state] if client_state else []
    check_output(out, inputs=[*read_from(model, data), *kept], force=force)
    chosen = find_keep("best" if keep is None else keep)
    with machine.exported(), while_working("fine-tuning"):
        params, stored = load_model(model)
        config = _adaptation(RunConfig.parse(stored["config"]), steps=steps, lr=lr, batch_size=batch_size, seed=seed)
        node_config: dict[str, Scalar] = {"data": data, "client-id": name}
        if is_slice(data):
            if validation is not None:
                raise ConfigError("--validation divides your own data, and a slice is divided as in its run. Leave it.")
        else:
            share = config.data.validation_fraction if validation is None and keep == "best" else validation or 0.0
            if keep == "best" and not share:
                raise ConfigError("--keep best needs validation examples. Type --validation with a share, e.g. 0.15.")
            # All that is not held out is there to adapt to, however few examples the run's clients had.
            config = config.updated({"data.support-examples": 0, "data.new-support-examples": 0})
            if share:
                config = config.updated({"data.validation-fraction": share})
            node_config["group"] = "participating" if share else "new"
        settings = process_settings()
        torch.set_num_threads(settings.num_threads)
        place = workplace(config.flat(), node_config, settings)
        check_frozen(place.frozen, str(stored.get("frozen", "")), "the run's model")
        place = _with_kept(place, client_state, model)
        on_device = {name: tensor.to(settings.device) for name, tensor in params.items()}
        personal = personalize_after_run(place, on_device, out, chosen)
        _show(personal)
        typer.echo(f"personal model: {out}")


@with_option_groups
def export_command(
    machine: MachineOptions,
    model: AnyModel,
    out: Annotated[Path, typer.Option(help="the file", metavar="FILE")],
    form: Annotated[
        str, typer.Option("--format", help="torch-export, torchscript, onnx or state-dict", metavar="NAME")
    ] = "torch-export",
    force: Force = False,
) -> None:
    """Write a model as a file for other programs, with a description of its inputs; compare it with the model."""
    from nufed.client.model_description import description_path
    from nufed.client.model_export import Exportable, export_model

    for path in (out, description_path(out)):
        check_output(path, inputs=read_from(model), force=force)
    with machine.exported(), while_working("exporting"):
        given = load_given(model)
        scalings = given.preparation, given.target_scaling
        what = Exportable(given.network(), given.params, given.task, *scalings, given.columns)
        difference = export_model(what, form, out)
        described = what.description(form)
        typer.echo(
            f"{form}: {out} takes {described['takes'].replace('[B', '[N')} {given.config.model.dtype}, returns "
            f"{described['returns']} {described['outputs'].partition(':')[0]}; differs from the model by at most "
            f"{difference:.1e}"
        )
        typer.echo(f"inputs, their order and scale: {description_path(out)}")


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


def _with_kept(place: "Workplace", path: Path | None, model: Path) -> "Workplace":
    """Return the client with what it kept between rounds of the run whose model this is; say where it starts without.

    Raises:
        ConfigError: the run's method has clients keep nothing, or the file is not this client's.
    """
    from dataclasses import replace

    from nufed.client.client_state import kept_in_file
    from nufed.common.client_states import RUN_ID
    from nufed.server.client_states import told_of

    what = place.config.method.client_state
    if path is None:
        if what != "none":
            typer.echo(
                f"Clients of this run keep a {what} of their own (method.client-state={what}); without yours, this "
                "starts from the run's model, as a new client does. --client-state FILE names yours."
            )
        return place
    if what == "none":
        raise ConfigError(
            f"--client-state {path} is refused: clients of this run keep nothing between rounds. Leave it."
        )
    run_id = told_of(model if model.is_dir() else model.parent).get(RUN_ID, "")
    return replace(place, kept=kept_in_file(path, place, run_id))


def _show(personal: "PersonalModel") -> None:
    """Print what the adaptation gained on the test split, and which model is kept."""
    typer.echo(
        f"{personal.client_id}: {personal.num_steps} steps of {personal.step_size:g} on {personal.num_support} examples"
    )
    table = Table(f"on {personal.num_test} held-out examples", box=None, pad_edge=False)
    for column in ("before", "after"):
        table.add_column(column, justify="right")
    before, after = personal.before, personal.after
    table.add_row("loss", f"{before.loss:.4f}", f"{after.loss:.4f}")
    for name, value in before.metrics.items():
        if name in after.metrics:
            table.add_row(name, *(Text(shown_value(name, each)) for each in (value, after.metrics[name])))
    stdout_console().print(table)
    if told := personal.choice.told:
        typer.echo(f"{told[0].upper()}{told[1:]}.")
    if personal.choice.before is None and not after.loss <= before.loss:
        typer.echo("On the held-out examples its loss is higher than before: the run's model may serve you better.")
