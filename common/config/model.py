"""Options of the model."""

from typing import Literal

from pydantic import Field

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section


class ModelConfig(Section):
    """The model that is trained."""

    name: str = Field("mlp", description="name of a model, module:function, or huggingface:FOLDER")
    hidden_sizes: str = Field(
        "80,60",
        pattern=r"^(\d+(,\d+)*)?$",
        json_schema_extra={LIST: "numbers"},
        description="widths of the hidden layers, comma-separated or a list",
    )
    activation: Literal["elu", "tanh", "gelu", "silu", "softplus", "relu"] = Field("elu", description="nonlinearity")
    dropout: float = Field(0.0, ge=0, lt=1, description="probability of dropping a unit; 0 turns it off")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of parameters and inputs")
    head: Literal["auto", "sequence-classification", "token-classification", "causal-lm", "image-classification"] = (
        Field("auto", description="what a model of huggingface: ends in; auto follows the task")
    )
    lora_rank: int = Field(0, ge=0, le=1024, description="rank of the adapters of huggingface: models; 0 adds none")
    lora_alpha: float = Field(
        0.0, ge=0, le=1e6, description="adapters count lora-alpha / lora-rank; 0 is twice the rank"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout before the adapters; 0 turns it off")
    lora_targets: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="names of the layers with adapters, comma-separated, or all-linear; empty: peft's choice",
    )
    trainable: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="names of the parameters that are trained, comma-separated, * for anything; all others are "
        "frozen: neither sent nor differentiated. Empty leaves it to the model",
    )
    init: str = Field(
        "", description="file or run folder of a trained model that the run starts from; empty: from the seed"
    )
    init_hash: str = Field(
        "", pattern=r"^([0-9a-f]{32})?$", description="BLAKE2b of what model.init holds; written down by the run"
    )
