"""Standard output and error that cannot end a command: they may be closed, full, or unable to take a Greek letter."""

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import IO, Any

from nufed.common.errors import RunError

_PLAIN = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "Δ": "Delta", "κ": "kappa", "μ": "mu", "ν": "nu",
    "ρ": "rho", "σ": "sigma", "τ": "tau", "λ": "lambda", "Σ": "Sum", "∇": "grad ", "→": "->", "←": "<-", "≤": "<=",
    "≥": ">=", "±": "+-", "·": "*", "×": "x", "−": "-", "–": "-", "…": "...", "≈": "~", "∞": "inf", "²": "^2",
    "“": '"', "”": '"', "’": "'", "‖": "||", "│": "|", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip
_SPELLED_OUT = "nufed-spelled-out"


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for characters that an encoding lacks, and where to go on: for codecs.register_error."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking), error.end


codecs.register_error(_SPELLED_OUT, _spell_out)


class _Outlet(io.RawIOBase):
    """Writes bytes until that fails, then nothing more; holds why it failed."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Write to `stream`, which stays open."""
        self._stream = stream
        self.failure: OSError | None = None

    def writable(self) -> bool:
        """Return true."""
        return True

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return self._stream.fileno()

    def write(self, content: Any) -> int:
        """Write and flush; return the number of bytes, also of those that nobody gets."""
        if self.failure is None:
            try:
                self._stream.write(content)
                self._stream.flush()
            except OSError as error:
                self.failure = error
                self._abandon()
            except ValueError:  # somebody has closed it
                self.failure = OSError(errno.EBADF, os.strerror(errno.EBADF))
        return len(content)

    def _abandon(self) -> None:
        """Lead the descriptor nowhere, so that Python's own flush at its end does not fail once more."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def unfailing_streams() -> Iterator[_Outlet | None]:
    """Let print, rich and logging write inside the block whatever happens to stdout and stderr.

    Yields the outlet of stdout, which knows at the end whether anything was lost; None where there is no stdout.
    """
    before = sys.stdout, sys.stderr
    outlets = [_outlet(stream) for stream in before]
    sys.stdout, sys.stderr = map(_unfailing, before, outlets)
    try:
        yield outlets[0]
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


def _outlet(stream: Any) -> _Outlet | None:
    if stream is None or not hasattr(stream, "buffer"):
        return None
    stream.flush()
    return _Outlet(stream.buffer)


def _unfailing(stream: Any, outlet: _Outlet | None) -> Any:
    if outlet is None:
        return stream
    return io.TextIOWrapper(outlet, stream.encoding, _SPELLED_OUT, line_buffering=True)


def lost_output(outlet: _Outlet | None) -> tuple[str, int] | None:
    """Return what to say of output that was lost and the exit code; no words where the reader has had enough."""
    failure = outlet.failure if outlet else None
    if failure is None:
        return None
    if failure.errno == errno.EPIPE:
        return "", 128 + 13
    words = (
        f"Expected to write to standard output, but the system refused ({failure.strerror}), so that some of it is "
        "lost. Files are whole. Free space, or send the output elsewhere."
    )
    return words, RunError.exit_code
