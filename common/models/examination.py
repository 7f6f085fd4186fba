"""The examination of a model before round 1: whether its gradients are those of the loss that is trained.

A few evaluations of a few examples, in training and in evaluation mode, answer what no list of modules can: whether
equal parameters and seeds give equal outputs, whether the parameters given are the ones computed with, whether inputs
and buffers stay as they are, and, where the estimator differentiates twice, whether that can be done and is right.
What is refused is refused with the innermost module that does it, and with a way out. Nothing of the examples is told.
"""

import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from nufed.common import trees
from nufed.common.errors import ModelError
from nufed.common.examples import Batch, Examples, TaskInfo
from nufed.common.models.agreement import gradients_near, near, same
from nufed.common.models.culprit import (
    can_be_differentiated_twice,
    described,
    find_culprit,
    find_writer,
    is_differentiated_rightly,
    is_repeatable,
    parameters_at,
    second_derivatives_are_right,
    takes_parameters,
)
from nufed.common.models.loss_examination import check_loss
from nufed.common.models.nearby import direction_at, moved
from nufed.common.models.recording import Recording, draws_of, record
from nufed.common.models.second_derivatives import double_backward
from nufed.common.models.unchanged import (
    check_buffers,
    check_generators,
    check_no_renorm,
    check_parameters_stay,
    own_generators,
)
from nufed.common.params import Params, leaves, model_params, trained_parameters
from nufed.common.rng import GLOBAL_STATE, seeded_generators
from nufed.common.steps.dense_layers import dense_layers
from nufed.common.task import ModelLoss, call_model, make_loss
from nufed.common.traits import Draws, Traits

NUM_EXAMPLES = 4
SEED = 0
EVALUATED_BYTES = 256 * 2**20
"""Memory that the results of one evaluation may take; more examples are evaluated in parts."""

LARGEST_PART = 1_000_000
"""Parameters that second derivatives are compared for."""

_TYPE = r"(?:c10::|torch\.)?(?:Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool|u?int\d+|b?float\d+|bool)"
TORCHS_WORDS = re.compile(
    "|".join(
        (
            r"derivative for '?[\w:.]{1,80}'? is not implemented",
            r"trying to differentiate twice a function that was marked with @once_differentiable",
            r"element \d+ of tensors does not require grad and does not have a grad_fn",
            r"Trying to backward through the graph a second time",
            r"torch\.utils\.checkpoint is incompatible with \.grad\(\)",
            r"torch\.compile with aot_autograd does not currently support double backward",
            r"mat1 and mat2 shapes cannot be multiplied \(\d+x\d+ and \d+x\d+\)",
            rf"mat1 and mat2 must have the same dtype, but got {_TYPE} and {_TYPE}",
            rf"expected m1 and m2 to have the same dtype, but got: {_TYPE} != {_TYPE}",
            rf"expected scalar type {_TYPE} but found {_TYPE}",
        )
    )
)
"""What torch says that holds no data; nothing else is quoted of an error, which may be raised by anybody's code."""

_PUBLIC = frozenset({"torch", "numpy"})
"""Packages whose exceptions have names that everybody knows, beside Python's own."""

OTHER_LAYERS = {
    "embedding_bag": "torch.nn.Embedding and a mean over its positions",
    "hardsigmoid": "torch.nn.Sigmoid",
    "hardswish": "torch.nn.SiLU",
}


@dataclass(frozen=True)
class _Pass:
    """A forward and a backward pass.

    Attributes:
        outputs: [B, K], detached.
        gradient: of the loss, by parameter; None for those that it does not depend on.
    """

    outputs: Tensor
    gradient: dict[str, Tensor | None]


@dataclass(frozen=True)
class _FirstCall:
    """What was seen of the first call.

    Attributes:
        outputs: [B, K], with their graph.
        point: the parameters that they were computed with.
        draws: whose random numbers it drew.
        recording: what else it did.
    """

    outputs: Tensor
    point: Params
    draws: Draws
    recording: Recording

    def depends_on(self, name: str) -> bool:
        """Return whether the outputs depend on a parameter."""
        at = self.point[name]
        return torch.autograd.grad(self.outputs.sum(), at, allow_unused=True, retain_graph=True)[0] is not None


