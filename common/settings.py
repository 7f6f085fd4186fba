"""What depends on the machine and never on the numbers: `Settings`, from the environment (`NUFED_*`)."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from nufed.common.errors import ConfigError


class Settings(BaseSettings):
    """Folders, device and threads of this process.

    Read from the environment so that a Ray actor or a SuperNode started by us sees the same values.
    """

    model_config = SettingsConfigDict(env_prefix="NUFED_", frozen=True)

    data_root: Path | None = Field(None, description="folder of torchvision data sets")
    download: bool = Field(False, description="let torchvision download what is missing")
    out: Path = Field(Path("runs"), description="folder that run folders are made in")
    given: Path | None = Field(
        None, description="folder of data and models given in Python, set for the worker processes of a simulation"
    )
    frozen: Path | None = Field(
        None, description="file or folder that the frozen part of the run's model is read from on this machine"
    )
    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    num_threads: int = Field(
        1, ge=1, le=1024, description="threads of torch in each process; part of what makes runs bit-identical"
    )
    test_privacy_key: str = Field(
        "",
        description="NOT PRIVATE, for tests alone: noise and participation under differential privacy are computed "
        "from this text, so that runs repeat",
    )

    @field_validator("data_root", "out", "frozen", mode="before")
    @classmethod
    def _is_named(cls, folder: object) -> object:
        if isinstance(folder, str) and not folder.strip():  # it would be the current folder
            raise ValueError("expected the name of a folder")
        return folder


def process_settings() -> Settings:
    """Return the settings that the environment gives now; parsed again only where it changed."""
    # By name, since `items` would decode all values that there are, for each message of each simulated client.
    return _parse(tuple((name, os.environ[name]) for name in os.environ if name.upper().startswith("NUFED_")))


@contextmanager
def exported(**values: object) -> Iterator[None]:
    """Put settings into the environment inside the block, where this process and those it starts read them.

    Args:
        values: by the names of `Settings`; None leaves what the environment has.
    """
    with environment({f"NUFED_{name.upper()}": str(value) for name, value in values.items() if value is not None}):
        yield


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, for this process and those that it starts there."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@lru_cache(maxsize=4)
def _parse(variables: tuple[tuple[str, str], ...]) -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        problem = error.errors()[0]
        name = f"NUFED_{str(problem['loc'][0]).upper()}"
        given = dict(variables).get(name, "")
        reason = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name}={given!r} is refused: {reason}. Correct or unset that variable.") from error
