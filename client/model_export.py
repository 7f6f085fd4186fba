"""A model as a file for other programs: raw inputs in, logits or values in their own unit out.

torch-export   `.pt2` of torch.export; no further package
torchscript    `.pt` of torch.jit.trace; no further package, but torch calls TorchScript deprecated
onnx           needs the packages onnx and onnxscript (`pip install 'nufed[onnx]'`)
state-dict     `.safetensors` of the parameters alone, for a module of one's own; its reader prepares inputs

Every file is made in memory, read back, and compared with the model on batches of several sizes before it is written:
the libraries' own writers end the process where a disk is full. What it takes and returns is written beside it and into
it (client/model_description.py).
"""

import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from nufed.client.model_description import describe, description_path
from nufed.common.data.array_trees import map_arrays
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.spare import filled
from nufed.common.data.private.task import Column
from nufed.common.data.target_scaling import TargetScaling
from nufed.common.durable_file import write_bytes, write_json
from nufed.common.errors import ConfigError, ModelError, nearest_match_hint
from nufed.common.examples import InputSpec, TaskInfo, TensorSpec
from nufed.common.input_forms import dummy_inputs, is_named
from nufed.common.params import Params
from nufed.common.rng import torch_generator
from nufed.common.task import call_model, logits_of
from nufed.common.trees import Tree, leaves

DESCRIPTION = "nufed.json"
"""Name of the extra file in torch-export and torchscript files: their description."""

_BATCHES = (1, 3, 8)
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exportable:
    """What is exported.

    Attributes:
        model: of the run's architecture; its own parameters are not used.
        params: take their place.
        task: what the model is for.
        preparation: of its inputs, which becomes part of the file; None if there is none.
        target_scaling: of the values that it predicts, which the file undoes; None if there is none.
        columns: of the table whose rows are its inputs; empty if there is none.
    """

    model: nn.Module
    params: Params
    task: TaskInfo
    preparation: Preparation | None = None
    target_scaling: TargetScaling | None = None
    columns: tuple[Column, ...] = ()

    def description(self, form: str) -> dict[str, Any]:
        """Return what a file of this form takes and returns."""
        dtype = str(_dtype(self)).removeprefix("torch.")
        scalings = self.preparation, self.target_scaling
        return describe(self.task, dtype, self.columns, scalings, in_model=form != STATE_DICT)


class PreparedModel(nn.Module):
    """A model for raw rows, NaN where a cell is empty: prepares them, and undoes the scaling of what it predicts."""

    def __init__(
        self,
        model: nn.Module,
        preparation: Preparation | None,
        scaling: TargetScaling | None,
        input_shape: tuple[int, ...],
    ) -> None:
        """Keep both as buffers, so that they are exported with the parameters."""
        super().__init__()
        self.model, self.input_shape = model, input_shape
        self.answers = Answers(scaling)
        self.is_prepared, self.has_flags = preparation is not None, False
        if preparation:
            whole = filled(preparation)
            flags = torch.tensor(whole.flags or [-1] * len(whole.fill))
            self.has_flags = bool((flags >= 0).any())
            self.register_buffer("flags", flags)
            for name, values in (("fill", whole.fill), ("shift", whole.shift), ("scale", whole.scale)):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs for raw inputs; prepared in float64, as the client's own data were."""
        outputs: Tensor = self.answers(self.model(self._prepared(inputs) if self.is_prepared else inputs))
        return outputs

    def _prepared(self, inputs: Tensor) -> Tensor:
        wide = inputs.double().flatten(1)
        whole = torch.where(wide.isnan(), self.get_buffer("fill"), wide)
        prepared = (whole - self.get_buffer("shift")) / self.get_buffer("scale")
        if self.has_flags:
            flags = self.get_buffer("flags")
            told = wide.index_select(1, flags.clamp(min=0)).isnan().to(prepared.dtype)
            prepared = torch.where(flags >= 0, told, prepared)
        return prepared.reshape(-1, *self.input_shape).to(inputs.dtype)


