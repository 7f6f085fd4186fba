"""What depends on the machine and never on the numbers: `Settings`, from the environment (`NUFED_*`)."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Folders, device and threads of this process.

    Read from the environment so that a Ray actor or a SuperNode started by us sees the same values.
    """

    model_config = SettingsConfigDict(env_prefix="NUFED_", frozen=True)

    data_root: Path | None = Field(None, description="folder of torchvision data sets")
    download: bool = Field(False, description="let torchvision download what is missing")
    out: Path = Field(Path("runs"), description="folder that run folders are made in")
    device: str = Field("cpu", description="cpu, cuda or cuda:N")
    num_threads: int = Field(
        1, ge=1, le=1024, description="threads of torch in each process; part of what makes runs bit-identical"
    )
