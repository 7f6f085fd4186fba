"""The data sources by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from nufed.common.data import digits, npz, omniglot, quadratic, sensors, sinusoid, user_defined, vision
from nufed.common.data.pool import DealtFederation, Pool, SourceRequest
from nufed.common.data.private import simulated
from nufed.common.data.private.task import PRIVATE
from nufed.common.errors import ConfigError, nearest_match_hint
from nufed.common.examples import TaskInfo
from nufed.common.given import is_given


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes:
        description: one line for the user.
        load: request -> examples to deal, or a federation by nature.
        describe: request -> the task, without reading the inputs; None if clients must be made for the answer.
        argument: what follows the colon in `data.source`; empty if nothing does.
    """

    description: str
    load: Callable[[SourceRequest], Pool | DealtFederation]
    describe: Callable[[SourceRequest], TaskInfo] | None
    argument: str = ""


def _vision(name: str, description: str) -> Source:
    return Source(description, partial(vision.load, name), partial(vision.describe, name))


_TABLE = "PATH?label=COLUMN&user=COLUMN"

SOURCES: dict[str, Source] = {
    "digits": Source("1797 handwritten digits of 8 x 8 pixels, comes with scikit-learn", digits.load, digits.describe),
    "mnist": _vision("mnist", "70000 handwritten digits of 28 x 28 pixels"),
    "fashion-mnist": _vision("fashion-mnist", "70000 articles of clothing of 28 x 28 pixels, 10 classes"),
    "emnist": _vision("emnist", "131600 handwritten digits and letters of 28 x 28 pixels, 47 classes"),
    "cifar10": _vision("cifar10", "60000 color photographs of 32 x 32 pixels, 10 classes"),
    "cifar100": _vision("cifar100", "60000 color photographs of 32 x 32 pixels, 100 classes"),
    "omniglot": Source("handwritten symbols, each client's own of one alphabet", omniglot.load, omniglot.describe),
    "npz": Source("a NumPy archive with x, y and optionally user", npz.load, npz.describe, "PATH"),
    "csv": Source(
        "a table of all clients; options as of a client's --data", simulated.load, simulated.describe, _TABLE
    ),
    "parquet": Source("likewise in parquet", simulated.load, simulated.describe, _TABLE),
    "images": Source("a folder of all clients' images, each in a folder", simulated.load, simulated.describe, "FOLDER"),
    "sinusoid": Source("a sine wave for each client, to regress on", sinusoid.load, sinusoid.describe),
    "sensors": Source("a device with sensors of its own for each client", sensors.load, sensors.describe),
    "quadratic": Source("a known quadratic loss for each client", quadratic.load, quadratic.describe),
    "python": Source("a federation made by your own function", user_defined.load, None, "module:function"),
}


def find_source(spelling: str) -> tuple[Source, str]:
    """Return the source that `data.source` names, and its argument.

    Raises:
        ConfigError: there is no such source, or its argument is missing or not expected.
    """
    if spelling == PRIVATE:
        raise ConfigError(
            "data.source=private has its examples at the clients alone: start `nufed server` here and `nufed client` "
            "where they are. To simulate, name a source that is on this machine; `nufed datasets` lists them."
        )
    name, colon, argument = spelling.partition(":")
    if is_given(spelling):
        return Source("clients given in Python", user_defined.load_given, None, "FINGERPRINT"), argument
    if name not in SOURCES:
        raise ConfigError(f"data.source={spelling!r} is unknown.{nearest_match_hint(name, SOURCES)}")
    source = SOURCES[name]
    if source.argument and not argument:
        raise ConfigError(f"data.source={spelling!r} lacks its argument; write {name}:{source.argument}.")
    if colon and not source.argument:
        raise ConfigError(f"data.source={spelling!r} takes no argument; write {name}.")
    return source, argument
