"""Asks the clients of a run for statistics of their columns, and keeps those that can be believed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import MessageType
from flwr.serverapp import Grid

from nufed.common.errors import WireError
from nufed.common.statistics import SiteStatistics, StatisticsShape
from nufed.common.untrusted import printable
from nufed.common.wire import STATISTICS, read_statistics
from nufed.strategy.exchange import describe_error, iter_replies
from nufed.strategy.known_clients import Member
from nufed.strategy.members import query


@dataclass(frozen=True)
class GatheredStatistics:
    """What was asked for, and what came.

    Attributes:
        shape: what was asked for.
        sites: what each client told, by client id.
        absent: why a client told nothing that is used, by client id.
        rejected: how many of these told something that was refused.
    """

    shape: StatisticsShape
    sites: Mapping[str, SiteStatistics]
    absent: Mapping[str, str] = field(default_factory=dict)
    rejected: int = 0


def gather_statistics(
    grid: Grid, members: Mapping[str, Member], shape: StatisticsShape, timeout: float
) -> GatheredStatistics:
    """Return what clients tell of their columns; nothing that one of them answers makes this raise.

    Args:
        grid: any Flower Grid.
        members: whom to ask, by client id.
        shape: what to ask for.
        timeout: seconds to wait for the answers.
    """
    names = {member.node_id: client_id for client_id, member in members.items()}
    sites: dict[str, SiteStatistics] = {}
    absent = dict.fromkeys(members, f"did not answer within {timeout:g} s")
    rejected = 0
    messages = [query(node_id, timeout, message_type=f"{MessageType.QUERY}.{STATISTICS}") for node_id in names]
    for node_id, reply in iter_replies(grid, messages, timeout):
        if node_id is None or (client_id := names[node_id]) in sites:
            continue
        if reply.has_error():
            absent[client_id] = describe_error(reply)
            continue
        member = members[client_id]
        announced = member.description.num_support if member.announced else None
        try:
            sites[client_id] = read_statistics(reply.content, shape, announced)
        except WireError as error:
            absent[client_id] = f"refused: {printable(str(error))}"
            rejected += 1
        else:
            del absent[client_id]
    return GatheredStatistics(shape, dict(sorted(sites.items())), dict(sorted(absent.items())), rejected)
