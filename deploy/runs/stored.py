"""What a run's folder says of the run, whatever its state: read in a millisecond, without PyTorch.

Hundreds of folders are read at once, and some of them are torn, of an older version, or being written to. What cannot
be read makes a run that says so, never an error.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from nufed.common.json_text import options_text, parse_object
from nufed.common.regular_file import open_regular
from nufed.server.run_lock import writer_of

CONFIG, ENVIRONMENT, METRICS, SUMMARY = "config.json", "environment.json", "metrics.jsonl", "summary.json"
GROUPS = ("participating", "new")

Status = Literal[
    "running", "complete", "interrupted", "budget-spent", "diverged", "nothing-trained", "killed", "damaged"
]

_ENDINGS = ("complete", "interrupted", "budget-spent", "diverged", "nothing-trained")
_CHUNK = 2**16
LONGEST_LINE = 2**24
_LONGEST_CURVE = 10_001  # the most that evaluation.num-adapt-steps takes, and s = 0


@dataclass(frozen=True)
class GroupResult:
    """What a group of clients is judged by: means over its clients, None where they are no finite numbers.

    Attributes:
        num_clients: clients that were judged.
        before: at s = 0, the server's model as it is.
        after: after s* fine-tuning steps.
        worst: mean of the worst tenth of the clients after s* steps.
        curve: the mean after s = 0 … S steps.
    """

    num_clients: int
    before: float | None
    after: float | None
    worst: float | None
    curve: tuple[float | None, ...]


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder shows it.

    Attributes:
        folder: where it is.
        status: how it ended, or `running`; `killed` where it neither ended nor goes on; `damaged` where files are torn.
        damage: what is wrong with the files.
        options: flat key -> value, as in config.json.
        started: ISO 8601, empty if unknown.
        engine: what ran the clients, empty if unknown.
        rounds: rounds that are done.
        measure: what the run is judged by, e.g. `accuracy`; empty where nothing was judged yet.
        step: s*, the step that `after` is at.
        groups: results by group of clients, of those that were judged.
        seconds: wall time of the rounds done; None if unknown.
        summary: content of summary.json, empty where there is none.
    """

    folder: Path
    status: Status
    damage: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    started: str = ""
    engine: str = ""
    rounds: int = 0
    measure: str = ""
    step: int = 0
    groups: Mapping[str, GroupResult] = field(default_factory=dict)
    seconds: float | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_rounds(self) -> int:
        """The rounds that are asked for; 0 where each client trains alone."""
        if self.options.get("federation.training") == "local":
            return 0
        return _whole(self.options.get("federation.num-rounds"))

    @property
    def withheld(self) -> tuple[str, ...]:
        """Names of what is not shown because ε does not cover it (docs/privacy.md); none without privacy."""
        from nufed.common.privacy.publishing import withheld_by

        return withheld_by(self.options)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, curves and options included."""
        return {
            "run": self.folder.name,
            "folder": str(self.folder),
            "status": self.status,
            "damage": self.damage or None,
            "name": self.options.get("name"),
            "data": self.options.get("data.source"),
            "method": method_of(self.options),
            "seed": self.options.get("seed"),
            "started": self.started or None,
            "engine": self.engine or None,
            "rounds": self.rounds,
            "num_rounds": self.num_rounds,
            "measure": self.measure or None,
            "step": self.step,
            "groups": {name: {**vars(group), "curve": list(group.curve)} for name, group in self.groups.items()},
            "seconds": self.seconds,
            "reason": self.summary.get("reason"),
            "costs": self.summary.get("costs"),
            "problems": self.summary.get("problems"),
            "privacy": self.summary.get("privacy"),
            "record_privacy": self.summary.get("record_privacy"),
            "withheld": list(self.withheld),
        }


def read_stored(folder: Path) -> StoredRun:
    """Return what a run's folder says."""
    damage: list[str] = []
    options = _read_options(folder / CONFIG, damage)
    environment = _read_object(folder / ENVIRONMENT, damage)
    has_summary = (folder / SUMMARY).exists()
    summary = _read_object(folder / SUMMARY, damage)
    known: dict[str, Any] = {
        "options": options,
        "started": str(environment.get("started") or ""),
        "engine": str(environment.get("engine") or ""),
    }
    is_running = writer_of(folder) == "somebody"
    if has_summary:
        try:
            known |= _of_summary(summary)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            if not any(SUMMARY in each for each in damage):
                damage.append(f"{SUMMARY} does not say how the run ended")
    else:
        known |= _of_log(folder / METRICS, options, damage)
    status: Status = known.pop("status", "damaged") if has_summary else "killed"
    if is_running:
        status = "running"
    elif damage:
        status = "damaged"
    return StoredRun(folder, status, "; ".join(damage), **known)


