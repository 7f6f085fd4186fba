"""`python -m server` is `nufed server`."""

import sys

from nufed.deploy.commands.start import main

if __name__ == "__main__":
    sys.exit(main(["server", *sys.argv[1:]]))
