"""Options of the model."""

from typing import Literal

from pydantic import Field

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section


class ModelConfig(Section):
    """The model that is trained."""

    name: str = Field("mlp", description="name of a model, or module:function")
    hidden_sizes: str = Field(
        "80,60",
        pattern=r"^(\d+(,\d+)*)?$",
        json_schema_extra={LIST: "numbers"},
        description="widths of the hidden layers, comma-separated or a list",
    )
    activation: Literal["elu", "tanh", "gelu", "silu", "softplus", "relu"] = Field("elu", description="nonlinearity")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropping a unit; 0 turns it off")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of parameters and inputs")
