"""How a run ended: the `status` of its summary.json, and what goes with it.

complete         all rounds and the final evaluation are done: exit code 0
interrupted      stopped from outside or by an error (its own exit code) before that; it can go on (`--resume`): 130
nothing-trained  no round had a reply that could be used, so that there is nothing to evaluate: exit code 8
diverged         the server's model, or most clients' fine-tuning, left the finite numbers: exit code 9
budget-spent     one more round would have revealed more than ε allows; the model is evaluated, and can go on with a
                 larger ε: exit code 10

A run that is going on, or was killed, has no summary.json.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nufed.common.config import RunConfig
from nufed.common.errors import NothingTrainedError, RunError
from nufed.common.examples import Group
from nufed.common.json_text import parse_object
from nufed.server.client_curves import ClientCurves
from nufed.server.clients_table import CLIENTS, read_clients_csv
from nufed.server.shots import SHOTS_TABLE, with_shots

Status = Literal["complete", "interrupted", "nothing-trained", "diverged", "budget-spent"]
SUMMARY = "summary.json"

MOST_DIVERGED = 0.5
"""The share of clients above which a run counts as diverged."""


_SCALE = (
    "Where columns of the clients' files hold large numbers, have them scaled: set data.feature-means and "
    "data.feature-scales, or put scale=local into each client's --data."
)


@dataclass(frozen=True)
class FinalEvaluation:
    """Who answered the final evaluation, and who did not.

    Attributes:
        answered: clients whose curves there are.
        absent: why there are none of the others, by client id.
        never_seen: clients that the configuration names beyond those that ever said who they are.
        clients_sha256: of clients.csv, so that a repeated evaluation knows that the file is what this one has left.
    """

    answered: int
    absent: Mapping[str, str] = field(default_factory=dict)
    never_seen: int = 0
    clients_sha256: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether everybody answered."""
        return not self.absent and not self.never_seen

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def final_evaluation(
    config: RunConfig,
    groups: Mapping[str, Group],
    answered: Collection[str],
    problems: Mapping[str, str],
    clients_csv: bytes,
) -> FinalEvaluation:
    """Return who answered.

    Args:
        config: says how many clients there should be.
        groups: of the clients that ever said who they are, by id.
        answered: those that answered.
        problems: why others did not, as far as they were asked.
        clients_csv: content of the file that the curves were written to; empty where these are withheld.
    """
    known, asked = Counter(groups.values()), Counter(groups[name] for name in {*answered, *problems} if name in groups)
    expected = num_judges(config)
    is_met = {group: asked[group] >= number for group, number in expected.items()}  # by those asked; 0 of 0 is
    absent = {
        name: problems.get(name, "not connected")
        for name in sorted(groups)
        if name not in answered and (name in problems or not is_met[groups[name]])
    }
    never_seen = sum(max(0, number - known[group]) for group, number in expected.items())
    return FinalEvaluation(len(answered), absent, never_seen, hashlib.sha256(clients_csv).hexdigest())


def num_judges(config: RunConfig) -> dict[Group, int]:
    """Return how many clients of each group an evaluation is to ask."""
    most = config.evaluation.num_clients
    in_all: dict[Group, int] = {"participating": config.data.num_clients, "new": config.data.num_new_clients}
    return {group: min(most, number) if most else number for group, number in in_all.items()}


def share_diverged(curves: Sequence[ClientCurves], step: int) -> float:
    """Return the share of clients that have diverged after `step` fine-tuning steps; 0 without clients."""
    return sum(client.has_diverged(step) for client in curves) / max(1, len(curves))


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's summary.json, or None for a run that is going on or was killed.

    Raises:
        RunError: it cannot be read, or does not say how the run ended.
    """
    path = folder / SUMMARY
    try:
        summary = parse_object(path.read_text(encoding="utf-8"))
        str(summary["status"]), int(summary["rounds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"Expected a run's summary in {path}, but {error}. Delete it, then resume.") from error
    return summary


def lacks_answers(folder: Path) -> bool:
    """Return whether a run is complete but for clients that did not answer its final evaluation, or may be.

    Where it is withheld how many answered, resuming the run asks all of them again.
    """
    summary = read_outcome(folder)
    if summary is None or summary["status"] != "complete":
        return False
    found = summary.get("final_evaluation") or {}
    return bool(found.get("absent") or found.get("never_seen", 0) != 0)


def earlier_curves(folder: Path) -> list[ClientCurves]:
    """Return the curves of the clients that answered the final evaluation of a complete run.

    Raises:
        RunError: clients.csv is not what that evaluation has left.
    """
    summary, path = read_outcome(folder), folder / CLIENTS
    expected = ((summary or {}).get("final_evaluation") or {}).get("clients_sha256")
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != expected:
        raise RunError(
            f"Expected {path} as the final evaluation left it, but it was changed. Put it back, or delete "
            f"{folder / SUMMARY} to have all clients judged again."
        )
    curves, shots = read_clients_csv(content.decode()), folder / SHOTS_TABLE
    return with_shots(curves, shots.read_text(encoding="utf-8")) if shots.is_file() else curves


def nothing_trained(num_rounds: int, problems: Mapping[str, str], *, is_private: bool) -> NothingTrainedError:
    """Return what to say of a run that has had no reply which could be used; see `remedy`."""
    return NothingTrainedError(
        f"Expected replies that can be used, but in none of {num_rounds} rounds was there one, and the model is "
        f"untouched ({commonest_reason(problems)}). {remedy(problems, is_private=is_private)}"
    )


def remedy(problems: Mapping[str, str], *, is_private: bool = False) -> str:
    """Return what to do where no reply could be used: models that grew without bounds are no fault of the clients.

    Args:
        problems: why replies were not used, by client.
        is_private: whether the clients bring files of their own, whose columns may be of any size.
    """
    grown = sum("NaN or infinite" in reason or "of magnitude" in reason for reason in problems.values())
    if 2 * grown > len(problems):
        steps = "Lower --local-lr or --inner-lr, or set method.max-grad-norm, in a new run."
        return f"{_SCALE} {steps}" if is_private else steps
    return "Put right what the clients say, and start a new run."


def commonest_reason(problems: Mapping[str, str]) -> str:
    """Return why most of the clients' replies were not used, with one client's name."""
    if not problems:
        return "nobody was asked"
    reason, number = Counter(problems.values()).most_common(1)[0]
    name = next(name for name, each in problems.items() if each == reason)
    others = f" and {number - 1} more" if number > 1 else ""
    return f"{name}{others}: {reason}"
