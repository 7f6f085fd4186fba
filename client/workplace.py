"""What a client process keeps between messages: its data, its model and the losses made of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import nn

from nufed.client.model_pair import forget_models, model_pair
from nufed.client.split_memory import SplitMemory, state_path
from nufed.common.config import RunConfig, Scalar
from nufed.common.data import load_federation, shared_scaling
from nufed.common.data.as_new import Part, Trial, as_new, check_part
from nufed.common.data.private.load import Membership, PrivateClient, load_private
from nufed.common.data.private.preparation import Preparation
from nufed.common.data.private.rows import refusal, tell_here
from nufed.common.data.private.split import SplitHashes
from nufed.common.data.private.task import Column
from nufed.common.errors import ConfigError, NufedError
from nufed.common.examples import ClientData, Group, TaskInfo
from nufed.common.metrics.trial import try_own_metrics
from nufed.common.models import MODELS
from nufed.common.params import Params
from nufed.common.privacy.publishing import Publication
from nufed.common.settings import Settings
from nufed.common.steps.compile_choice import settle_compile
from nufed.common.task import ModelLoss
from nufed.common.tasks import TASKS
from nufed.common.tasks.client_check import check_client_targets
from nufed.common.tasks.options import with_loss_options
from nufed.common.tasks.weights import weighted_client
from nufed.common.trees import one_tensor

FLIP_LABELS = "flip-labels"
"""Of a simulated node's configuration: whether its client attacks by training on wrong labels."""

Items = tuple[tuple[str, Scalar], ...]


@dataclass(frozen=True)
class Workplace:
    """One client, ready to work.

    Attributes:
        config: the run's configuration.
        task: what model and loss fit.
        data: the client's splits, on the device.
        model: in evaluation mode; its own parameters are not used.
        training_loss: in training mode, what it draws following the batch.
        adaptation_loss: in evaluation mode.
        preparation: how a private table's columns became the inputs; None where nothing was changed.
        kept: what the client keeps between rounds, while a message is answered (nufed.client.client_state).
        columns: of a private table, in the order of the inputs; empty otherwise.
        own: which of its own examples are for what, and what it remembers of earlier ones; None in a simulation.
        frozen: hash of the model's frozen part; empty where everything is trained.
        is_trial: whether the run is a trial of a search, of whose model nothing is kept.
    """

    config: RunConfig
    task: TaskInfo
    data: ClientData
    model: nn.Module
    training_loss: ModelLoss
    adaptation_loss: ModelLoss
    preparation: Preparation | None = None
    own: "OwnExamples | None" = None
    frozen: str = ""
    columns: tuple[Column, ...] = ()
    kept: Params | None = None
    is_trial: bool = False

    @property
    def shown(self) -> Publication:
        """Return what the run lets this client send beside its model."""
        return Publication.of(self.config)

    @property
    def masks(self) -> bool:
        """Return whether the training loss draws random numbers, such as dropout masks."""
        return self.training_loss.traits.draws != "nothing"


def workplace(
    run_config: Mapping[str, Scalar], node_config: Mapping[str, Scalar], settings: Settings, part: Part | None = None
) -> Workplace:
    """Return this client's workplace, built at its first message and kept.

    Args:
        run_config: the run's options; those of a trial with the seed that examples are divided by.
        node_config: of this client.
        settings: of this machine.
        part: of its examples, where the client is held out of a trial; None takes part as usual.

    Raises:
        ConfigError: the run or node configuration is wrong.
        DataError: the client's data cannot be had.
        ModelError: the model cannot be built, or cannot be trained on this client's examples.
        WireError: it has no such part.
    """
    return _workplace(tuple(sorted(run_config.items())), tuple(sorted(node_config.items())), settings, part)


def forget_workplaces() -> None:
    """Let go of all workplaces, examples and models; for a process that carries out one run after another."""
    _workplace.cache_clear()
    forget_models()


