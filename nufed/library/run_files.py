"""What a run's folder says, read for Python."""

import csv
import io
from pathlib import Path
from typing import Any

from nufed.common.config import RunConfig
from nufed.common.errors import RunError
from nufed.common.json_text import parse_object
from nufed.server.checkpoint import checkpoint_round
from nufed.server.clients_table import CLIENTS
from nufed.server.outcome import SUMMARY


def read_text(path: Path) -> str:
    """Return a file's text; nothing if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise RunError(f"Expected to read {path}, but {error}. Put back a copy that is whole.") from error


def read_summary(path: Path) -> dict[str, Any] | None:
    """Return the content of summary.json; None if there is none."""
    text = read_text(path / SUMMARY)
    if not text:
        return None
    try:
        summary = parse_object(text)
        _ = summary["status"], summary["rounds"], summary["primary_step"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"Expected a run's summary in {path / SUMMARY}, but {problem_of(error)}. Put back a copy that is whole."
        ) from error
    return summary


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the lines of clients.csv; none if there is no such file."""
    reader = csv.DictReader(io.StringIO(read_text(path / CLIENTS)))
    rows = list(reader)
    if rows and not {"client_id", "group"} <= set(reader.fieldnames or ()):
        raise RunError(
            f"Expected the columns client_id and group in {path / CLIENTS}, but found "
            f"{', '.join(reader.fieldnames or ())}. Put back a copy that is whole."
        )
    return rows


def problem_of(error: Exception) -> str:
    """Return what is wrong with a file's content."""
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def unfinished(path: Path, config: RunConfig) -> dict[str, Any]:
    """Return the summary of a run that was killed, or is going on in another process."""
    return {
        "status": "unfinished",
        "rounds": checkpoint_round(path) or 0,
        "primary_step": config.evaluation.primary_step,
    }
