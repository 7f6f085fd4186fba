"""What is done where a table has empty cells: `missing=POLICY,COLUMN:POLICY,…`, and what says that a cell was empty.

error            refuses the table; drop leaves the row out
mean, median     of the column, over the support split; of categories, the shares and the most frequent one
mode             the most frequent value, the smallest of those that are as frequent
zero, run        0, or the run's mean; no category at all

The policy without a column is that of all others; without one, `error`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nufed.common.data.private.rows import listed, refusal
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import Column
from nufed.common.errors import ConfigError, nearest_match_hint

MISSING = ("error", "mean", "median", "mode", "drop", "zero", "run")
COMPUTED = ("mean", "median", "mode")
"""Policies that need the support split."""


@dataclass(frozen=True)
class Missing:
    """What is done where a cell is empty.

    Attributes:
        default: a policy, one of `MISSING`.
        own: column -> its policy, where it is another.
    """

    default: str = "error"
    own: Mapping[str, str] = field(default_factory=dict)

    def of(self, column: Column) -> str:
        """Return the policy of a column."""
        return self.own.get(column.name, self.default)

    def uses(self, *policies: str) -> bool:
        """Return whether one of these policies is that of any column."""
        return bool({self.default, *self.own.values()}.intersection(policies))


def read_missing(spec: PrivateSpec) -> Missing:
    """Return the policies of a spec.

    Raises:
        ConfigError: one is unknown, or there are two for one column.
    """
    default = ""
    own: dict[str, str] = {}
    for part in spec.names("missing"):
        name, _, policy = (text.strip() for text in part.rpartition(":"))
        if policy not in MISSING:
            raise ConfigError(
                f"--data: missing={policy!r} is unknown.{nearest_match_hint(policy, MISSING)} Type missing=POLICY, or "
                "missing=POLICY,COLUMN:POLICY for columns with one of their own."
            )
        if own.get(name) if name else default:
            raise ConfigError("--data: missing= has two policies for one column, or two without a column. Leave one.")
        if name:
            own[name] = policy
        else:
            default = policy
    return Missing(default or "error", own)


def check_columns(missing: Missing, columns: Sequence[Column]) -> None:
    """Refuse policies of columns that are no inputs.

    Raises:
        ConfigError: with how many they are.
    """
    names = {column.name for column in columns}
    if unknown := [name for name in missing.own if name not in names]:
        raise refusal(
            ConfigError,
            f"--data: missing= has policies of {len(unknown)} columns that are no inputs. Correct it; this client's "
            "own log has their names.",
            "missing= names %s; the inputs are %s",
            listed(unknown),
            listed([column.name for column in columns]),
        )