def group_results(groups: Mapping[str, Any], step: int) -> tuple[str, dict[str, GroupResult]]:
    """Return what clients were judged by, and the results of the groups that were judged.

    Args:
        groups: group -> its curves, as in summary.json or a round's evaluation.
        step: s*.

    Raises:
        ValueError: they are no such curves; also KeyError, TypeError, IndexError and AttributeError.
    """
    found = {name: groups[name] for name in GROUPS if groups.get(name)}
    measure = str(next(iter(found.values()))["measure"]) if found else ""
    results = {}
    for name, group in found.items():
        curve = tuple(None if value is None else float(value) for value in primary_curve(group))
        if len(curve) > _LONGEST_CURVE:
            raise ValueError(f"a curve of {len(curve)} steps")
        worst = group.get("worst_decile") or [None] * len(curve)  # withheld, or of another program
        at = min(step, len(curve) - 1)
        results[name] = GroupResult(int(group["num_clients"]), curve[0], curve[at], worst[at], curve)
    return measure, results


def primary_curve(group: Mapping[str, Any]) -> list[float | None]:
    """Return the mean of what a group is judged by after s = 0 … S steps.

    Raises:
        KeyError: there is none.
    """
    measure = group["measure"]
    further = group.get("metrics") or {}
    for curve in (group.get(measure), further.get(f"test-{measure}"), group.get("loss")):
        if curve:
            return list(curve)
    raise KeyError(measure)


def log_lines(path: Path) -> Iterator[bytes]:
    """Yield the whole lines of a log from the last one to the first; one that was cut short is left out.

    Raises:
        OSError: it cannot be read, or is no regular file.
        ValueError: a line is longer than any of a run.
    """
    with open_regular(path) as file:
        position = file.seek(0, os.SEEK_END)
        rest, is_last = b"", True
        while position:
            size = min(_CHUNK, position)
            position = file.seek(position - size)
            first, *lines = (file.read(size) + rest).split(b"\n")
            for line in reversed(lines):
                if line and not is_last:
                    yield line
                is_last = False
            rest = first
            if len(rest) > LONGEST_LINE:
                raise ValueError(f"it has a line of more than {LONGEST_LINE // 2**20} MiB")
        if rest and not is_last:
            yield rest


def method_of(options: Mapping[str, Any]) -> str:
    """Return the method that options amount to, e.g. `per-fedavg`, or what they are: `ν = 4, exact`."""
    from nufed.common.config import option_descriptions
    from nufed.common.methods import ESTIMATOR, INNER_STEPS, METHODS

    if not options:
        return ""
    decided = _decided()
    defaults = {key: default for key, (default, _) in option_descriptions().items()}
    found = {**defaults, **options}
    same = {
        name: len(method.overrides)
        for name, method in METHODS.items()
        if all(
            found[key] == value or (key in method.tuned and key.startswith("method.") and found[key])
            for key, value in decided[name].items()
        )
    }
    estimator = found[ESTIMATOR]
    if not same:
        return f"ν = {found[INNER_STEPS]}, {estimator}"
    best = max(same, key=lambda name: same[name])
    is_open = found[INNER_STEPS] and ESTIMATOR not in decided[best] and estimator != defaults[ESTIMATOR]
    return f"{best}, {estimator}" if is_open else best


@cache
def _decided() -> dict[str, dict[str, Any]]:
    """Return method -> the options that it decides, made once for a whole list of runs."""
    from nufed.common.methods import METHODS

    return {name: method.options() for name, method in METHODS.items()}


def _of_summary(summary: Mapping[str, Any]) -> dict[str, Any]:
    if summary["status"] not in _ENDINGS:
        raise ValueError(summary["status"])
    step, seconds = _whole(summary["primary_step"]), float(summary["seconds"])
    if not math.isfinite(seconds):
        raise ValueError(seconds)
    measure, groups = group_results(summary, step)
    return {
        "status": summary["status"],
        "rounds": int(summary["rounds"]),
        "measure": measure,
        "step": step,
        "groups": groups,
        "seconds": seconds,
        "summary": summary,
    }


def _of_log(path: Path, options: Mapping[str, Any], damage: list[str]) -> dict[str, Any]:
    """Return how far a run without a summary is, and its last evaluation, from its log's end."""
    step = _whole(options.get("evaluation.primary-step"))
    known: dict[str, Any] = {}
    try:
        for line in log_lines(path):
            record = parse_object(line)
            known.setdefault("rounds", int(record["round"]))
            evaluated = (record.get("evaluation") or {}).get("participating")
            if evaluated:
                measure, groups = group_results({"participating": evaluated}, step)
                return {**known, "measure": measure, "step": step, "groups": groups}
            if known["rounds"] - int(record["round"]) > _whole(options.get("evaluation.interval")):
                break
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        damage.append(f"{METRICS} holds lines that are no rounds")
    return {**known, "step": step}


def _read_options(path: Path, damage: list[str]) -> dict[str, Any]:
    content = _read_object(path, damage, needed=True)
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


def _read_object(path: Path, damage: list[str], *, needed: bool = False) -> dict[str, Any]:
    try:
        with open_regular(path) as file:
            return parse_object(options_text(file))
    except FileNotFoundError:
        if needed:
            damage.append(f"{path.name} is missing")
    except json.JSONDecodeError:
        damage.append(f"{path.name} is torn or no JSON")
    except (OSError, ValueError) as error:
        damage.append(f"{path.name}: {error.strerror if isinstance(error, OSError) else error}")
    return {}


def _whole(value: Any) -> int:
    return value if isinstance(value, int) else 0
