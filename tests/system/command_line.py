"""`python -m tests.system.command_line` is `nufed`."""

import sys

from nufed.deploy.commands.start import main

if __name__ == "__main__":
    sys.exit(main())
