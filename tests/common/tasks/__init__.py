"""Tasks and their losses, on models of every kind."""
