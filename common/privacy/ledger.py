"""A run's ledger, privacy.jsonl: what every published model has cost, on the disk before the model is published.

The first line holds the terms of the run; each further one a round's step and the hash of the model that it was taken
for, or a new budget. Every line bears a checksum of itself and of all before it, so that what was changed or taken out
is found; what was cut off at the end is found by the checkpoint, which knows how much there was.

A process may be killed at any moment. A round that was charged and whose model got no further is computed again, with
fresh noise and participants, and charged again. A last line that was cut short is one that nothing was published after,
if a crash did it; because nobody can tell who did it, it counts as one more round.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nufed.common.durable_file import sync_folder, write_through, writing
from nufed.common.errors import BudgetSpentError, ConfigError, RunError
from nufed.common.json_text import parse_object
from nufed.common.privacy.accounting import Account, SampledGaussian
from nufed.common.privacy.terms import ClientTerms

LEDGER = "privacy.jsonl"
FORMAT = "nufed-privacy-1"

_CHECK = "check"
_ADVICE = (
    "What was published cannot be accounted for without it: put back the file as the run left it. A new run over the "
    "same clients reveals more, which no ledger of this run covers."
)


@dataclass(frozen=True)
class Mark:
    """How much of a ledger there was.

    Attributes:
        lines: how many.
        check: checksum of the last of them.
    """

    lines: int
    check: str


@dataclass(frozen=True)
class Charge:
    """One round that was charged.

    Attributes:
        round: k; a round may be charged more than once.
        step: what it costs.
        model: hash of w_{k+1}; empty where there is none, because the round diverged or its line was cut short.
        is_private: whether noise and participation were secret; they are not under a test key.
    """

    round: int
    step: SampledGaussian
    model: str = ""
    is_private: bool = True


class PrivacyLedger:
    """Holds a run's account, and which file it is written to first; without a file it is in memory alone.

    Attributes:
        terms: of every round.
        budget: ε that is not passed; 0 for none.
        charges: in the order in which they were made.
    """

    def __init__(self, terms: ClientTerms, budget: float = 0.0) -> None:
        """Start an account in memory, which ends with the process."""
        self.terms, self.budget = terms, budget
        self.charges: list[Charge] = []
        self._account, self._epsilon = Account(), 0.0
        self._checks: list[str] = []  # of the lines
        self._size = 0  # bytes of whole lines; what is beyond was cut short, and is written over
        self._path: Path | None = None

    @classmethod
    def create(cls, path: Path, terms: ClientTerms, budget: float = 0.0) -> "PrivacyLedger":
        """Make the file, with the terms in it, on the disk.

        Args:
            path: of a file that is not there.
            terms: of the run.
            budget: ε; 0 for none.

        Raises:
            RunError: the system refuses, or there is a ledger already.
        """
        ledger = cls(terms, budget)
        with writing(path):
            path.touch(exist_ok=False)
            ledger._path = path
            ledger._write({"format": FORMAT, "unit": "client", **asdict(terms), "budget": budget})
            sync_folder(path.parent)
        return ledger

    @classmethod
    def open_existing(cls, path: Path, *, to_go_on: bool = True) -> "PrivacyLedger":
        """Return a run's ledger: to go on with it, where no other process does, or to look at it.

        Raises:
            RunError: it is missing or changed.
        """
        lines, torn = _read(path)
        ledger = cls(*_terms(path, lines[0]))
        ledger._checks = [str(line[_CHECK]) for line in lines]
        for line in lines[1:]:
            ledger._enter(path, line)
        ledger._size = path.stat().st_size - len(torn)
        if to_go_on:
            ledger._path = path
        if torn:
            last = ledger.charges[-1].round if ledger.charges else 0
            ledger.charge(Charge(last + 1, ledger.terms.step(ledger.terms.num_clients)))
        return ledger

    @property
    def mark(self) -> Mark:
        """How much there is."""
        return Mark(len(self._checks), self._checks[-1] if self._checks else "")

    @property
    def epsilon(self) -> float:
        """The ε at the terms' δ of all that was charged."""
        if not self._epsilon and self.charges:
            self._epsilon = self._account.epsilon(self.terms.delta)
        return self._epsilon

    @property
    def is_private(self) -> bool:
        """Whether noise and participation were secret in all rounds."""
        return all(charge.is_private for charge in self.charges)

    def has(self, mark: Mark) -> bool:
        """Return whether a mark is one that this ledger has had."""
        return 1 <= mark.lines <= len(self._checks) and self._checks[mark.lines - 1] == mark.check

    def model_of(self, round: int) -> str:  # noqa: A002 - the vocabulary's word
        """Return the hash of the model that a round was last charged for; empty if there is none."""
        return next((charge.model for charge in reversed(self.charges) if charge.round == round and charge.model), "")

    def check_affordable(self, step: SampledGaussian, count: int = 1) -> None:
        """Refuse rounds that the budget does not allow.

        Raises:
            BudgetSpentError: with what they would cost.
        """
        if not self.budget:
            return
        spent = self._account.with_more(step, count).epsilon(self.terms.delta)
        if spent > self.budget:
            more = "another round" if count == 1 else f"{count} more rounds"
            advice = "The model that there is is within it. To go on, resume the run with a larger --dp-epsilon."
            if not self.charges:
                advice = "Give a larger --dp-epsilon, or leave --dp-noise out, so that the noise is found for it."
            raise BudgetSpentError(
                f"Expected ε to stay within {self.budget:g} (privacy.epsilon), but {more} would take it from "
                f"{self.epsilon:.4g} to {spent:.4g} (δ = {self.terms.delta:.3g}, {len(self.charges)} rounds charged). "
                f"{advice}"
            )

    def charge(self, charge: Charge) -> None:
        """Account for a round; when this returns, it is on the disk, and the model may be published.

        Raises:
            RunError: the disk is full or does not answer; then nothing may be published.
        """
        self._write({**asdict(charge), "step": asdict(charge.step)})
        self._add(charge)

    def set_budget(self, budget: float) -> None:
        """Replace the budget, which is written down.

        Raises:
            RunError: the disk is full or does not answer.
        """
        self._write({"budget": budget})
        self.budget = budget

    def to_json(self) -> dict[str, Any]:
        """Return what summary.json says of it."""
        return {
            "unit": "client",
            "epsilon": self.epsilon,
            "delta": self.terms.delta,
            "budget": self.budget or None,
            "clip": self.terms.clip,
            "noise": self.terms.noise,
            "rate": self.terms.rate,
            "num_clients": self.terms.num_clients,
            "cohort_cap": self.terms.cohort_cap or None,
            "rounds_charged": len(self.charges),
            "is_private": self.is_private,
        }

    def _enter(self, path: Path, line: Mapping[str, Any]) -> None:
        """Enter a line that was read."""
        try:
            if "step" in line:
                step = SampledGaussian(**line["step"])
                self._add(Charge(int(line["round"]), step, str(line["model"]), bool(line["is_private"])))
            else:
                self.budget = float(line["budget"])
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise RunError(f"Expected a round or a budget in each line of {path}, but {error!r}. {_ADVICE}") from error

    def _add(self, charge: Charge) -> None:
        self.charges.append(charge)
        self._account.add(charge.step)
        self._epsilon = 0.0

    def _write(self, line: Mapping[str, Any]) -> None:
        """Add a line with its checksum, and wait for the disk."""
        text = json.dumps(line, ensure_ascii=False)
        check = _check(self.mark.check, text)
        content = (text[:-1] + f', "{_CHECK}": "{check}"}}\n').encode()
        if self._path is not None:
            with writing(self._path), self._path.open("r+b", buffering=0) as file:
                file.seek(self._size)
                file.truncate()
                write_through(file, content)
        self._checks.append(check)
        self._size += len(content)


