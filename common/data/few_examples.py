"""A support split cut down to a few examples: k of each class where there are classes, else k in all.

Which ones they are follows from the run's seed and the client's name alone, so that they are the same for every method,
and those of a smaller k are among those of a larger one. Where there are fewer, all are taken.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from nufed.common.config import DataConfig
from nufed.common.data.array_trees import ArrayTree, rows_of
from nufed.common.data.on_demand import MANY
from nufed.common.data.pool import DealtFederation, Rows
from nufed.common.examples import ClientData, Examples, Group, TaskInfo
from nufed.common.rng import numpy_generator
from nufed.common.trees import first_leaf


@dataclass(frozen=True)
class FewRows:
    """What is left of a support split.

    Attributes:
        rows: [M] positions in it, in its order.
        is_short: whether there are fewer than asked for, of one of its classes or in all.
    """

    rows: Rows
    is_short: bool


def choose_few(targets: ArrayTree, number: int, task: TaskInfo, *, seed: int, client_id: str) -> FewRows:
    """Return which examples are left.

    Args:
        targets: [N, ...] of the support split.
        number: k; 0 takes all.
        task: whether k are taken of each class that the split has.
        seed: of the run.
        client_id: whose split it is.
    """
    size = rows_of(targets)
    if not number:
        return FewRows(np.arange(size), is_short=False)
    order = numpy_generator(seed, "data", "few-examples", client_id).permutation(size)
    if task.kind != "classification":
        return FewRows(np.sort(order[:number]), is_short=size < number)
    labels, ordered = np.asarray(targets), np.asarray(targets)[order]
    chosen = [order[ordered == label][:number] for label in np.unique(labels)]
    return FewRows(np.sort(np.concatenate([order[:0], *chosen])), any(len(own) < number for own in chosen))


def few_examples(support: Examples, number: int, task: TaskInfo, *, seed: int, client_id: str) -> tuple[Examples, bool]:
    """Return the examples that are left, and whether there are fewer than asked for; see `choose_few`."""
    few = choose_few(first_leaf(support.targets).cpu().numpy(), number, task, seed=seed, client_id=client_id)
    return support.take(torch.from_numpy(few.rows).to(support.device)), few.is_short


def asked_for(config: DataConfig, group: Group) -> int:
    """Return how many examples a client of a group is to have; 0 is all."""
    return config.new_support_examples if group == "new" else config.support_examples


def keep_few(dealt: DealtFederation, config: DataConfig, seed: int) -> DealtFederation:
    """Return the federation with support splits of `data.support-examples` and `data.new-support-examples`."""
    if not config.support_examples and not config.new_support_examples:
        return dealt

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        client = dealt.make_client(partition_id, dtype)
        number = asked_for(config, client.group)
        support, _ = few_examples(client.support, number, dealt.task, seed=seed, client_id=client.client_id)
        return replace(client, support=support)

    return replace(dealt, make_client=make_client, notes=(*dealt.notes, *_notes(dealt, config, seed)))


def _notes(dealt: DealtFederation, config: DataConfig, seed: int) -> tuple[str, ...]:
    """Return a note for each group some of whose clients have fewer examples than asked for.

    Nothing is noted of a large federation, whose clients are not all made.
    """
    if dealt.num_total > MANY:
        return ()
    short: dict[Group, list[bool]] = {"participating": [], "new": []}
    for index in range(dealt.num_total):
        client = dealt.make_client(index, torch.float64)
        number = asked_for(config, client.group)
        _, is_short = few_examples(client.support, number, dealt.task, seed=seed, client_id=client.client_id)
        short[client.group].append(is_short)
    of_what = " of one of their classes" if dealt.task.kind == "classification" else ""
    return tuple(
        f"{sum(found)} of {len(found)} {group} clients have fewer than {asked_for(config, group)} support examples"
        f"{of_what}: they use what they have"
        for group, found in short.items()
        if any(found)
    )