def export_model(what: Exportable, form: str, path: Path) -> float:
    """Write a file and its description, and return the largest difference of its outputs from the model's.

    Args:
        what: the model.
        form: a key of `FORMATS`.
        path: the file; written whole or not at all.

    Returns:
        The difference relative to the outputs' size.

    Raises:
        ConfigError: there is no such format, or it needs a package that is not installed.
        ModelError: the model cannot be exported, or the file does not give its outputs.
        RunError: the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format={form!r} is unknown.{nearest_match_hint(form, FORMATS)}")
    module, described = _module(what, form), what.description(form)
    try:
        content, run = FORMATS[form](module, _inputs(what, _BATCHES[1], form), json.dumps(described))
        largest = max(_difference(module, run, _inputs(what, size, form)) for size in _BATCHES)
    except ConfigError:
        raise
    except Exception as error:  # a user's model may use anything, and exporters raise anything
        raise ModelError(
            f"expected {type(what.model).__name__} to be exportable as {form}, but {type(error).__name__} was "
            f"raised: {error}. Choose another --format"
        ) from error
    if largest > _TOLERANCE:
        raise ModelError(
            f"expected the {form} file to give the model's outputs, but they differ by {largest:.1e} of their size; "
            "choose another --format"
        )
    write_bytes(path, content)
    write_json(description_path(path), described)
    return largest


Outputs = Callable[[Tree], Tensor]


class Answers(nn.Module):
    """What follows a model's call: the logits of what it returns, and values in their own unit."""

    def __init__(self, scaling: TargetScaling | None) -> None:
        """Keep the scaling as buffers, so that it is exported with the parameters."""
        super().__init__()
        self.is_scaled = scaling is not None
        if scaling:
            self.register_buffer("target_means", torch.tensor(scaling.means, dtype=torch.float64))
            self.register_buffer("target_scales", torch.tensor(scaling.scales, dtype=torch.float64))

    def forward(self, returned: Any) -> Tensor:
        """Return the outputs that a model has returned."""
        outputs = logits_of(returned)
        if not self.is_scaled:
            return outputs
        wide = outputs.double() * self.get_buffer("target_scales") + self.get_buffer("target_means")
        return wide.to(outputs.dtype)


def several_inputs(model: nn.Module, spec: InputSpec, scaling: TargetScaling | None) -> nn.Module:
    """Return a module whose forward has one argument for each part of the inputs, in the order of the description."""
    graph = torch.fx.Graph()
    names = [name for name, _ in spec] if is_named(spec) else [f"inputs_{number}" for number in range(len(spec))]  # type: ignore[arg-type, union-attr]
    arguments = [graph.placeholder(name) for name in names]
    by_name = is_named(spec)
    returned = graph.call_module(
        "model", () if by_name else tuple(arguments), dict(zip(names, arguments, strict=True)) if by_name else {}
    )
    graph.output(graph.call_module("answers", (returned,)))
    return torch.fx.GraphModule({"model": model, "answers": Answers(scaling)}, graph).eval()


def _call(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a model's call, as `nufed.common.task.call_model` gives them."""
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    return (inputs, {}) if isinstance(inputs, tuple) else ((), dict(inputs))


def _each(tree: Any, value: Any) -> Any:
    """Return the tree with a value in the place of each tensor."""
    return map_arrays(lambda _: value, tree)


def _torch_export(module: nn.Module, example: Tree, described: str) -> tuple[bytes, Outputs]:
    args, named = _call(example)
    sizes = {0: torch.export.Dim.DYNAMIC}
    shapes: Any = _each(named or args, sizes)
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own passes
        program = torch.export.export(module, args, named or None, dynamic_shapes=shapes)
        torch.export.save(program, content, extra_files={DESCRIPTION: described})
        loaded = torch.export.load(io.BytesIO(content.getvalue())).module()
    return content.getvalue(), lambda inputs: call_model(loaded, inputs)


def _torchscript(module: nn.Module, example: Tree, described: str) -> tuple[bytes, Outputs]:
    args, named = _call(example)
    content = io.BytesIO()
    given: Any = {"example_kwarg_inputs": named} if named else {"example_inputs": args}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which calls TorchScript deprecated
        traced: Any = torch.jit.trace(module, **given)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content, _extra_files={DESCRIPTION: described})
        loaded: Any = torch.jit.load(io.BytesIO(content.getvalue()))  # type: ignore[no-untyped-call]
    return content.getvalue(), lambda inputs: call_model(loaded, inputs)


