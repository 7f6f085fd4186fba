"""`csv:`, `parquet:` and `images:` as data sources: a federation simulated from data of all its clients.

csv:all.csv?label=COLUMN&user=COLUMN   one client for each value of the user column; parquet likewise
images:FOLDER                          one client for each folder in it, which holds one folder per class
images:FOLDER?user=folder              one folder per class, in which one folder for each client

All other options are those of a deployed client's `--data`, and each client is prepared as if it were deployed with its
part of the data, in a run that declares what is declared here. What the options of the run leave open is inferred from
all data (`inference.py`), which only a simulation can do; `settle` writes it into the run's options.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from nufed.common.config import DataConfig, ModelConfig, RunConfig
from nufed.common.data.dealt_client import SMALLEST_CLIENT
from nufed.common.data.pool import DealtFederation, Rows, SourceRequest
from nufed.common.data.private.images import is_of_sites, subfolders
from nufed.common.data.private.inference import OPTIONS, infer
from nufed.common.data.private.spec import USERS, PrivateSpec, parse_spec
from nufed.common.data.private.task import OWN_FILES, PRIVATE, declared_task, split_names, statistics_shape
from nufed.common.errors import ConfigError, DataError, NufedError
from nufed.common.examples import ClientData, Group, TaskInfo
from nufed.common.rng import numpy_generator

if TYPE_CHECKING:
    from nufed.common.data.private.load import PrivateClient
    from nufed.common.data.private.rows import PrivateRows
    from nufed.common.statistics import SiteStatistics


@contextmanager
def _named_as_source() -> Iterator[None]:
    """Have errors name `--dataset`, by which such data are given here, where a client's would name `--data`."""
    try:
        yield
    except NufedError as error:
        told = re.sub(r"--data(?![\w-])", "--dataset", str(error))
        renamed = type(error)(told)
        renamed.sendable = error.sendable
        raise renamed from error


@_named_as_source()
def describe(request: SourceRequest) -> TaskInfo:
    """Return the task; the data are read only where the run's options do not say what they are."""
    return declared_task(_declared(request.config))


@_named_as_source()
def load(request: SourceRequest) -> DealtFederation:
    """Return one client per user, drawn by the run's seed where there are more than are asked for."""
    sites = _Sites(request.config)
    chosen = sites.choose(request.seed)

    def make_client(index: int, dtype: torch.dtype) -> ClientData:
        model = ModelConfig(dtype=str(dtype).removeprefix("torch."))
        run = RunConfig(seed=request.seed, data=sites.declared, model=model)
        return sites.client(chosen[index], sites.group(index), run).data

    return DealtFederation(sites.task, len(chosen), make_client, sites.notes(chosen), is_prepared=True)


@_named_as_source()
def settle(config: RunConfig) -> RunConfig:
    """Return a run's options with what they leave open of such data: what they are, and how many clients there are.

    Raises:
        ConfigError: the data are to be prepared in a way that the run's privacy does not cover.
    """
    if not is_own_file(config.data):
        return config
    from nufed.common.data.private.load import check_preparation, preparation_policy

    declared = _declared(config.data)
    check_preparation(preparation_policy(_spec(config.data), declared), config.privacy)
    found = {name: value for name in OPTIONS if (value := getattr(declared, name)) != getattr(config.data, name)}
    changes: dict[str, Any] = {f"data.{name.replace('_', '-')}": value for name, value in found.items()}
    given = config.given()
    if "data.num-clients" not in given:
        num_new = config.data.num_new_clients if "data.num-new-clients" in given else 0
        num_users = len(_Sites(config.data).usable)
        changes |= {"data.num-clients": max(1, num_users - num_new), "data.num-new-clients": num_new}
    return config.updated(changes)


@_named_as_source()
def site_statistics_of(config: RunConfig) -> "dict[str, SiteStatistics]":
    """Return what the participating clients of a simulation tell of their columns, by client id."""
    from nufed.common.data.private.load import Membership, statistics_of

    sites, shape = _Sites(config.data), statistics_shape(config.data)
    run = config.updated({f"data.{key}": value for key, value in sites.declared.model_dump(by_alias=True).items()})
    names = sites.choose(config.seed)[: config.data.num_clients]
    return {name: statistics_of(sites.rows(name), Membership("", name), sites.task, run, shape) for name in names}


def is_own_file(config: DataConfig) -> bool:
    """Return whether the source is one of these."""
    return config.source.partition(":")[0] in OWN_FILES


