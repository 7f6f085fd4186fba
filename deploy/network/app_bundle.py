"""This app as a Flower App Bundle, which stock SuperNodes fetch from the server."""

from pathlib import Path

from nufed.common.errors import RunError
from nufed.deploy.flower_runtime.bundles import build_fab_from_disk, get_metadata_from_config, get_project_config
from nufed.deploy.network.direct_server import AppBundle

# The root of the repository; one level higher where a copy has the packages inside `nufed/` instead of links to them.
_ABOVE = Path(__file__).resolve().parents
APP_FOLDER = next((folder for folder in _ABOVE[2:4] if (folder / "pyproject.toml").is_file()), _ABOVE[2])


def build_app_bundle(folder: Path = APP_FOLDER) -> AppBundle:
    """Return the bundle of the app in a folder.

    Raises:
        RunError: the folder holds no Flower app; an installed package does not, a checkout does.
    """
    try:
        app_id, version = get_metadata_from_config(get_project_config(folder))
        return AppBundle(build_fab_from_disk(folder), app_id, version)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise RunError(
            f"Expected a Flower app (a pyproject.toml with [tool.flwr.app]) in {folder}, but {error}. Serve stock "
            "SuperNodes from a checkout of the repository."
        ) from error
