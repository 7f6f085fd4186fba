"""Generalized meta federated learning: one starting point that every client adapts to its own data in ν steps.

`nufed.simulate` runs a federation on this machine, `nufed.personalize` adapts its model to somebody's examples,
`nufed.MetaFedAvg` is the strategy for a Flower app of one's own, and `nufed.meta_gradient` the method alone. Names are
loaded when they are first used, so that importing NuFed costs nothing.

The packages lie at the top of the repository (`client/`, `common/`, `deploy/`, `server/`, `strategy/`) and are imported
from here: `nufed.client`, `nufed.common`, … (docs/decisions/0009-one-package.md).
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nufed.common import __version__ as __version__
    from nufed.common.config import DataConfig as DataConfig
    from nufed.common.config import EvaluationConfig as EvaluationConfig
    from nufed.common.config import FederationConfig as FederationConfig
    from nufed.common.config import MethodConfig as MethodConfig
    from nufed.common.config import ModelConfig as ModelConfig
    from nufed.common.config import RunConfig as RunConfig
    from nufed.common.config import TaskConfig as TaskConfig
    from nufed.common.errors import BudgetSpentError as BudgetSpentError
    from nufed.common.errors import ConfigError as ConfigError
    from nufed.common.errors import DataError as DataError
    from nufed.common.errors import DivergedError as DivergedError
    from nufed.common.errors import ModelError as ModelError
    from nufed.common.errors import NothingTrainedError as NothingTrainedError
    from nufed.common.errors import NufedError as NufedError
    from nufed.common.errors import PeerError as PeerError
    from nufed.common.errors import RunError as RunError
    from nufed.common.errors import WireError as WireError
    from nufed.common.meta.meta_gradient import Estimate as Estimate
    from nufed.common.meta.meta_gradient import MetaBatches as MetaBatches
    from nufed.common.tasks import OwnTask as OwnTask
    from nufed.library.bare_gradient import meta_gradient as meta_gradient
    from nufed.library.comparison import compare as compare
    from nufed.library.personal import Evaluation as Evaluation
    from nufed.library.personal import evaluate as evaluate
    from nufed.library.personal import personalize as personalize
    from nufed.library.personal import predict as predict
    from nufed.library.run import Run as Run
    from nufed.library.simulation import load_run as load_run
    from nufed.library.simulation import simulate as simulate
    from nufed.strategy import MetaFedAvg as MetaFedAvg

if not (Path(__file__).parent / "common").is_dir():  # an unpacked app bundle, or a checkout without symbolic links
    __path__.append(str(Path(__file__).parent.parent))

_HOMES = {
    "nufed.common": ("__version__",),
    "nufed.common.config": (
        *("DataConfig", "EvaluationConfig", "FederationConfig", "MethodConfig", "ModelConfig", "RunConfig"),
        "TaskConfig",
    ),
    "nufed.common.errors": (
        *("BudgetSpentError", "ConfigError", "DataError", "DivergedError", "ModelError", "NothingTrainedError"),
        *("NufedError", "PeerError", "RunError", "WireError"),
    ),
    "nufed.common.meta.meta_gradient": ("Estimate", "MetaBatches"),
    "nufed.common.tasks": ("OwnTask",),
    "nufed.library.bare_gradient": ("meta_gradient",),
    "nufed.library.comparison": ("compare",),
    "nufed.library.personal": ("Evaluation", "evaluate", "personalize", "predict"),
    "nufed.library.run": ("Run",),
    "nufed.library.simulation": ("load_run", "simulate"),
    "nufed.strategy": ("MetaFedAvg",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order in which a reader wants them
    "simulate",
    "load_run",
    "compare",
    "Run",
    "personalize",
    "predict",
    "evaluate",
    "Evaluation",
    "MetaFedAvg",
    "meta_gradient",
    "MetaBatches",
    "Estimate",
    "OwnTask",
    "RunConfig",
    "DataConfig",
    "ModelConfig",
    "MethodConfig",
    "FederationConfig",
    "EvaluationConfig",
    "TaskConfig",
    "NufedError",
    "ConfigError",
    "DataError",
    "ModelError",
    "WireError",
    "RunError",
    "PeerError",
    "NothingTrainedError",
    "DivergedError",
    "BudgetSpentError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used."""
    if name not in _HOME:
        raise AttributeError(f"module 'nufed' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return all public names, also those that are not loaded yet."""
    return sorted({*globals(), *__all__})