@lru_cache(maxsize=1)
def start_run(_run_id: int) -> None:
    """Forget the workplaces of the run before, so that a client reads its own data anew at the first message of each.

    A client's process outlives runs, and its files may change between them.
    """
    forget_workplaces()


@dataclass(frozen=True)
class OwnExamples:
    """A client's own examples: their hashes, how they were split, and what is remembered of earlier training."""

    hashes: SplitHashes
    way: str
    memory: SplitMemory

    def remember(self) -> None:
        """Note that the support split was trained on."""
        self.memory.remember(self.way, self.hashes)


@lru_cache(maxsize=4096)
def _workplace(run_items: Items, node_items: Items, settings: Settings, part: Part | None) -> Workplace:
    config, trial = _config(run_items)
    node_config = dict(node_items)
    if "data" in node_config:
        dealt = _dealt(config, trial)
        client = _read(membership(node_config), dealt, settings, trial)
        client = client if part is None else _held_out(client, part, dealt)
        place = workplace_of(client, config, node_config, settings, split_seed=dealt.seed)
        return replace(place, is_trial=trial is not None)
    client = _simulated_client(config, node_config, settings)
    return workplace_of(client, config, node_config, settings)


def _read(member: Membership, dealt: RunConfig, settings: Settings, trial: Trial | None) -> PrivateClient:
    """Return a client's data, which are read anew for every run, and for all trials of a search once."""
    if trial is None:
        _read_once.cache_clear()
        return load_private(member, dealt, settings)
    told = {"data": dealt.data, "model": dealt.model, "privacy": dealt.privacy, "seed": dealt.seed}
    return _read_once(member, RunConfig().model_copy(update=told), settings, trial)


@lru_cache(maxsize=1)
def _read_once(member: Membership, told: RunConfig, settings: Settings, _trial: Trial) -> PrivateClient:
    return load_private(member, told, settings)


def _held_out(client: PrivateClient, part: Part, dealt: RunConfig) -> PrivateClient:
    """Return a client as the new one that a part of its examples stands for, which trains on none.

    Raises:
        WireError: it has no such part, is a new client anyway, or the run may not tell how many examples it has.
    """
    data = client.data
    check_part(part, data, is_private=dealt.privacy.dp != "none")
    return replace(client, data=as_new(data, part, dealt.data, client.task, seed=dealt.seed), hashes=None)


def workplace_of(
    client: PrivateClient,
    config: RunConfig,
    node_config: Mapping[str, Scalar],
    settings: Settings,
    *,
    split_seed: int | None = None,
) -> Workplace:
    """Return the workplace of a client that was read, with its model built and examined on its examples.

    Args:
        client: as it was read.
        config: the run's configuration.
        node_config: the client's.
        settings: of this machine.
        split_seed: that the client's own examples were divided by; None is the run's.

    Raises:
        ConfigError: the run or node configuration is wrong.
        DataError: the client's data are not what the run's options ask for.
        ModelError: the model cannot be built, or cannot be trained on this client's examples.
    """
    own = _own_examples(client, config, node_config, config.seed if split_seed is None else split_seed)
    with _of_the_run() if config.data.task in TASKS else nullcontext():
        task = with_loss_options(client.task, config.task)
    check_client_targets(client.data, task)
    data = on_device(weighted_client(client.data, task), settings.device)
    with _of_the_run() if config.model.name in MODELS else nullcontext():
        pair = model_pair(config.model, task, config.seed, settings.device)
    with _of_the_run():
        config = config.model_copy(update={"method": pair.with_head(data, config.method)})
        training_loss, adaptation_loss = pair.losses(data, config.method)
    num_here = 1 if "data" in node_config else config.data.num_clients
    config = settle_compile(config, training_loss, num_here)
    try_own_metrics(config.evaluation, pair.evaluation, task, data)
    return Workplace(
        config,
        task,
        data,
        pair.evaluation,
        training_loss,
        adaptation_loss,
        preparation=client.preparation,
        own=own,
        columns=client.columns,
        frozen=pair.frozen,
    )