def _state_dict(module: nn.Module, _example: Tree, described: str) -> tuple[bytes, Outputs]:
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    content = safetensors.torch.save(tensors, {"nufed": described})
    other = copy.deepcopy(module)
    other.load_state_dict(safetensors.torch.load(content))
    return content, lambda inputs: call_model(other, inputs)


def _onnx(module: nn.Module, example: Tree, described: str) -> tuple[bytes, Outputs]:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format=onnx needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed. "
            "pip install 'nufed[onnx]', or choose torch-export."
        )
    import onnx
    from onnx.reference import ReferenceEvaluator

    args, named = _call(example)
    names = [array["name"] for array in json.loads(described)["arrays"]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporter and numpy about themselves
        options: Mapping[str, Any] = {"input_names": names, "output_names": ["outputs"], "verbose": False}
        sizes = {0: torch.export.Dim("batch")}
        shapes: Any = _each(named or args, sizes)
        program: Any = torch.onnx.export(
            module, args, kwargs=named or None, dynamo=True, dynamic_shapes=shapes, **options
        )
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"nufed": described})
        onnx.checker.check_model(proto)
        content: bytes = proto.SerializeToString()
        evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))

    def run(inputs: Tree) -> Tensor:
        given = {name: leaf.numpy() for name, leaf in zip(names, leaves(inputs), strict=True)}
        return torch.from_numpy(evaluator.run(None, given)[0])

    return content, run


STATE_DICT = "state-dict"
FORMATS: dict[str, Callable[[nn.Module, Tree, str], tuple[bytes, Outputs]]] = {
    "torch-export": _torch_export,
    "torchscript": _torchscript,
    "onnx": _onnx,
    STATE_DICT: _state_dict,
}


def _module(what: Exportable, form: str) -> nn.Module:
    """Return a model in evaluation mode that holds the parameters, behind its preparation if the file does it."""
    what.model.load_state_dict(what.params, strict=False)  # buffers, if any, are the architecture's
    model = what.model.eval().requires_grad_(False)
    if form == STATE_DICT:
        return model
    spec = what.task.input_spec
    if spec is not None and not isinstance(spec, TensorSpec):
        return several_inputs(model, spec, what.target_scaling)
    if what.preparation is None and what.target_scaling is None and _returns_tensor(what, model):
        return model
    return PreparedModel(model, what.preparation, what.target_scaling, what.task.input_shape).eval()


@torch.no_grad()
def _returns_tensor(what: Exportable, model: nn.Module) -> bool:
    """Return whether a model that takes one tensor returns one, and not what has logits."""
    return isinstance(model(_inputs(what, 1, STATE_DICT)), Tensor)


def _dtype(what: Exportable) -> torch.dtype:
    return next(iter(what.params.values())).dtype


def _inputs(what: Exportable, size: int, form: str) -> Tree:
    """Return seeded inputs of so many examples, of the model's type and the size that the preparation expects."""
    if what.task.input_spec is not None:
        return dummy_inputs(what.task, size, torch.zeros(0, dtype=_dtype(what)))
    generator = torch_generator(0, "export", size)
    inputs = torch.randn(size, *what.task.input_shape, generator=generator, dtype=torch.float64)
    if what.preparation and form != STATE_DICT:
        shift, scale = (
            torch.tensor(values).reshape(what.task.input_shape)
            for values in (what.preparation.shift, what.preparation.scale)
        )
        inputs = inputs * scale + shift
    return inputs.to(_dtype(what))


@torch.no_grad()
def _difference(module: nn.Module, run: Outputs, inputs: Tree) -> float:
    """Return max|file - model| / max(1, max|model|) over a batch; infinite if shapes or types differ."""
    expected, got = call_model(module, inputs), run(inputs)
    if got.shape != expected.shape or got.dtype != expected.dtype or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))
