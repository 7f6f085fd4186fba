"""Where the program `nufed` starts: Ctrl-C is understood from the first import on, which takes most of a start."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        arguments: what was typed behind `nufed`; None takes this process's.
    """
    try:
        from nufed.deploy.commands.cli import main as run

        return run(arguments)
    except KeyboardInterrupt:
        print("nufed: Interrupted.", file=sys.stderr)
        return 130
