"""Options of the task's loss."""

from typing import Literal

from pydantic import Field

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section


class TaskConfig(Section):
    """What the loss of the task (data.task) is like."""

    class_weights: str = Field(
        "none",
        pattern=r"^(none|balanced|[-+.eE\d]+( *, *[-+.eE\d]+)*)$",
        json_schema_extra={LIST: "numbers"},
        description="what an example of each class counts in training: none (all the same), balanced (each class of a "
        "client's support split the same in total), or a number for each class (task classification)",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the target that is spread over all classes or labels",
    )
    loss: Literal["auto", "mse", "huber", "mae"] = Field(
        "auto", description="of values: half the squared error (auto, mse), Huber's, or the absolute (task regression)"
    )
    huber_delta: float = Field(
        1.0, gt=0, le=1e9, description="error from which Huber's loss grows linearly, in the unit it is trained in"
    )
    dice_weight: float = Field(
        1.0, ge=0, le=1e3, description="weight of the Dice loss beside cross-entropy's 1 (task segmentation)"
    )
    ignore_index: int = Field(
        -100, ge=-(2**31), lt=2**31, description="target of pixels and positions that do not count, such as padding"
    )
