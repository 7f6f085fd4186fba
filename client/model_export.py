"""A model as a file for other programs: a table's preparation, the model, raw outputs (logits or values).

torch-export   `.pt2` of torch.export; no further package
torchscript    `.pt` of torch.jit.trace; no further package, but torch calls TorchScript deprecated
onnx           needs the packages onnx and onnxscript (`pip install 'nufed[onnx]'`)

Every file is made in memory, read back, and compared with the model on batches of several sizes before it is written:
the libraries' own writers end the process where a disk is full.
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nufed.common import __version__
from nufed.common.data.private.preparation import Preparation
from nufed.common.durable_file import write_bytes
from nufed.common.errors import ConfigError, ModelError, nearest_match_hint
from nufed.common.examples import TaskInfo
from nufed.common.params import Params
from nufed.common.rng import torch_generator

DESCRIPTION = "nufed.json"
"""Name of the extra file in torch-export and torchscript files: classes, input shape and version."""

_BATCHES = (1, 3, 8)
_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Exportable:
    """What is exported.

    Attributes:
        model: of the run's architecture; its own parameters are not used.
        params: take their place.
        task: what the model is for.
        preparation: of a table's columns, which becomes part of the file; None if there is none.
    """

    model: nn.Module
    params: Params
    task: TaskInfo
    preparation: Preparation | None = None


class PreparedModel(nn.Module):
    """A model behind its preparation: takes the columns as they are in the table, NaN where a cell is empty."""

    def __init__(self, model: nn.Module, preparation: Preparation, input_shape: tuple[int, ...]) -> None:
        """Keep the preparation as buffers, so that it is exported with the parameters."""
        super().__init__()
        self.model = model
        for name, values in (
            ("fill", preparation.fill),
            ("shift", preparation.shift),
            ("scale", preparation.scale),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).reshape(input_shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the outputs for unprepared inputs; prepared in float64, as the client's own data were."""
        wide = inputs.double()
        filled = torch.where(wide.isnan(), self.get_buffer("fill"), wide)
        outputs: Tensor = self.model(((filled - self.get_buffer("shift")) / self.get_buffer("scale")).to(inputs.dtype))
        return outputs


def export_model(what: Exportable, form: str, path: Path) -> float:
    """Write a file and return the largest difference of its outputs from the model's, relative to their size.

    Args:
        what: the model.
        form: a key of `FORMATS`.
        path: the file; written whole or not at all.

    Raises:
        ConfigError: there is no such format, or it needs a package that is not installed.
        ModelError: the model cannot be exported, or the file does not give its outputs.
        RunError: the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format={form!r} is unknown.{nearest_match_hint(form, FORMATS)}")
    module = _module(what)
    described = {
        "version": __version__,
        "input_shape": list(what.task.input_shape),
        "kind": what.task.kind,
        "class_names": list(what.task.class_names),
    }
    try:
        content, run = FORMATS[form](module, _inputs(what, _BATCHES[1]), json.dumps(described))
        largest = max(_difference(module, run, _inputs(what, size)) for size in _BATCHES)
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
    return largest


Outputs = Callable[[Tensor], Tensor]


def _torch_export(module: nn.Module, example: Tensor, described: str) -> tuple[bytes, Outputs]:
    shapes, content = ({0: torch.export.Dim.DYNAMIC},), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own passes
        program = torch.export.export(module, (example,), dynamic_shapes=shapes)
        torch.export.save(program, content, extra_files={DESCRIPTION: described})
        loaded: Outputs = torch.export.load(io.BytesIO(content.getvalue())).module()
    return content.getvalue(), loaded


def _torchscript(module: nn.Module, example: Tensor, described: str) -> tuple[bytes, Outputs]:
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, which calls TorchScript deprecated
        traced: Any = torch.jit.trace(module, (example,))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, content, _extra_files={DESCRIPTION: described})
        loaded: Outputs = torch.jit.load(io.BytesIO(content.getvalue()))  # type: ignore[no-untyped-call]
    return content.getvalue(), loaded


def _onnx(module: nn.Module, example: Tensor, described: str) -> tuple[bytes, Outputs]:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--format=onnx needs {' and '.join(missing)}, which {'are' if len(missing) > 1 else 'is'} not installed. "
            "pip install 'nufed[onnx]', or choose torch-export."
        )
    import onnx
    from onnx.reference import ReferenceEvaluator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporter and numpy about themselves
        options: Mapping[str, Any] = {"input_names": ["inputs"], "output_names": ["outputs"], "verbose": False}
        shapes = ({0: torch.export.Dim("batch")},)
        program: Any = torch.onnx.export(module, (example,), dynamo=True, dynamic_shapes=shapes, **options)
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"nufed": described})
        onnx.checker.check_model(proto)
        content: bytes = proto.SerializeToString()
        evaluator = ReferenceEvaluator(onnx.load_model_from_string(content))

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(evaluator.run(None, {"inputs": inputs.numpy()})[0])

    return content, run


FORMATS: dict[str, Callable[[nn.Module, Tensor, str], tuple[bytes, Outputs]]] = {
    "torch-export": _torch_export,
    "torchscript": _torchscript,
    "onnx": _onnx,
}


def _module(what: Exportable) -> nn.Module:
    """Return a model in evaluation mode that holds the parameters, behind the preparation if there is one."""
    what.model.load_state_dict(what.params, strict=False)  # buffers, if any, are the architecture's
    model = what.model.eval().requires_grad_(False)
    if what.preparation is None:
        return model
    return PreparedModel(model, what.preparation, what.task.input_shape).eval()


def _inputs(what: Exportable, size: int) -> Tensor:
    """Return seeded inputs [size, *input_shape] of the model's type, of the size that the preparation expects."""
    dtype = next(iter(what.params.values())).dtype
    generator = torch_generator(0, "export", size)
    inputs = torch.randn(size, *what.task.input_shape, generator=generator, dtype=torch.float64)
    if what.preparation:
        scale, shift = (torch.tensor(values).reshape(what.task.input_shape) for values in _scaling(what.preparation))
        inputs = inputs * scale + shift
    return inputs.to(dtype)


def _scaling(preparation: Preparation) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return preparation.scale, preparation.shift


@torch.no_grad()
def _difference(module: nn.Module, run: Outputs, inputs: Tensor) -> float:
    """Return max|file - model| / max(1, max|model|) over a batch; infinite if shapes or types differ."""
    expected, got = module(inputs), run(inputs)
    if got.shape != expected.shape or got.dtype != expected.dtype or not bool(torch.isfinite(got).all()):
        return float("inf")
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1))
