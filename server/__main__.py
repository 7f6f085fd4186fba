"""`python -m server` is `nufed server`."""

import sys

from nufed.deploy.commands.cli import main

if __name__ == "__main__":
    sys.exit(main(["server", *sys.argv[1:]]))
