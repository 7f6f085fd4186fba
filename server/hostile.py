"""Who attacks a simulated federation: not judged, and written down, so that no such run is taken for another.

There is nothing of this in a deployed federation.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nufed.common.errors import RunError

ENVIRONMENT = "environment.json"


@dataclass(frozen=True)
class Hostile:
    """The clients of a simulation that attack.

    Attributes:
        attack: a key of `nufed.deploy.simulation.attacks.ATTACKS`.
        clients: client id by partition.
    """

    attack: str
    clients: dict[int, str]

    def to_json(self) -> dict[str, str | list[str]]:
        """Return what environment.json says of it."""
        return {"attack": self.attack, "clients": sorted(self.clients.values())}


def recorded_attack(folder: Path) -> Mapping[str, Any] | None:
    """Return what a run's environment.json says of its attack: `attack` and `clients`; None for an honest federation.

    A folder without the file is older, or its description is lost.
    """
    try:
        recorded = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")).get("hostile")
        return {"attack": str(recorded["attack"]), "clients": [str(each) for each in recorded["clients"]]}
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def attack_of(folder: Path) -> tuple[str, int] | None:
    """Return name and number of attackers of a run, as it has recorded them; None for an honest federation."""
    recorded = recorded_attack(folder)
    return (recorded["attack"], len(recorded["clients"])) if recorded else None


def check_same_attack(folder: Path, hostile: Hostile | None) -> None:
    """Refuse to go on with a run under another attack than it had.

    Raises:
        RunError: with what it had.
    """
    recorded = recorded_attack(folder)
    if recorded != (hostile.to_json() if hostile else None):
        had = f"attack {recorded['attack']} by {len(recorded['clients'])} clients" if recorded else "no attack"
        options = f"--attack {recorded['attack']} --attackers {len(recorded['clients'])}" if recorded else "neither"
        raise RunError(
            f"Expected to go on with the run in {folder} as it began, with {had}. Give nufed simulate {options} "
            f"{'' if recorded else '--attack nor --attackers '}to go on."
        )
