"""From configuration to clients and task; answers are remembered by their arguments."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from nufed.common.config import DataConfig, RunConfig
from nufed.common.data.dealing import deal
from nufed.common.data.few_examples import keep_few
from nufed.common.data.input_scaling import may_scale_inputs, scale_inputs
from nufed.common.data.on_demand import MANY, ClientsOnDemand
from nufed.common.data.pool import DealtFederation, Pool, SourceRequest
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.simulated import is_own_file
from nufed.common.data.private.task import PRIVATE, check_declared, declared_task
from nufed.common.data.registry import find_source
from nufed.common.data.target_scaling import TargetScaling, declared_target_scaling, scale_targets, target_scale
from nufed.common.data.transform import transform_clients
from nufed.common.errors import DataError
from nufed.common.examples import ClientData, Federation, Group, TaskInfo
from nufed.common.settings import Settings
from nufed.common.tasks.options import with_loss_options


@lru_cache(maxsize=4)
def load_federation(config: DataConfig, *, seed: int, dtype: torch.dtype, settings: Settings) -> Federation:
    """Return all clients of a federation, `num_clients` participating ones and then `num_new_clients` new ones.

    Those of one with more than `MANY` are made, and found to be malformed, when they are asked for.

    Args:
        config: source, partition and sizes.
        seed: seed of the run; the same seed gives the same clients on every machine.
        dtype: type of inputs and of regression targets.
        settings: where data sets are on this machine.

    Raises:
        ConfigError: the source is unknown.
        DataError: the source is missing, malformed or too small.
    """
    if (held := _HELD.get((config, seed))) is not None:
        return held[0]
    dealt = _deal(config, seed, settings)
    clients: Sequence[ClientData] = ClientsOnDemand(dealt.num_total, lambda index: dealt.make_client(index, dtype))
    return Federation(dealt.task, clients if dealt.num_total > MANY else tuple(clients), dealt.notes)


def list_clients(config: DataConfig, *, seed: int, settings: Settings) -> Sequence[tuple[str, Group]] | None:
    """Return name and group of each client by partition id, without making one; None where only their data tell.

    Raises:
        ConfigError: the source is unknown.
        DataError: as for `load_federation`.
    """
    dealt = _deal(config, seed, settings)
    return None if dealt.identify is None else [dealt.identify(index) for index in range(dealt.num_total)]


@lru_cache(maxsize=256)
def load_client(
    config: DataConfig, partition_id: int, *, seed: int, dtype: torch.dtype, settings: Settings
) -> ClientData:
    """Return `load_federation(...).clients[partition_id]` without making the other clients' tensors.

    Raises:
        ConfigError: the source is unknown.
        DataError: as for `load_federation`, or there is no such client.
    """
    dealt = _deal(config, seed, settings)
    if not 0 <= partition_id < dealt.num_total:
        raise DataError(
            f"expected a partition id from 0 to {dealt.num_total - 1} (data.num-clients={config.num_clients}, "
            f"data.num-new-clients={config.num_new_clients}), but got {partition_id}; start as many supernodes as "
            "there are clients"
        )
    return dealt.make_client(partition_id, dtype)


@lru_cache(maxsize=16)
def describe_task(config: DataConfig, settings: Settings, *, seed: int = 0) -> TaskInfo:
    """Return what a model must fit; reads no examples where the source can tell without them.

    Args:
        config: source, partition and sizes.
        settings: where data sets are on this machine.
        seed: seed of the run; only a source that has to make its clients for the answer uses it.

    Raises:
        ConfigError: the source is unknown, or `private` and not described well, or its targets cannot be scaled so.
        DataError: the source is missing or malformed.
    """
    check_declared(config)
    task = _described(config, settings, seed)
    target_scale(config, task)
    return task


def task_of_run(config: RunConfig, settings: Settings) -> TaskInfo:
    """Return what a run's model must fit, with the options of its loss; arguments and errors as `describe_task`."""
    return with_loss_options(describe_task(config.data, settings, seed=config.seed), config.task)


def _described(config: DataConfig, settings: Settings, seed: int) -> TaskInfo:
    if config.source == PRIVATE:
        return declared_task(config)
    source, argument = find_source(config.source)
    if source.describe is None:
        return _deal(config, seed, settings).task
    return source.describe(SourceRequest(config, seed, settings, argument))


@dataclass(frozen=True)
class SharedScaling:
    """What all clients of a run scale alike, so that it belongs to the run's model.

    Attributes:
        targets: values to predict; None where nothing is scaled, or by each client's own support split.
        inputs: arrays in raw units of a simulation; None where nothing is scaled.
    """

    targets: TargetScaling | None = None
    inputs: Preparation | None = None


@lru_cache(maxsize=16)
def shared_scaling(config: DataConfig, settings: Settings, *, seed: int) -> SharedScaling:
    """Return what all clients of a run scale alike.

    Raises:
        ConfigError: as `describe_task`.
        DataError: the source is missing or malformed.
    """
    if (held := _HELD.get((config, seed))) is not None:
        return held[1]
    way = target_scale(config, describe_task(config, settings, seed=seed))
    declared = declared_target_scaling(config)
    if config.source == PRIVATE or is_own_file(config) or ((way != "run" or declared) and not may_scale_inputs(config)):
        return SharedScaling(declared)
    dealt = _deal(config, seed, settings)
    targets = dealt.target_scaling() if dealt.target_scaling else None
    return SharedScaling(targets, dealt.preparation() if dealt.preparation else None)


@lru_cache(maxsize=4)
def _deal(config: DataConfig, seed: int, settings: Settings) -> DealtFederation:
    check_declared(config)
    source, argument = find_source(config.source)
    loaded = source.load(SourceRequest(config, seed, settings, argument))
    dealt = deal(loaded, config, seed) if isinstance(loaded, Pool) else loaded
    if dealt.is_prepared:
        return transform_clients(dealt, config, seed)
    few = keep_few(transform_clients(dealt, config, seed), config, seed)
    return scale_targets(scale_inputs(few, config), config)


_HELD: dict[tuple[DataConfig, int], tuple[Federation, SharedScaling]] = {}  # filled by `hold_federation` alone


def hold_federation(config: DataConfig, seed: int, federation: Federation, scaling: SharedScaling) -> None:
    """Let `load_federation` and `shared_scaling` return what another process has loaded; for processes of one run."""
    _HELD.clear()
    _HELD[config, seed] = federation, scaling


def forget_federations() -> None:
    """Let go of all examples that are remembered; for a process that carries out one run after another."""
    for remembered in (load_federation, load_client, describe_task, shared_scaling, _deal):
        remembered.cache_clear()
