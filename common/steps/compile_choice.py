"""`method.compile=auto`: compile the inner step where the meta steps to come repay it.

What compiling cost and gained the last time is remembered for each model, estimator and machine setting in
`$XDG_CACHE_HOME/nufed/compile-costs.json` (`~/.cache` without the variable). A guess serves until then.
"""

import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from nufed.common.config import MethodConfig, RunConfig
from nufed.common.config.method import has_own_inner_steps
from nufed.common.examples import Batch
from nufed.common.json_text import parse_object
from nufed.common.meta.draw import batch_plan
from nufed.common.meta.estimators import find_estimator
from nufed.common.meta.meta_gradient import MetaBatches, MetaGradient
from nufed.common.params import model_params, trained_parameters
from nufed.common.steps.cautions import caution
from nufed.common.steps.dense_steps import dense_steps
from nufed.common.task import LossFn, ModelLoss
from nufed.common.tasks import is_plain

GUESSED_COMPILE_SECONDS, GUESSED_SPEEDUP, NUM_TIMED = 60.0, 1.5, 3


@dataclass(frozen=True)
class CompileCost:
    """Seconds of wall time: to compile once, and of one meta step either way."""

    compile_seconds: float
    eager_seconds: float
    compiled_seconds: float

    def repaid_by(self, num_meta_steps: int) -> bool:
        """Return whether so many meta steps save more than compiling costs."""
        return num_meta_steps * (self.eager_seconds - self.compiled_seconds) > self.compile_seconds


@lru_cache(maxsize=64)
def settle_compile(config: RunConfig, loss: LossFn, num_clients: int) -> RunConfig:
    """Return the configuration with `method.compile` on or off in the place of auto.

    Args:
        config: the run's.
        loss: the clients' loss, in training mode.
        num_clients: participating clients that this process works for.
    """
    method, federation = config.method, config.federation
    if method.compile != "auto":
        return config
    rounds_trained = federation.num_rounds * max(1, round(federation.participation_fraction * num_clients))
    takes_steps = not has_own_inner_steps(method) and method.inner_schedule == "constant"
    on = (
        takes_steps
        and isinstance(loss, ModelLoss)
        and _worthwhile(loss, method, rounds_trained * method.num_local_steps)
    )
    settled = method.model_copy(update={"compile": "on" if on else "off"})
    return config.model_copy(update={"method": settled})


def _worthwhile(loss: ModelLoss, method: MethodConfig, num_meta_steps: int) -> bool:
    """Return whether to compile; compiles, measures and remembers where it seems so."""
    sizes = (method.batch_size, method.outer_batch_size, method.hessian_batch_size)
    if 0 in sizes or any(map(_never_gains, loss.model.modules())) or not is_plain(loss.task):
        return False  # a batch of all examples has as many shapes as there are clients
    key = _key(loss, method)
    costs = read_costs(costs_path())
    if not (costs.get(key) or _guess(loss, method)).repaid_by(num_meta_steps):
        return False
    cost = _measure(loss, method)
    write_costs(costs_path(), {**read_costs(costs_path()), key: cost})
    return cost.compiled_seconds < cost.eager_seconds


def _never_gains(module: nn.Module) -> bool:
    """Return whether a layer is computed eagerly (dropout), or as fast eagerly as compiled (convolutions)."""
    return isinstance(module, nn.modules.conv._ConvNd) or (
        isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    )


def _guess(loss: ModelLoss, method: MethodConfig) -> CompileCost:
    eager = _seconds(loss, *_sample(loss, method, "off"))
    return CompileCost(GUESSED_COMPILE_SECONDS, eager, eager / GUESSED_SPEEDUP)


def _measure(loss: ModelLoss, method: MethodConfig) -> CompileCost:
    meta_gradient, batches = _sample(loss, method, "on")
    started = time.perf_counter()
    meta_gradient(model_params(loss.model), batches)
    compile_seconds = time.perf_counter() - started
    eager = _seconds(loss, *_sample(loss, method, "off"))
    return CompileCost(compile_seconds, eager, _seconds(loss, meta_gradient, batches))


def _seconds(loss: ModelLoss, meta_gradient: MetaGradient, batches: MetaBatches) -> float:
    """Return the least seconds of some meta steps."""
    params, seconds = model_params(loss.model), []
    for _ in range(1 + NUM_TIMED):
        started = time.perf_counter()
        meta_gradient(params, batches)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _sample(loss: ModelLoss, method: MethodConfig, compile_option: str) -> tuple[MetaGradient, MetaBatches]:
    """Return the estimator and zero batches of the run's sizes."""
    estimator = find_estimator(method.estimator)
    plan = batch_plan(method, uses_hessian_batches=estimator.uses_hessian_batches)
    weight = next(iter(trained_parameters(loss.model).values()))

    def batch(size: int) -> Batch:
        inputs = torch.zeros(size, *loss.task.input_shape, dtype=weight.dtype, device=weight.device)
        dtype = weight.dtype if loss.meaning.needs_float_targets else torch.int64
        return Batch(inputs, torch.zeros(size, *loss.meaning.target_shape, dtype=dtype, device=weight.device))

    inner = tuple(batch(plan.inner_size) for _ in range(plan.num_inner))
    hessian = tuple(batch(plan.hessian_size) for _ in range(plan.num_hessian)) or inner
    settled = method.model_copy(update={"compile": compile_option})
    return estimator.build(loss, settled), MetaBatches(inner, batch(plan.outer_size), hessian)


def _key(loss: ModelLoss, method: MethodConfig) -> str:
    """Return a name for all that the cost depends on."""
    first = next(iter(trained_parameters(loss.model).values()))
    facts = [torch.__version__, torch.get_num_threads(), str(first.device), str(first.dtype), repr(loss.model)]
    facts += ["by hand"] if dense_steps(loss, method.inner_lr) else []  # what compiling is measured against
    text = json.dumps([*facts, str(loss.task), method.model_dump(exclude={"compile", "local_lr", "num_local_steps"})])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def costs_path() -> Path:
    """Return the file that costs are remembered in."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "nufed" / "compile-costs.json"


def read_costs(path: Path) -> dict[str, CompileCost]:
    """Return the remembered costs by key; none where there is no file, or none that can be read."""
    try:
        content = parse_object(path.read_text(encoding="utf-8"))
        return {key: CompileCost(**values) for key, values in content.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        caution(f"method.compile=auto: the remembered costs in {path} cannot be read ({error}); starting anew.")
        return {}


def write_costs(path: Path, costs: dict[str, CompileCost]) -> None:
    """Remember costs; a folder that cannot be written to is said once."""
    text = json.dumps({key: asdict(cost) for key, cost in costs.items()}, indent=1) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        caution(f"method.compile=auto: costs cannot be remembered in {path} ({error.strerror}).")
