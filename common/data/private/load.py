"""A deployed client's own data, named by a SPEC on its command line; it is read here and goes nowhere.

csv:PATH?label=COL        a table (table.py); parquet:PATH?label=COL likewise
images:FOLDER             one folder of images per class (images.py)
npz:PATH                  a NumPy archive (arrays.py); python:module:function likewise from the user's code
…?test=PATH               a test part of one's own, of the same kind and read in the same way
digits#3/20               client 3 (from 0) of the 20 participating ones of a named source, for trials: it has the
                          client id and the examples that `nufed simulate --clients 20` gives it; 20 and above are new

Before anything is computed with it, it is compared with what the run expects: shape, kind of task, labels, names.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from nufed.common.config import DataConfig, PrivacyConfig, RunConfig
from nufed.common.data.array_trees import take_rows
from nufed.common.data.cast import cast_tree, target_name
from nufed.common.data.dealt_client import DealtClient, SplitRows, make_splits, split_rows, too_small
from nufed.common.data.federation import describe_task, load_client, shared_scaling
from nufed.common.data.few_examples import asked_for, choose_few
from nufed.common.data.pool import Table
from nufed.common.data.private.arrays import read_archive, read_function
from nufed.common.data.private.columns import value_positions
from nufed.common.data.private.images import read_images
from nufed.common.data.private.missing import read_missing
from nufed.common.data.private.preparation import Policy, Preparation, fit_preparation
from nufed.common.data.private.prepared import prepared_examples
from nufed.common.data.private.rows import PrivateRows, check_rows, refusal, tell_here
from nufed.common.data.private.spare import with_spare
from nufed.common.data.private.spec import PrivateSpec, parse_spec
from nufed.common.data.private.split import SplitHashes, divide, hash_split
from nufed.common.data.private.table import SCALES, read_table
from nufed.common.data.private.task import (
    Column,
    awaits_statistics,
    declared_columns,
    declared_scaling,
    statistics_shape,
)
from nufed.common.data.target_scaling import in_precision, own_target_scaling, scaled_client, target_scale
from nufed.common.errors import ConfigError, DataError, NufedError, WireError
from nufed.common.examples import ClientData, Examples, Group, TaskInfo
from nufed.common.message_schema import check_client_id
from nufed.common.settings import Settings
from nufed.common.statistics import SiteStatistics, StatisticsShape, site_statistics

SLICE = re.compile(r"(?P<source>.+)#(?P<index>\d+)/(?P<count>\d+)")
"""A client of a named source: its source, number and how many take part."""


@dataclass(frozen=True)
class Membership:
    """Who a deployed client is.

    Attributes:
        spec: its data.
        client_id: its stable name; a slice of a named source brings its own.
        group: None is `participating`, or what a slice of a named source is.
    """

    spec: str
    client_id: str = ""
    group: Group | None = None


@dataclass(frozen=True)
class PrivateClient:
    """A client whose data are read and prepared, as a rule a deployed one's own.

    Attributes:
        task: what the run is for.
        data: the client's splits.
        preparation: how a table's columns became the inputs; None where nothing was changed.
        hashes: of its own examples; None for a slice of a named source.
        columns: of a table, in the order of the inputs; empty otherwise.
    """

    task: TaskInfo
    data: ClientData
    preparation: Preparation | None = None
    hashes: SplitHashes | None = None
    columns: tuple[Column, ...] = ()


def is_slice(spec: str) -> bool:
    """Return whether a spec is a slice of a named source, such as digits#3/20."""
    return SLICE.fullmatch(spec) is not None


def check_spec(spec: str, name: str = "client") -> None:
    """Refuse a spec that is misspelled, or a name that no server takes, without reading any data.

    Raises:
        ConfigError: with the right spelling.
    """
    if not is_slice(spec):
        parse_spec(spec)
    try:
        check_client_id(name)
    except WireError as error:
        raise ConfigError(f"--name is refused: {error}.") from error


def load_private(member: Membership, config: RunConfig, settings: Settings) -> PrivateClient:
    """Return the task and this client's splits.

    Raises:
        ConfigError: the spec is not one, or contradicts the run's options.
        DataError: the data cannot be had, or are not what the run expects.
    """
    if match := SLICE.fullmatch(member.spec):
        return slice_of_source(member, match, config, settings)
    return load_own(member, config, settings)[0]


