"""What decides a run's numbers: `RunConfig`, declared once, parsed once, frozen.

Flower carries it as flat kebab-case keys (`method.inner-lr`), TOML as tables, Python as attributes
(`config.method.inner_lr`); one alias generator stands between them. Each section is a module. Defaults live there, and
`[tool.flwr.app.config]` in pyproject.toml repeats them because Flower refuses to override a key
that is not declared there (a test keeps the two equal).

What depends on the machine (folders, device, threads) is in `nufed.common.settings`.
"""

from nufed.common.config.data import DataConfig
from nufed.common.config.evaluation import EvaluationConfig
from nufed.common.config.federation import FederationConfig
from nufed.common.config.method import MethodConfig
from nufed.common.config.model import ModelConfig
from nufed.common.config.privacy import PrivacyConfig
from nufed.common.config.run import RunConfig, option_descriptions
from nufed.common.config.section import Scalar, to_kebab
from nufed.common.config.task import TaskConfig

__all__ = [
    "DataConfig",
    "EvaluationConfig",
    "FederationConfig",
    "MethodConfig",
    "ModelConfig",
    "PrivacyConfig",
    "RunConfig",
    "Scalar",
    "TaskConfig",
    "option_descriptions",
    "to_kebab",
]
