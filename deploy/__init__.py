"""Machines, not mathematics: the command line, the Flower runtimes, certificates and deployment files."""
