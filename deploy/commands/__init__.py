"""The command line: `nufed` and its commands, a thin layer over what they call."""