def _check(before: str, text: str) -> str:
    return hashlib.sha256((before + text).encode()).hexdigest()[:32]


def _read(path: Path) -> tuple[list[dict[str, Any]], bytes]:
    """Return the lines, each of which was checked, and what there is of a line that was cut short."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"Expected the privacy ledger of the run at {path}, but it cannot be read ({error.strerror}). {_ADVICE}"
        ) from error
    *whole, torn = content.split(b"\n")
    if not whole:
        raise RunError(f"Expected the terms of the run in {path}, but there is no whole line. {_ADVICE}")
    lines, before = [], ""
    for number, each in enumerate(whole, start=1):
        text, _, check = each.rpartition(f', "{_CHECK}": "'.encode())
        before = _check(before, text.decode(errors="replace") + "}")
        if check != f'{before}"}}'.encode():
            raise RunError(f"Expected line {number} of {path} as it was written, but it was changed. {_ADVICE}")
        lines.append({**parse_object(text + b"}"), _CHECK: before})
    return lines, torn


def _terms(path: Path, line: Mapping[str, Any]) -> tuple[ClientTerms, float]:
    values = {name: value for name, value in line.items() if name not in ("format", "unit", "budget", _CHECK)}
    try:
        terms, budget = ClientTerms(**values), float(line["budget"])
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise RunError(
            f"Expected a ledger of format {FORMAT} in {path}, but {error!r}. Resume with the version of NuFed that "
            "wrote it."
        ) from error
    if (line.get("format"), line.get("unit")) != (FORMAT, "client"):
        raise RunError(f"Expected a ledger of format {FORMAT} in {path}, but it has {line.get('format')!r}. {_ADVICE}")
    return terms, budget
