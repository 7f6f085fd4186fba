"""A run's model in both of its modes, built and examined once in a process however many clients share it."""

import threading
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from nufed.common.config import MethodConfig, ModelConfig
from nufed.common.errors import ModelError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.parts import check_head, uses_head
from nufed.common.models import build_model, check_same_outputs, examine
from nufed.common.models.frozen import frozen_hash, in_training_mode
from nufed.common.models.heads import with_head
from nufed.common.settings import process_settings
from nufed.common.task import ModelLoss, make_loss
from nufed.common.traits import UNKNOWN, Traits


class ModelPair:
    """The model twice, for training and for evaluation; holds what was found out about each.

    Attributes:
        training: in training mode; its own trained parameters are not used.
        evaluation: the same in evaluation mode, around the same frozen parameters.
        frozen: hash of the frozen part; empty where everything is trained.
    """

    def __init__(self, config: ModelConfig, task: TaskInfo, seed: int, device: str) -> None:
        """Build both.

        Raises:
            ConfigError: there is no model of that name.
            ModelError: the model cannot be built, or two of one seed are not equal.
        """
        training, evaluation = (build_model(config, task, seed=seed) for _ in range(2))
        _check_equal(training, evaluation)
        self.frozen = frozen_hash(training)
        _share_frozen(training.to(device), evaluation.to(device))
        check_same_outputs(training, evaluation, task)
        self.training, self.evaluation = in_training_mode(training), evaluation.eval()
        self._task = task
        self._traits: dict[tuple[bool, bool], Traits] = {}
        self._head: str | None = None
        self._lock = threading.Lock()

    def with_head(self, data: ClientData, method: MethodConfig) -> MethodConfig:
        """Return the method with the names of the head's parameters in `head`, where it treats the head otherwise.

        Raises:
            ModelError: the model has no module of that name, or which of its layers is the head is for the user to say.
        """
        if not uses_head(method):
            return method
        examples = _some_of(data)
        if method.head or examples is None:
            return with_head(self.evaluation, method, None)
        with self._lock:
            if self._head is None:
                rows = torch.arange(min(2, len(examples)), device=examples.device)
                self._head = with_head(self.evaluation, method, examples.take(rows).inputs).head
            return method.model_copy(update={"head": self._head})

    def losses(self, data: ClientData, method: MethodConfig) -> tuple[ModelLoss, ModelLoss]:
        """Return the losses in training and in evaluation mode, after the model was examined on a client's examples.

        The first client that has examples serves for all of this process.

        Raises:
            ModelError: the model's gradients would not be those of its loss, or nothing could be computed from them;
                or its head, which the method adapts or keeps, is frozen.
        """
        check_head(self.training, method)
        training = self._examined(self.training, data, twice=_differentiates_twice(method))
        evaluation = self._examined(self.evaluation, data, twice=False)
        return make_loss(self.training, self._task, training), make_loss(self.evaluation, self._task, evaluation)

    def _examined(self, model: nn.Module, data: ClientData, *, twice: bool) -> Traits:
        examples = _some_of(data)
        if examples is None:
            return UNKNOWN
        with self._lock:
            key = model.training, twice
            if key not in self._traits:
                self._traits[key] = examine(model, self._task, examples, twice=twice)
            return self._traits[key]


def _some_of(data: ClientData) -> Examples | None:
    """Return a split that has examples; None if there is none."""
    return next((split for split in (data.support, data.test, data.validation) if len(split)), None)


def model_pair(config: ModelConfig, task: TaskInfo, seed: int, device: str) -> ModelPair:
    """Return the models of a run; all clients of a process share them.

    Raises:
        ConfigError: there is no model of that name.
        ModelError: as `ModelPair`.
    """
    return _kept(config, task, seed, device, process_settings().frozen)


def forget_models() -> None:
    """Let go of all models."""
    _kept.cache_clear()


@lru_cache(maxsize=8)
def _kept(config: ModelConfig, task: TaskInfo, seed: int, device: str, _frozen: Path | None) -> ModelPair:
    return ModelPair(config, task, seed, device)


def _differentiates_twice(method: MethodConfig) -> bool:
    """Return whether the estimator takes Hessian-vector products by double backward."""
    estimator = find_estimator(method.estimator)
    return estimator.differentiates_twice and method.objective == "fine-tuned" and method.num_inner_steps > 0


def _share_frozen(one: nn.Module, other: nn.Module) -> None:
    """Let two equal models have one frozen part."""
    theirs = dict(one.named_parameters())
    for name, parameter in other.named_parameters():
        if not parameter.requires_grad:
            parameter.data = theirs[name].data


def _check_equal(one: nn.Module, other: nn.Module) -> None:
    """Refuse a model that is another one each time: server and clients build one each, and send parameters alone."""
    for kind, left, right in (
        ("buffer", dict(one.named_buffers()), dict(other.named_buffers())),
        ("parameter", dict(one.named_parameters()), dict(other.named_parameters())),
    ):
        for name in left.keys() | right.keys():
            if name not in left or name not in right or not _are_equal(left[name], right[name]):
                raise ModelError(
                    f"expected two models of one seed to be equal, but their {kind} {name!r} differs; draw it from the "
                    "global generators of torch, NumPy or Python, which are seeded, or make it without drawing"
                )


def _are_equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(torch.nan_to_num(left), torch.nan_to_num(right))