def load_own(member: Membership, config: RunConfig, settings: Settings) -> tuple[PrivateClient, PrivateRows]:
    """Return a client of own data, and the rows as they were read, neither split nor filled in nor scaled.

    Raises:
        ConfigError: the spec is not one, or contradicts the run's options.
        DataError: the data cannot be had, or are not what the run expects.
    """
    if not member.client_id:
        raise refusal(ConfigError, "--data needs a stable name for this client. Type --name NAME.")
    task = describe_task(config.data, settings, seed=config.seed)
    try:
        spec = parse_spec(member.spec)
        rows = read_rows(spec, task, config.data, labelled=True)
        return prepare_client(rows, spec, member, task, config), rows
    except NufedError as error:
        named = type(error)(f"client {member.client_id!r}: {error}")
        named.sendable = error.sendable
        raise named from error


def own_statistics(member: Membership, config: RunConfig, settings: Settings, min_count: int) -> SiteStatistics:
    """Return what a client tells of its columns before round 1: of its support split, before anything is filled in.

    Args:
        member: who the client is.
        config: names the columns.
        settings: of this machine.
        min_count: the client's own least count; the run's holds where it is larger.

    Raises:
        ConfigError: the run or the client names no columns.
        DataError: the data cannot be had, or are not what the run expects.
    """
    shape = statistics_shape(config.data, min_count)
    if not is_slice(member.spec):
        task = describe_task(config.data, settings, seed=config.seed)
        rows = read_rows(parse_spec(member.spec), task, config.data, labelled=True)
        if rows.columns:
            return statistics_of(rows, member, task, config, shape)
    raise refusal(ConfigError, "expected a table, because statistics are of columns, but --data names none")


def statistics_of(
    rows: PrivateRows, member: Membership, task: TaskInfo, config: RunConfig, shape: StatisticsShape
) -> SiteStatistics:
    """Return what a client with these rows tells of its columns."""
    support = _divided(rows, member, task, config)[1].support
    targets = rows.targets[support] if shape.classes and rows.targets is not None else None
    values = rows.inputs[support][:, value_positions(rows.columns)].astype(np.float64)
    return site_statistics(values, targets, shape)


def slice_of_source(member: Membership, match: "re.Match[str]", config: RunConfig, settings: Settings) -> PrivateClient:
    """Return the client that a slice names.

    Raises:
        ConfigError: the run deals another source, or deals it otherwise.
        DataError: there is no such client.
    """
    source, index, count = match["source"], int(match["index"]), int(match["count"])
    if (source, count) != (config.data.source, config.data.num_clients):
        raise refusal(
            ConfigError,
            f"--data is a slice of another source, or of one dealt to {count} clients, but the server runs "
            f"{config.data.source!r} with {config.data.num_clients}. "
            f"Type --data {config.data.source}#{index}/{config.data.num_clients}.",
            "--data is a slice of %r",
            source,
        )
    total = count + config.data.num_new_clients
    if index >= total:
        raise refusal(
            DataError,
            f"--data names client {index} of a slice, but the run has clients 0 to {total - 1} ({count} participating, "
            f"{config.data.num_new_clients} new). Choose one of them.",
        )
    dtype = getattr(torch, config.model.dtype)
    data = load_client(config.data, index, seed=config.seed, dtype=dtype, settings=settings)
    if member.group not in (None, data.group):
        raise refusal(
            ConfigError,
            f"--data names client {index}, a {data.group} client of the run, not a {member.group} one. Choose another "
            f"slice (new clients are {count} to {total - 1}), or leave --new out.",
        )
    preparation = shared_scaling(config.data, settings, seed=config.seed).inputs
    return PrivateClient(describe_task(config.data, settings, seed=config.seed), data, preparation)


def read_rows(spec: PrivateSpec, task: TaskInfo, config: DataConfig, *, labelled: bool) -> PrivateRows:
    """Return all examples that a spec names, checked against the task, with the test part that it names.

    Args:
        spec: of any kind; with `user` (`spec.USERS`), of several clients, whose names are the rows' `users`.
        task: what the examples must be.
        config: names the columns of a table and their categories, if the run does.
        labelled: whether there must be labels; without, nothing is to be divided.

    Raises:
        ConfigError: the spec contradicts the run's options.
        DataError: the data cannot be had, or are not what the run expects.
    """
    rows = _read(spec, task, config, labelled=labelled)
    if "test" in spec.options:
        if "split" in spec.options or rows.test is not None:
            raise refusal(
                ConfigError,
                "--data: test= names a test part, but the data say themselves which examples are for the test. Leave "
                "one of them out.",
            )
        rest = {name: value for name, value in spec.options.items() if name != "test"}
        own = PrivateSpec(spec.text, spec.kind, spec.options["test"], rest)
        test = _read(own, task, config, labelled=True)
        if test.test is not None:
            raise refusal(ConfigError, "--data: test= names data with a test part of their own. Name one without.")
        rows = replace(rows, test=test)
    check_rows(rows, task)
    return rows


