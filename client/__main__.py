"""`python -m client` is `nufed client`."""

import sys

from nufed.deploy.commands.start import main

if __name__ == "__main__":
    sys.exit(main(["client", *sys.argv[1:]]))
