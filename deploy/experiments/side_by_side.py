"""Single runs put side by side: which of them are one method, what to call it, and whether they can be compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.deploy.experiments.finished import FinishedRun

_OWN = ("name", "seed")
_MOST_NAMED = 3
"""Options that differ and are named in a method's label; further ones are in the table of options."""


@dataclass(frozen=True)
class Sides:
    """Runs that can be compared.

    Attributes:
        runs: with the name of their method.
        labels: name of each method -> what a reader is to call it.
    """

    runs: list[FinishedRun]
    labels: Mapping[str, str]

    def items(self) -> Iterator[tuple[str, FinishedRun]]:
        """Yield the name of each run's method, and the run."""
        return ((run.method, run) for run in self.runs)


def side_by_side(runs: Sequence[FinishedRun]) -> Sides:
    """Return runs as methods: those whose options differ in nothing but name and seed are one.

    Runs of equal options and an equal seed, such as of two versions of a program, are told apart by their folders.

    Raises:
        RunError: they are judged on other data or otherwise.
    """
    _check_comparable(runs)
    flats = [run.config.flat() for run in runs]
    different = [key for key in flats[0] if key not in _OWN and len({str(flat[key]) for flat in flats}) > 1]
    keys = [tuple(str(flat[key]) for key in different) for flat in flats]
    twice = {
        key
        for key in keys
        if len({run.seed for run, other in zip(runs, keys, strict=True) if other == key}) < keys.count(key)
    }
    found: list[FinishedRun] = []
    labels: dict[str, str] = {}
    for run, key in zip(runs, keys, strict=True):
        label = _label(run.config, different) + (f" ({run.folder.name})" if key in twice else "")
        labels[label] = label
        found.append(replace(run, method=label))
    return Sides(found, labels)


def method_words(config: RunConfig) -> str:
    """Return `ν = 3, exact`, `FedAvg (ν = 0)`, or how clients train alone."""
    method = config.method
    if config.federation.training == "local":
        return "each client alone"
    if not method.num_inner_steps:
        return "FedAvg (ν = 0)"
    return f"ν = {method.num_inner_steps}, {method.estimator}"


def data_words(config: RunConfig) -> str:
    """Return `digits (classes)`; of data in a file, its name without the folders."""
    kind, separator, rest = config.data.source.partition(":")
    name = f"{kind}:{Path(rest.partition('?')[0]).name}" if separator else kind
    return f"{name} ({config.data.partition})" if not separator else name


def _label(config: RunConfig, different: Sequence[str]) -> str:
    """Return the method in words, with the first options that differ beside ν and the estimator."""
    flat = config.flat()
    further = [key for key in different if key not in ("method.num-inner-steps", "method.estimator")]
    named = [f"{key.partition('.')[2] or key} = {flat[key]}" for key in further[:_MOST_NAMED]]
    return ", ".join([method_words(config), *named])


def _check_comparable(runs: Sequence[FinishedRun]) -> None:
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = first.config.flat(), run.config.flat()
        judged = ("evaluation.primary-step", "evaluation.num-adapt-steps")
        different = [key for key in ours if (key.startswith("data.") or key in judged) and ours[key] != theirs[key]]
        if run.measure != first.measure:
            raise RunError(
                f"Expected runs that are judged alike, but {first.folder} is by {first.measure} and {run.folder} by "
                f"{run.measure}. Report them one at a time."
            )
        if different:
            key = different[0]
            raise RunError(
                f"Expected runs on the same data, judged alike, but {key} is {ours[key]!r} in {first.folder} and "
                f"{theirs[key]!r} in {run.folder}. Report them one at a time."
            )
        if not set(run.groups) & set(first.groups):
            raise RunError(
                f"Expected runs that judge a group of clients in common, but {first.folder} and {run.folder} have "
                "none. Report them one at a time."
            )