def membership(node_config: Mapping[str, Scalar]) -> Membership:
    """Return who a deployed client is, by `data`, `client-id` and `group` of its node's configuration."""
    group = node_config.get("group")
    if group not in (None, "participating", "new"):
        raise refusal(
            ConfigError,
            "Expected group=participating or group=new in this node's configuration. Correct it.",
            "the node's configuration has group=%r",
            group,
        )
    groups: dict[Scalar | None, Group] = {"participating": "participating", "new": "new"}
    return Membership(str(node_config["data"]), str(node_config.get("client-id", "")), groups.get(group))


def _own_examples(
    client: PrivateClient, config: RunConfig, node_config: Mapping[str, Scalar], seed: int
) -> OwnExamples | None:
    """Return what is remembered with a client's examples; say loudly if some have moved into the test split."""
    if client.hashes is None:
        return None
    data = config.data
    way = f"{seed}/{client.data.client_id}/{data.test_fraction}/{data.validation_fraction}"
    memory = _memory(state_path(node_config), client.data.client_id)
    if moved := memory.num_moved(way, client.hashes):
        tell_here(
            "THE SPLIT HAS MOVED: %d of %d test examples of %s were trained on before, because its data or what --data "
            "says of them (group=, split=, test=) have changed since. What is reported of its accuracy from now on is "
            "too good. Put them back as they were, or train a new model under another seed",
            moved,
            len(client.hashes.test),
            client.data.client_id,
        )
    return OwnExamples(client.hashes, way, memory)


@lru_cache(maxsize=64)
def _memory(path: Path | None, _client_id: str) -> SplitMemory:
    return SplitMemory.load(path)


@lru_cache(maxsize=8)
def _config(run_items: Items) -> tuple[RunConfig, Trial | None]:
    """Return a run's options, and what is said beside them where it is a trial of a search."""
    options = dict(run_items)
    trial = Trial.taken_from(options)
    with _of_the_run():
        return RunConfig.parse(options), trial


def _dealt(config: RunConfig, trial: Trial | None) -> RunConfig:
    """Return the options that a run's examples are divided by."""
    with _of_the_run():
        return config.updated({"seed": trial.data_seed}) if trial else config


@contextmanager
def _of_the_run() -> Iterator[None]:
    """Let errors inside be told to the server: they speak of the options that it sent, and of nothing else."""
    try:
        yield
    except NufedError as error:
        error.sendable = True
        raise


def _simulated_client(config: RunConfig, node_config: Mapping[str, Scalar], settings: Settings) -> PrivateClient:
    """Return the slice of the run's data source that Flower's partition id names."""
    total = config.data.num_clients + config.data.num_new_clients
    partition = node_config.get("partition-id")
    num_partitions = node_config.get("num-partitions", total)
    if not isinstance(partition, int) or not 0 <= partition < total or num_partitions != total:
        raise ConfigError(
            f"Expected partition-id from 0 to {total - 1} of {total} in this node's configuration (data.num-clients="
            f"{config.data.num_clients} participating and data.num-new-clients={config.data.num_new_clients} new), "
            f"got {partition!r} of {num_partitions!r}. Start a node for each client: num-supernodes={total}."
        )
    dtype = getattr(torch, config.model.dtype)
    federation = load_federation(config.data, seed=config.seed, dtype=dtype, settings=settings)
    client = federation.clients[partition]
    data = _flipped(client, federation.task) if node_config.get(FLIP_LABELS) else client
    return PrivateClient(federation.task, data, shared_scaling(config.data, settings, seed=config.seed).inputs)


def _flipped(client: ClientData, task: TaskInfo) -> ClientData:
    """Return a client that trains on labels C - 1 - y; what it is judged on stays right."""
    targets = task.num_outputs - 1 - one_tensor(client.support.targets, "targets")
    return replace(client, support=replace(client.support, targets=targets))


def on_device(data: ClientData, device: str) -> ClientData:
    """Return a client's data on a device."""
    return data.with_splits(lambda part: part.to(device))
