"""The data sources by name."""

from collections.abc import Callable
from dataclasses import dataclass

from common.data import digits
from common.data.pool import DealtFederation, Pool, SourceRequest
from common.errors import ConfigError, nearest_match_hint
from common.examples import TaskInfo


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes:
        description: one line for the user.
        load: request -> examples to deal, or a federation by nature.
        describe: request -> the task, as cheaply as possible.
        argument: what follows the colon in `data.source`; empty if nothing does.
    """

    description: str
    load: Callable[[SourceRequest], Pool | DealtFederation]
    describe: Callable[[SourceRequest], TaskInfo]
    argument: str = ""


SOURCES: dict[str, Source] = {
    "digits": Source("1797 handwritten digits of 8 x 8 pixels, comes with scikit-learn", digits.load, digits.describe),
}


def find_source(spelling: str) -> tuple[Source, str]:
    """Return the source that `data.source` names, and its argument.

    Raises:
        ConfigError: there is no such source, or its argument is missing or not expected.
    """
    name, colon, argument = spelling.partition(":")
    if name not in SOURCES:
        raise ConfigError(f"data.source={spelling!r} is unknown.{nearest_match_hint(name, SOURCES)}")
    source = SOURCES[name]
    if source.argument and not argument:
        raise ConfigError(f"data.source={spelling!r} lacks its argument; write {name}:{source.argument}.")
    if colon and not source.argument:
        raise ConfigError(f"data.source={spelling!r} takes no argument; write {name}.")
    return source, argument
