"""Whether a run folder can be gone on with: its checkpoint, options and log must belong together.

A process may be killed at any moment, so the log may be longer than the checkpoint knows, by the rounds that will be
computed again; it is never shorter. Everything else that does not fit was changed by somebody, and the run would not be
the one that it says it is.
"""

from dataclasses import dataclass
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.json_text import parse_object
from nufed.common.models.frozen import hash_of
from nufed.common.privacy.ledger import LEDGER, Mark, PrivacyLedger
from nufed.server.checkpoint import CHECKPOINT, Checkpoint, Origin, load_checkpoint
from nufed.server.run_log import METRICS, log_mark, log_records, read_log

CONFIG = "config.json"
_ADVICE = "Put back the file as the run left it, or start a new run without --resume."


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        checkpoint: the last finished round's; None if no round was finished, so that the run starts over.
        log: what is kept of metrics.jsonl: the lines of the finished rounds.
        notes: what whoever resumes should know, a sentence each.
    """

    checkpoint: Checkpoint | None
    log: bytes = b""
    notes: tuple[str, ...] = ()

    @property
    def round(self) -> int:
        """The rounds that are done."""
        return self.checkpoint.round if self.checkpoint else 0

    @property
    def ledger(self) -> Mark | None:
        """How much of the privacy ledger there was at the checkpoint; None without one."""
        return self.checkpoint.origin.ledger if self.checkpoint and self.checkpoint.origin else None

    @property
    def rounds_without_reply(self) -> int:
        """The rounds among them in which no reply could be used."""
        return sum(parse_object(line).get("replied") == 0 for line in self.log.splitlines())


def stored_config(path: Path) -> RunConfig:
    """Return the options of an existing run folder.

    Raises:
        RunError: the folder is not a run's.
    """
    if not (path / CONFIG).is_file():
        there = "is a file" if path.exists() else "does not exist"
        what = "is a folder without config.json" if path.is_dir() else there
        raise RunError(f"Expected a run folder at {path}, but it {what}. Name a folder that a run left.")
    return RunConfig.load(path / CONFIG)


def resume_point(folder: Path) -> ResumePoint:
    """Return where a run goes on, after comparing its checkpoint, its options and its log.

    Raises:
        RunError: they do not belong together, or one of them is torn or changed.
    """
    config, checkpoint = stored_config(folder), load_checkpoint(folder)
    content = read_log(folder / METRICS)
    notes = _check_ledger(folder, checkpoint) if config.privacy.dp == "client" else ()
    if checkpoint is None:
        return _without_checkpoint(folder, content, notes)
    if checkpoint.origin is None:
        return _without_checksums(folder, checkpoint, content)
    _check_options(folder, config, checkpoint.origin)
    mark = checkpoint.origin.log
    kept = content[: mark.size]
    if log_mark(kept) != mark:
        how = "is shorter" if len(content) < mark.size else "differs"
        raise RunError(
            f"Expected {folder / METRICS} to hold the {checkpoint.round} rounds that {CHECKPOINT} was made after, but "
            f"it {how}: one of the two was changed or belongs to another run. {_ADVICE}"
        )
    return ResumePoint(checkpoint, kept, notes)


def _check_ledger(folder: Path, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """Return what to note of a private run's ledger: rounds that were charged and are computed, and charged, again.

    Raises:
        RunError: it is missing, changed or cut short, or holds nothing of the checkpoint's model.
    """
    path, mark = folder / LEDGER, checkpoint.origin.ledger if checkpoint and checkpoint.origin else None
    ledger = PrivacyLedger.open_existing(path, to_go_on=False)
    done = checkpoint.round if checkpoint else 0
    if checkpoint and (mark is None or not ledger.has(mark)):
        raise RunError(
            f"Expected {path} to hold what the {done} rounds of {CHECKPOINT} have cost, but it is shorter or another "
            f"run's. {_ADVICE}"
        )
    if checkpoint and done and ledger.model_of(done) != hash_of(checkpoint.params):
        raise RunError(
            f"Expected the model in {folder / CHECKPOINT} that round {done} was charged for in {path}, but it is "
            f"another: one of the two was changed or belongs to another run. {_ADVICE}"
        )
    again = sum(charge.round > done for charge in ledger.charges)
    rounds = "1 round was" if again == 1 else f"{again} rounds were"
    return (f"{rounds} charged after round {done} and got no further; what is done again costs again",) if again else ()


def _check_options(folder: Path, config: RunConfig, origin: Origin) -> None:
    if config in origin.configs:
        return
    found, wanted = config.flat(), origin.configs[-1].flat()
    changed = [f"{key} is {found[key]!r}, was {value!r}" for key, value in wanted.items() if found[key] != value]
    raise RunError(
        f"Expected the options in {folder / CONFIG} that {CHECKPOINT} was made with, but they differ: "
        f"{'; '.join(changed)}. {_ADVICE} More rounds are given with --rounds."
    )


def _without_checkpoint(folder: Path, content: bytes, notes: tuple[str, ...] = ()) -> ResumePoint:
    """Return the start, for a run that was killed before its first round was finished."""
    rounds = [record["round"] for _, record in log_records(folder / METRICS, content)]
    if rounds not in ([], [1]):
        raise RunError(
            f"Expected {CHECKPOINT} in {folder}, whose {METRICS} has {len(rounds)} rounds, but there is none. {_ADVICE}"
        )
    return ResumePoint(None, notes=(f"{folder} has no finished round: the run starts at round 1", *notes))


def _without_checksums(folder: Path, checkpoint: Checkpoint, content: bytes) -> ResumePoint:
    """Return where a run of NuFed 0.1 goes on; its log is compared by the numbers of the rounds alone."""
    kept = [pair for pair in log_records(folder / METRICS, content) if pair[1]["round"] <= checkpoint.round]
    if [record["round"] for _, record in kept] != list(range(1, checkpoint.round + 1)):
        raise RunError(
            f"Expected rounds 1 to {checkpoint.round} in {folder / METRICS}, as {CHECKPOINT} says, but found "
            f"{len(kept)} of them. {_ADVICE}"
        )
    note = f"{folder} was written by NuFed 0.1, whose checkpoints have no checksums: its options cannot be checked"
    return ResumePoint(checkpoint, b"".join(line for line, _ in kept), (note,))
