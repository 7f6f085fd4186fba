"""`nufed predict`: a CSV line for each example, or arrays in their own shape."""

import csv
import io
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.metric_looks import LOSS
from nufed.deploy.commands.given_model import AnyModel, Data, GivenModel, load_given
from nufed.deploy.commands.heartbeat import while_working
from nufed.deploy.commands.option_groups import MachineOptions, with_option_groups
from nufed.deploy.commands.outputs import Force, check_output, read_from
from nufed.server.progress_lines import number

if TYPE_CHECKING:
    from nufed.common.data.private.rows import PrivateRows
    from nufed.common.examples import Examples, TaskInfo

_CLASS_AXES = {"classification": -1, "tokens": -1, "segmentation": 1}


@with_option_groups
def predict_command(  # noqa: PLR0913 - one parameter per option
    machine: MachineOptions,
    model: AnyModel,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV file (default: standard output); a name that ends in .npz gets arrays, masks and token labels in "
            "their shape",
            metavar="CSV|NPZ",
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            help="rows with an empty cell that the model has nothing for: fill takes the middle of the examples that "
            "it was adapted to, drop leaves them out",
            metavar="fill|drop",
        ),
    ] = "fill",
    force: Force = False,
) -> None:
    """Predict your data with a model, one CSV line per example or as arrays; labels, if any, are compared with."""
    from nufed.client.personal_model import predict
    from nufed.common.data.private.found_rows import load_rows
    from nufed.common.data.private.spare import find_way
    from nufed.common.durable_file import write_bytes, write_text
    from nufed.common.settings import process_settings

    way = find_way(missing)
    if out is not None:
        check_output(out, inputs=read_from(model, data), force=force)
    with machine.exported(), while_working("predicting"):
        given = load_given(model)
        found = load_rows(data, given.task, given.config, process_settings(), given.preparation, empty=way)
        rows, examples = found.rows, found.examples
        network = given.network()
        outputs = predict(network, given.task, given.params, examples.inputs, given.target_scaling)
        if out is not None and out.suffix.lower() == ".npz":
            write_bytes(out, _as_npz(given.task, rows, outputs.cpu().numpy()))
        else:
            flat = outputs[:, None] if outputs.ndim == 1 else outputs.flatten(1)
            text = _as_csv(_lines(given.task, rows, flat.double().tolist()))
            if out is None:
                sys.stdout.write(text)
            else:
                write_text(out, text)
            if outputs.ndim > 2:
                shape = ", ".join(map(str, outputs.shape[1:]))
                typer.echo(f"each line has the {flat.shape[1]} numbers of [{shape}]; --out NAME.npz keeps it", err=True)
        if found.told:
            typer.echo(found.told, err=True)
        if rows.targets is not None:
            typer.echo(_verdict(given, network, examples), err=out is None)


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
    flat = None if known is None else _flat(known)
    width = len(outputs[0]) if outputs else task.num_outputs
    targets = [f"target_{number + 1}" for number in range(flat.shape[1])] if flat is not None else []
    yield ["row", *(f"prediction_{number + 1}" for number in range(width)), *targets]
    for index, values in enumerate(outputs):
        truth = flat[index].tolist() if flat is not None else []
        yield [int(rows.numbers[index]), *(f"{value:.9g}" for value in [*values, *truth])]


def _flat(targets: Any) -> Any:
    """Return targets [N, ...], one array or several, as [N, M]."""
    import numpy as np

    from nufed.common.data.array_trees import named_arrays

    return np.concatenate(
        [array.reshape(len(array), math.prod(array.shape[1:])) for _, array in named_arrays(targets)], 1
    )


def _as_npz(task: "TaskInfo", rows: "PrivateRows", outputs: Any) -> bytes:
    """Return an archive: `rows` [N], `predictions` [N, ...], `classes` of examples or positions, `targets` if known."""
    import numpy as np

    from nufed.common.data.array_trees import named_arrays

    arrays = {"rows": rows.numbers, "predictions": outputs}
    if task.kind in _CLASS_AXES:
        arrays["classes"] = outputs.argmax(_CLASS_AXES[task.kind])
    if task.class_names:
        arrays["class_names"] = np.array(task.class_names)
    if rows.targets is not None:
        arrays |= {f"targets_{place}" if place else "targets": array for place, array in named_arrays(rows.targets)}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _as_csv(lines: Iterator[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _verdict(given: GivenModel, network: Any, examples: "Examples") -> str:
    from nufed.client.verdict import judged_in_units
    from nufed.common.trees import one_tensor

    scaling = given.target_scaling
    if scaling:
        targets = one_tensor(examples.targets, "targets")
        examples = replace(examples, targets=scaling.apply(targets).to(next(iter(given.params.values())).dtype))
    found = judged_in_units(network, given.task, given.params, examples, scaling)
    told = ", ".join(f"{name} {shown_value(name, value)}" for name, value in found.items())
    return f"of {len(examples)} labelled examples: {told}"


def shown_value(name: str, value: float) -> str:
    """Return a metric's value, or the loss to four decimals; `undefined` for what is no number."""
    if math.isnan(value):
        return "undefined"
    return f"{value:.4f}" if name == LOSS else number(value, name)
