"""Flower App Bundles."""

from flwr.cli.build import build_fab_from_disk
from flwr.common.config import get_metadata_from_config, get_project_config

__all__ = ["build_fab_from_disk", "get_metadata_from_config", "get_project_config"]