@dataclass(frozen=True)
class _Subject:
    """What is examined: a model's loss at a point, on a batch, all random numbers seeded."""

    loss: ModelLoss
    point: Params
    batch: Batch

    @property
    def model(self) -> nn.Module:
        return self.loss.model

    def forward(self) -> Tensor:
        """Return the outputs at the point, with their graph."""
        return self.loss.outputs_of(leaves(self.point), self.batch)

    def run(self) -> _Pass:
        """Return outputs and gradient at the point."""
        return self._run(self.loss, leaves(self.point))

    def run_with_own(self) -> _Pass:
        """Return outputs and gradient at the point, which for once is where the model's own parameters are."""
        loss = replace(self.loss, outputs=lambda _, inputs: call_model(self.model, inputs))
        with parameters_at(self.model, self.point):
            return self._run(loss, dict(trained_parameters(self.model)))

    def in_double(self) -> "_Subject":
        """Return the same in float64."""
        point = {name: tensor.double() for name, tensor in self.point.items()}
        return replace(self, point=point, batch=self.batch.double())

    def _run(self, loss: ModelLoss, at: Params) -> _Pass:
        outputs = loss.outputs_of(at, self.batch)
        value = loss.meaning.loss(outputs, self.batch.targets, self.batch.weights)
        gradients = torch.autograd.grad(value, list(at.values()), allow_unused=True)
        return _Pass(outputs.detach(), dict(zip(at, gradients, strict=True)))


def examine(model: nn.Module, task: TaskInfo, examples: Examples, *, twice: bool = False) -> Traits:
    """Return what a model does in the mode that it is in, after it was found fit for training.

    Args:
        model: on the device of the examples; unchanged when this returns.
        task: what its outputs mean.
        examples: at least one of those that it is going to be trained on; a few are looked at.
        twice: whether the loss is going to be differentiated twice.

    Raises:
        ModelError: naming the module and what to do.
    """
    with GLOBAL_STATE:
        rows = torch.arange(NUM_EXAMPLES, device=examples.device) % len(examples)
        point = moved(model_params(model))
        batch = replace(examples.take(rows).as_batch(), mask_seed=SEED)
        subject = _Subject(make_loss(model, task), point, batch)
        return _examine(subject, twice=twice)


def _examine(subject: _Subject, *, twice: bool) -> Traits:
    model, batch = subject.model, subject.batch
    inputs = trees.tree_map(torch.clone, batch.inputs)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    point = {name: tensor.clone() for name, tensor in subject.point.items()}
    generators = own_generators(model)
    check_no_renorm(model)
    with _told(model, "be evaluated on a client's examples"):
        first = _first_call(subject)
    check_parameters_stay(model, first.point, point)
    check_generators(model, generators)
    if not all(map(same, trees.leaves(batch.inputs), trees.leaves(inputs))):
        writer = find_writer(model, replace(subject, batch=replace(batch, inputs=inputs)).forward, inputs)
        raise ModelError(
            f"expected inputs that stay as they are, but {writer} changes them in place; write x = x / 2 for x /= 2, "
            "and inplace=False"
        )
    check_loss(subject.loss.meaning, first.outputs.detach(), batch, twice=twice)
    if not _is_finite(subject, first.outputs.detach()):
        subject = replace(subject, point=model_params(model))
        first = _first_call(subject)
        if not _is_finite(subject, first.outputs.detach()):
            raise ModelError(
                f"expected a finite loss before training, but that of {type(model).__name__} on a client's examples is "
                "none; scale the inputs (and the values to predict), or correct the model"
            )
    if dense_layers(model, subject.loss.task):
        return Traits("nothing")  # of torch's own modules, and differentiated by hand
    if twice and first.recording.attends:
        subject = replace(subject, loss=replace(subject.loss, traits=Traits(math_attention=True)))
    _check_gradient(subject, first)
    check_buffers(model, buffers)
    if twice:
        _check_second_derivatives(subject)
    return Traits(
        _at_least(first.draws, model),
        subject.loss.traits.math_attention,
        tuple(sorted(first.recording.kinks)),
        None if model.training else _most_rows(subject, first),
    )


