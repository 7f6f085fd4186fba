"""Readers of a run's events for operators and researchers: Prometheus, tracking tools and logs."""
