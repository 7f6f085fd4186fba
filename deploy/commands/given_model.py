"""A model from a file, personal or a run's, with what is needed to use it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from nufed.common.data.private.preparation import Preparation
    from nufed.common.data.private.task import Column
    from nufed.common.data.target_scaling import TargetScaling
    from nufed.common.examples import TaskInfo
    from nufed.common.params import Params

AnyModel = Annotated[
    Path, typer.Option(help="a personal model, a run's model.safetensors or its folder", metavar="FILE")
]
Data = Annotated[
    str,
    typer.Option(
        help="your data: csv:FILE?label=COLUMN, parquet:FILE?label=COLUMN, images:FOLDER, npz:FILE, "
        "python:module:function, or digits#22/20 for trials",
        metavar="SPEC",
    ),
]


@dataclass(frozen=True)
class GivenModel:
    """A model from a file, personal or a run's.

    Attributes:
        params: its parameters.
        config: the run's options.
        task: what it is for.
        preparation: how raw inputs become those that it takes; None where nothing is changed, or nothing is known.
        target_scaling: of the values that it predicts; None where they are in their own unit.
        columns: of the table whose rows are its inputs; empty where there is none, or none is known.
        frozen: hash of the model's frozen part; empty where everything is trained.
    """

    params: "Params"
    config: RunConfig
    task: "TaskInfo"
    preparation: "Preparation | None" = None
    target_scaling: "TargetScaling | None" = None
    columns: "tuple[Column, ...]" = ()
    frozen: str = ""

    def network(self) -> "nn.Module":
        """Return a module of the run's architecture, which the parameters and their frozen part fit.

        Raises:
            ModelError: the model cannot be built, or the parameters are not its own.
        """
        from nufed.client.personal_model import check_fits
        from nufed.common.models import build_model

        network = build_model(self.config.model, self.task, seed=self.config.seed).eval()
        check_fits(self.params, network, self.frozen)
        return network


def load_given(path: Path) -> GivenModel:
    """Return the model in a file.

    Raises:
        ConfigError: it predicts values that are scaled by each client's own data, and comes without any.
        DataError: the run's data, which say what the model must fit, are not here.
        RunError: the file is absent, torn or no model.
    """
    from nufed.client.personal_model import PERSONAL_FORMAT, load_personal_model
    from nufed.common.data import task_of_run
    from nufed.common.data.private.preparation import Preparation
    from nufed.common.data.private.task import declared_columns
    from nufed.common.data.target_scaling import TargetScaling, declared_target_scaling, target_scale
    from nufed.common.durable_file import read_metadata
    from nufed.common.meta.meta_sgd import split_step_sizes
    from nufed.common.settings import process_settings
    from nufed.server.run_folder import load_model

    if not path.is_dir() and read_metadata(path).get("format") == PERSONAL_FORMAT:
        own = load_personal_model(path)
        return GivenModel(
            own.params, own.config, own.task, own.preparation, own.target_scaling, own.columns, own.frozen
        )
    arrays, stored = load_model(path)
    config = RunConfig.parse(stored["config"])
    params, _ = split_step_sizes(arrays)
    task = task_of_run(config, process_settings())
    scaling = TargetScaling.from_json(stored.get("target_scaling")) or declared_target_scaling(config.data)
    if scaling is None and target_scale(config.data, task) != "none":
        raise ConfigError(
            f"{path} predicts values that each client scales by its own support split, which `nufed personalize` keeps "
            "with its model. Predict with a personal model (--steps 0 leaves the run's model as it is)."
        )
    kept: dict[str, Any] | None = stored.get("preparation")
    preparation, columns = Preparation.from_json(kept) if kept else None, declared_columns(config.data)
    return GivenModel(params, config, task, preparation, scaling, columns, str(stored.get("frozen", "")))