class _Sites:
    """The clients of one file or folder; holds its rows."""

    def __init__(self, config: DataConfig) -> None:
        """Read a table; images of folders of their own are read when a client is made."""
        self.config, self.declared, self.spec = config, _declared(config), _spec(config)
        self.task = declared_task(self.declared)
        self._all = None if _has_folders(self.spec) else _read(self.spec, self.task, self.declared)
        self.usable, self._small = self._users()

    def choose(self, seed: int) -> Sequence[str]:
        """Return the names of the run's clients, participating ones first."""
        wanted = self.config.num_clients + self.config.num_new_clients
        if wanted > len(self.usable):
            raise DataError(
                f"expected {wanted} users (data.num-clients={self.config.num_clients}, data.num-new-clients="
                f"{self.config.num_new_clients}), but {self.config.source} has {len(self.usable)} with at least "
                f"{SMALLEST_CLIENT} examples; lower these numbers, or leave them out to have all"
            )
        order = numpy_generator(seed, "data", "users", "participating and new").permutation(len(self.usable))
        return [self.usable[index] for index in order[:wanted]]

    def notes(self, chosen: Sequence[str]) -> tuple[str, ...]:
        """Return what a reader of the run should know."""
        notes = []
        if self._small:
            number = len(self._small)
            have = "users have" if number > 1 else "user has"
            notes.append(f"{number} {have} fewer than {SMALLEST_CLIENT} examples in {self.config.source}; left out")
        if spare := len(self.usable) - len(chosen):
            notes.append(
                f"{len(chosen)} of {len(self.usable)} users of {self.config.source} are clients; {spare} are not"
            )
        return tuple(notes)

    def group(self, index: int) -> Group:
        """Return the group of a chosen client."""
        return "participating" if index < self.config.num_clients else "new"

    def rows(self, name: str) -> "PrivateRows":
        """Return one client's rows."""
        if self._all is None:
            own = PrivateSpec(self.spec.text, self.spec.kind, str(self.spec.path / name), self.spec.options)
            return _read(own, self.task, self.declared)
        return _of_user(self._all, name)

    def client(self, name: str, group: Group, run: RunConfig) -> "PrivateClient":
        """Return one client as it would be if it were deployed.

        Raises:
            NufedError: it could not be; the message names it.
        """
        from nufed.common.data.private.load import Membership, prepare_client

        try:
            with _named_as_source():
                return prepare_client(self.rows(name), self.spec, Membership("", name, group), self.task, run)
        except NufedError as error:
            raise type(error)(f"client {name!r}: {error}") from error

    def _users(self) -> tuple[list[str], list[str]]:
        """Return the names of the users that have enough examples, and of the others."""
        from nufed.common.message_schema import check_client_id

        if self._all is None:
            return [check_client_id(path.name) for path in subfolders(self.spec.path)], []
        users = self._all.users
        if users is None:
            raise ConfigError(
                f"data.source={self.config.source!r} does not say whose each example is. {_HOW[self.spec.kind]}"
            )
        counts = np.bincount(users.codes, minlength=len(users.names))
        for name in users.names:
            check_client_id(name)
        named = sorted(zip(users.names, counts.tolist(), strict=True))
        return [name for name, count in named if count >= SMALLEST_CLIENT], [
            name for name, count in named if 0 < count < SMALLEST_CLIENT
        ]


_HOW = dict.fromkeys(("csv", "parquet"), "Type &user=COLUMN behind the path.") | {
    "images": "Type ?user=folder behind the path, or give each client a folder with one folder per class."
}


def _of_user(rows: "PrivateRows", name: str) -> "PrivateRows":
    """Return the rows of one user, with its part of the test part."""
    own = rows.take(_positions(rows, name))
    test = rows.test
    return own if test is None or test.users is None else replace(own, test=test.take(_positions(test, name)))


def _positions(rows: "PrivateRows", name: str) -> Rows:
    users = rows.users
    if users is None or name not in users.names:
        return np.zeros(0, dtype=np.int64)
    return np.flatnonzero(users.codes == users.names.index(name))


def _read(spec: PrivateSpec, task: TaskInfo, declared: DataConfig) -> "PrivateRows":
    from nufed.common.data.private.load import read_rows

    return read_rows(spec, task, declared, labelled=True)


def _spec(config: DataConfig) -> PrivateSpec:
    """Return the spec as each client would type it: the run names the inputs, so that none is to be ignored."""
    spec = parse_spec(config.source, USERS)
    return replace(spec, options={name: value for name, value in spec.options.items() if name != "ignore"})


def _has_folders(spec: PrivateSpec) -> bool:
    return spec.kind == "images" and "user" not in spec.options and spec.path.is_dir() and is_of_sites(spec.path)


def _declared(config: DataConfig) -> DataConfig:
    """Return the options of a private federation of such data; what is not given is inferred."""
    defaults = DataConfig()
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) != getattr(defaults, name)}
    values = config.model_dump() | {"source": PRIVATE}
    if "input_shape" not in given:
        named = split_names(config.feature_names, "data.feature-names")
        found = _inferred(config.source, given.get("task"), named, _stamp(config))
        values |= {name: value for name, value in found.items() if name not in given}
        if config.scale == "federated" and "feature_means" not in given:
            values |= {"feature_means": "", "feature_scales": ""}
    return DataConfig(**values)


def _stamp(config: DataConfig) -> tuple[float, int]:
    """Return what changes where a file does, so that what was inferred of it is not kept too long."""
    path: Path = _spec(config).path
    return (path.stat().st_mtime, path.stat().st_size) if path.exists() else (0.0, 0)


@lru_cache(maxsize=4)
def _inferred(source: str, task: str | None, named: tuple[str, ...], _stamp: tuple[float, int]) -> Mapping[str, Any]:
    return infer(parse_spec(source, USERS), task, named).options
