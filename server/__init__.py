"""What drives a run: the ServerApp, its checkpoints and its run folder."""