def _first_call(subject: _Subject) -> _FirstCall:
    device, point = trees.first_leaf(subject.batch.inputs).device, leaves(subject.point)
    unseeded = replace(subject.batch, mask_seed=None)

    def forward() -> tuple[Tensor, Draws]:
        return draws_of(lambda: subject.loss.outputs_of(point, unseeded), device)

    with seeded_generators(SEED, (device,)):
        try:
            (outputs, draws), recording = record(forward)
        except Exception:  # noqa: BLE001 - a model that cannot be watched may still work
            (outputs, draws), recording = forward(), Recording()
    return _FirstCall(outputs, point, draws, recording)


def _is_finite(subject: _Subject, outputs: Tensor) -> bool:
    """Return whether the loss is a number, after the outputs were found to be one row for each example."""
    meaning, batch = subject.loss.meaning, subject.batch
    if meaning.output_shape is not None and outputs.shape != (len(batch), *meaning.output_shape):
        raise ModelError(
            f"expected outputs of shape [B, {', '.join(map(str, meaning.output_shape))}] from "
            f"{type(subject.model).__name__}, but got {list(outputs.shape)} for B = {len(batch)}; return one row for "
            "each example"
        )
    return bool(torch.isfinite(meaning.loss(outputs, batch.targets, batch.weights)))


def _check_gradient(subject: _Subject, first: _FirstCall) -> None:
    """Refuse a model whose outputs or gradients change from call to call, or are not those at the point."""
    model = subject.model
    with _told(model, "be differentiated"):
        given = subject.run()
        own = subject.run_with_own()
    _check_dense(model, given)
    if not all(bool(torch.isfinite(each).all()) for each in given.gradient.values() if each is not None):
        raise ModelError(
            f"expected a finite gradient before training, but that of {type(model).__name__} on a client's examples is "
            "none; a root or a norm at 0 and a division by 0 have no derivative"
        )
    if not (near(given.outputs, own.outputs) and gradients_near(given.gradient, own.gradient)):
        again = subject.run()
        if near(given.outputs, again.outputs) and gradients_near(given.gradient, again.gradient):
            culprit = find_culprit(model, subject.forward, takes_parameters)
            raise ModelError(
                f"expected gradients at the parameters that are given, but {culprit} computes with the module's own. "
                "torch.utils.checkpoint does so (method.memory=low saves memory without it), and so do weights that "
                "are kept elsewhere than in the module; leave them out"
            )
        _refuse_changing(subject)
    if not near(first.outputs.detach(), given.outputs):
        _refuse_changing(subject)
    if lost := [name for name, each in given.gradient.items() if each is None and first.depends_on(name)]:
        raise ModelError(
            f"expected outputs that depend on the parameters in every call, but on {lost[0]!r} they do in the first "
            "call alone; keep nothing that was computed from parameters"
        )


def _check_dense(model: nn.Module, found: _Pass) -> None:
    for name, each in found.gradient.items():
        if each is not None and each.layout != torch.strided:
            raise ModelError(
                f"expected dense gradients, but that of {name!r} of {described(model, name.rpartition('.')[0])} is "
                "sparse; set sparse=False"
            )


def _refuse_changing(subject: _Subject) -> NoReturn:
    culprit = find_culprit(subject.model, subject.forward, is_repeatable)
    raise ModelError(
        f"expected equal outputs and gradients at equal parameters and seeds, but those of {culprit} differ; draw "
        "random numbers in the forward pass alone, from the global generators of torch, NumPy or Python, which are "
        "seeded for each batch, and keep nothing from one call to the next"
    )


