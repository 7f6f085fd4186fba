"""The Python code that travels to the nodes of a cluster: NuFed's, the user's that is loaded, the working folder's.

Nodes need the packages that NuFed is made of, of the same versions, but neither NuFed itself nor the user's modules.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from nufed.common.errors import RunError
from nufed.common.user_code import NEEDED

MOST_BYTES = 64 * 2**20
"""Of all code that travels; Ray keeps it in the memory of the cluster's head."""

_PACKAGES = ("client", "common", "deploy", "library", "server", "strategy")


def copy_code(target: Path, working_folder: Path) -> None:
    """Put into `target` what nodes are to import, so that `target` can be their working folder.

    That is NuFed; the user's modules and packages that this process has loaded, packages with all their files; and of
    the working folder, top-level modules and the modules of packages, which the user's code may import later. Hidden
    files, and what is installed, stay here.

    Raises:
        RunError: the code is more than `MOST_BYTES`.
    """
    room = _Room()
    for package in _PACKAGES:
        room.copy_tree(_folder_of(package), target / "nufed" / package, code_only=True)
    room.copy(Path(str(sys.modules["nufed"].__file__)), target / "nufed" / "__init__.py")
    loaded = dict(_loaded())
    for name, paths in loaded.items():
        for path in paths:
            room.copy_top(path, target / (path.name if path.is_file() else name), code_only=False)
    for path in sorted(working_folder.iterdir()):
        if path.name[0] != "." and path.stem not in loaded and not _is_taken(path.stem) and _is_module(path):
            room.copy_top(path, target / path.name, code_only=True)


class _Room:
    """Copies files until there are too many; holds how many bytes there are, and the largest file."""

    def __init__(self) -> None:
        self._bytes, self._largest = 0, (0, Path())

    def copy_top(self, path: Path, to: Path, *, code_only: bool) -> None:
        """Copy a module, or a package's folder."""
        if path.is_dir():
            self.copy_tree(path, to, code_only=code_only)
        else:
            self.copy(path, to)

    def copy_tree(self, folder: Path, to: Path, *, code_only: bool) -> None:
        """Copy a folder without hidden, compiled and installed files; only modules if told so."""
        for here, folders, files in os.walk(folder):
            folders[:] = [each for each in folders if each[0] != "." and each not in ("__pycache__", "site-packages")]
            for name in files:
                if name[0] != "." and not name.endswith((".pyc", ".pyo")) and (name.endswith(".py") or not code_only):
                    self.copy(Path(here, name), to / Path(here, name).relative_to(folder))

    def copy(self, path: Path, to: Path) -> None:
        """Copy a file.

        Raises:
            RunError: it is one too many.
        """
        size = path.stat().st_size
        self._bytes, self._largest = self._bytes + size, max(self._largest, (size, path))
        if self._bytes > MOST_BYTES:
            raise RunError(
                f"Expected at most {MOST_BYTES >> 20} MiB of Python code for the nodes of the cluster, but there is "
                f"more, of which {self._largest[1]} takes {self._largest[0] / 2**20:.1f} MiB. Keep data out of your "
                "packages' folders, or start in a folder that holds only the code of this run."
            )
        to.parent.mkdir(parents=True, exist_ok=True)
        if not to.exists():
            shutil.copyfile(path, to)


def _folder_of(package: str) -> Path:
    """Return the folder of one of NuFed's packages, which lies in one of several places (docs/decisions/0009)."""
    places = [Path(place, package) for place in sys.modules["nufed"].__path__]
    return next(place for place in places if place.is_dir())


def _loaded() -> Iterator[tuple[str, list[Path]]]:
    """Yield top-level names of the user's loaded modules, with files or folders."""
    for name, module in list(sys.modules.items()):
        if "." in name or _is_taken(name) or name == "__main__":
            continue
        folders = [Path(place) for place in getattr(module, "__path__", ())]
        file = getattr(module, "__file__", None)
        paths = folders or ([Path(file)] if file and str(file).endswith(".py") else [])
        if own := [path.absolute() for path in paths if path.exists() and not _is_installed(path.absolute())]:
            yield name, own


def _is_taken(name: str) -> bool:
    return name in NEEDED or name in sys.stdlib_module_names


def _is_installed(path: Path) -> bool:
    """Return whether a module belongs to Python's installation, and so to whoever set up the nodes."""
    places = [Path(place) for place in sysconfig.get_paths().values() if "packages" in place or "python" in place]
    return "site-packages" in path.parts or "dist-packages" in path.parts or any(map(path.is_relative_to, places))


def _is_module(path: Path) -> bool:
    return (path.is_file() and path.suffix == ".py") or (path / "__init__.py").is_file()
