"""Where the program `nufed` starts: Ctrl-C is understood from the first import on, which takes most of a start."""

import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    try:
        from nufed.deploy.commands.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("nufed: Interrupted.", file=sys.stderr)
        return 130