def _read(spec: PrivateSpec, task: TaskInfo, config: DataConfig, *, labelled: bool) -> PrivateRows:
    if spec.kind in ("csv", "parquet"):
        return read_table(spec, task, config, labelled=labelled)
    if spec.kind == "images":
        return read_images(spec, task, labelled=labelled)
    if spec.kind == "npz":
        return read_archive(spec, task, config, labelled=labelled)
    return read_function(spec, task)


def prepare_client(
    rows: PrivateRows, spec: PrivateSpec, member: Membership, task: TaskInfo, config: RunConfig
) -> PrivateClient:
    """Return a client's splits, which follow from the run's seed and the client's name; tables are prepared."""
    dealt, split = _divided(rows, member, task, config)
    dtype = getattr(torch, config.model.dtype)
    hashes = hash_split(rows, dealt.table.division, split)
    if not rows.columns:
        is_scaled = target_scale(config.data, task) != "none"
        data = make_splits(dealt, split, task, torch.float64 if is_scaled else dtype)
        return PrivateClient(task, in_precision(_scaled(data, task, config), dtype), hashes=hashes)
    policy = preparation_policy(spec, config.data)
    if dealt.group == "participating":
        check_preparation(policy, config.privacy)
    preparation = fit_preparation(rows.columns, policy, rows.inputs, split.support)
    preparation = with_spare(preparation, rows.columns, rows.inputs, split.support)
    support, validation, tested = (
        prepared_examples(part, numbers, preparation, task, dtype)
        for part, numbers in ((rows, split.support), (rows, split.validation), (rows.test or rows, split.test))
    )
    data = _scaled(ClientData(dealt.client_id, dealt.group, support, validation, tested), task, config)
    return PrivateClient(
        task, data.with_splits(lambda part: targets_in(part, dtype)), preparation, hashes, rows.columns
    )


def _scaled(data: ClientData, task: TaskInfo, config: RunConfig) -> ClientData:
    scaling = own_target_scaling(data, task, config.data)
    return scaled_client(data, scaling) if scaling else data


def targets_in(examples: Examples, dtype: torch.dtype) -> Examples:
    """Return examples with values to predict of a type; class numbers stay what they are."""
    return replace(examples, targets=cast_tree(examples.targets, dtype, target_name))


def _divided(rows: PrivateRows, member: Membership, task: TaskInfo, config: RunConfig) -> tuple[DealtClient, SplitRows]:
    """Return what the client has been dealt, and the rows of its splits."""
    if rows.targets is None:
        raise refusal(DataError, "expected labels, but there are none; a client without cannot be trained or judged")
    table = Table(rows.inputs, rows.targets, groups=rows.groups, division=divide(rows))
    dealt = DealtClient(member.client_id, member.group or "participating", table, np.arange(len(rows)))
    test = rows.test
    if test is not None and test.targets is not None:
        own_test = Table(test.inputs, test.targets)
        dealt = replace(dealt, test_table=own_test, test_rows=np.arange(len(own_test)))
    if problem := too_small(dealt):
        raise refusal(
            DataError, f"expected enough examples to train on and to be judged on, but the client {problem}; add some"
        )
    return dealt, _few(split_rows(dealt, config.data, config.seed), dealt, task, config)


def _few(split: SplitRows, dealt: DealtClient, task: TaskInfo, config: RunConfig) -> SplitRows:
    """Return the split with as few support examples as the run asks for; say so here where there are fewer."""
    number = asked_for(config.data, dealt.group)
    targets = take_rows(dealt.table.targets, split.support)
    few = choose_few(targets, number, task, seed=config.seed, client_id=dealt.client_id)
    if few.is_short:
        tell_here("fewer support examples than the %d that the run asks for: all %d are used", number, len(few.rows))
    return replace(split, support=split.support[few.rows])


def check_preparation(policy: Policy, privacy: PrivacyConfig) -> None:
    """Refuse what is computed of all of a client's records, where single records are to be protected.

    Raises:
        ConfigError: with what to choose.
    """
    if privacy.dp == "record" and policy.needs_support:
        raise refusal(
            ConfigError,
            "--data: scale=local and missing=mean|median|mode are computed of all of a client's records, so that one "
            "of them changes the inputs of all others, which privacy.dp=record does not cover; choose scale=run or "
            "none, and missing=run, zero or drop",
        )


def preparation_policy(spec: PrivateSpec, config: DataConfig) -> Policy:
    """Return what a spec and the run's options say of empty cells and scales."""
    run_scaling = declared_scaling(config)
    if run_scaling is None and awaits_statistics(config):  # until they are there, columns stay as they are
        width = sum(not column.categories for column in declared_columns(config))
        run_scaling = (0.0,) * width, (1.0,) * width
    scale = spec.choice("scale", SCALES, "run" if run_scaling else "none")
    return Policy(read_missing(spec), scale, run_scaling)