def _check_second_derivatives(subject: _Subject) -> None:
    model = subject.model

    def value(point: Mapping[str, Tensor]) -> Tensor:
        return subject.loss(point, subject.batch)

    try:
        product = double_backward(value, subject.point, direction_at(subject.point))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        culprit = find_culprit(model, subject.forward, can_be_differentiated_twice)
        others = [f"use {other} in its place, or " for name, other in OTHER_LAYERS.items() if name in str(error)]
        raise ModelError(
            f"expected a model that can be differentiated twice, as method.estimator=exact and unrolled do, but "
            f"{culprit} cannot ({_reason(error, model)}); {''.join(others)}choose method.estimator=hessian-free or "
            "first-order"
        ) from error
    if not all(bool(torch.isfinite(each).all()) for each in product.values()):
        raise ModelError(
            f"expected finite second derivatives before training, but those of {type(model).__name__} on a client's "
            "examples are not: a root or a norm at 0 has none, and large inputs overflow; add a small number to it, "
            "scale the inputs, or choose method.estimator=hessian-free or first-order"
        )
    if not _is_right_in_double(subject):
        culprit = find_culprit(model, subject.forward, is_differentiated_rightly)
        raise ModelError(
            f"expected second derivatives that belong to the gradients, but those of {culprit} do not. A function "
            "whose backward pass is written by hand must compute it by differentiable operations on its saved tensors, "
            "detach() hides what depends on the parameters, and torch's own weight_norm is wrong on some processors; "
            "write it otherwise, or choose method.estimator=hessian-free or first-order"
        )


def _is_right_in_double(subject: _Subject) -> bool:
    """Return whether second derivatives are right; yes also where a model cannot be computed in float64."""
    double = subject.in_double()
    try:
        recording = _first_call(double).recording
        return second_derivatives_are_right(
            lambda some: double.loss({**double.point, **some}, double.batch), _smallest(double.point), recording
        )
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return True


def _smallest(point: Params) -> Params:
    """Return the smallest tensors, of nearly all layers, as many as are differentiated twice in little time."""
    found, count = dict[str, Tensor](), 0
    for name in sorted(point, key=lambda name: point[name].numel()):
        count += point[name].numel()
        if found and count > LARGEST_PART:
            break
        found[name] = point[name]
    return found


def _at_least(draws: Draws, model: nn.Module) -> Draws:
    """Return what is drawn from; a dropout module may be called another time."""
    drops = any(isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0 for module in model.modules())
    return "torch" if draws == "nothing" and drops and model.training else draws


def _most_rows(subject: _Subject, first: _FirstCall) -> int | None:
    """Return how many examples may be evaluated at once; None where one's outputs depend on the others."""
    half = NUM_EXAMPLES // 2
    batch = subject.batch.rows(torch.arange(half, device=first.outputs.device))
    fewer = _first_call(replace(subject, batch=batch))
    if not near(first.outputs[:half].detach(), fewer.outputs.detach()):
        return None
    num_bytes = (first.recording.num_bytes - fewer.recording.num_bytes) // (NUM_EXAMPLES - half)
    return max(1, EVALUATED_BYTES // num_bytes) if num_bytes > 0 else None


@contextmanager
def _told(model: nn.Module, what: str) -> Iterator[None]:
    """Tell in one sentence what a model raises, without quoting what may be data."""
    try:
        yield
    except Exception as error:  # the user's model may raise anything
        raise ModelError(
            f"expected {type(model).__name__} to {what}, but it raised {_reason(error, model)}; correct the model, or "
            "choose another model.name"
        ) from error


def _reason(error: Exception, model: nn.Module) -> str:
    """Return the kind of an error and where it was raised; its words where these are torch's own and hold no data.

    What comes of other code than torch's and the model's, names of files and of exceptions too, is left out.
    """
    known = type(error).__module__.partition(".")[0] in _PUBLIC | sys.stdlib_module_names
    kind = type(error).__name__ if known else "an exception of its own code"
    quoted = TORCHS_WORDS.search(str(error))
    told = f"{kind}: {quoted.group()}" if quoted else kind
    of_model = {type(module).__module__ for module in model.modules()}
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = str(frame.f_globals.get("__name__", ""))
        if name in of_model and name.partition(".")[0] not in {*_PUBLIC, "nufed"}:
            return f"{told} ({Path(frame.f_code.co_filename).name}, line {line})"
    return told
