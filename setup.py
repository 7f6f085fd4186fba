"""Stamps what is built with the commit that it is built from; all else about the build stands in pyproject.toml."""

import importlib.util
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


def _commit() -> str | None:
    """Return what `nufed --version` would say here: of a checkout git's answer, of a source archive its stamp."""
    spec = importlib.util.spec_from_file_location("nufed_version", ROOT / "deploy" / "commands" / "version.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.find_commit(ROOT / "nufed")


def _stamp(package: Path) -> None:
    if package.is_dir() and (commit := _commit()):
        (package / "COMMIT").write_text(f"{commit}\n", encoding="ascii")


class StampedBuild(build_py):
    """Copies the packages and leaves a stamp in the copy; an editable install needs none."""

    def run(self) -> None:
        """Build, then stamp."""
        super().run()
        if not self.editable_mode:
            _stamp(Path(self.build_lib) / "nufed")


class StampedArchive(sdist):
    """Makes the source archive with a stamp in it: what is built from it has no git to ask."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files, then stamp."""
        super().make_release_tree(base_dir, files)
        _stamp(Path(base_dir) / "nufed")


if __name__ == "__main__":
    setup(cmdclass={"build_py": StampedBuild, "sdist": StampedArchive})
