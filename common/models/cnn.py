"""`cnn`: two convolution blocks and a linear head for images of 8 x 8 pixels or more.

A block is a 3 x 3 convolution, GroupNorm (Wu and He 2018; no statistics outside the parameters), the configured
activation, and average pooling by 2. Everything is smooth if the activation is, which Hessian products and the
Hessian-free estimator need; max-pooling is not.
"""

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.examples import TaskInfo
from nufed.common.models.layers import ACTIVATIONS, image_shape

CHANNELS = (32, 64)
CHANNELS_PER_GROUP = 4


def build(config: ModelConfig, task: TaskInfo) -> nn.Module:
    """Return the network for inputs of shape [C, H, W]; `model.hidden-sizes` does not apply.

    Raises:
        ModelError: the inputs are no images, or smaller than 4 x 4.
    """
    channels, height, width = image_shape("cnn", task)
    layers: list[nn.Module] = []
    for after in CHANNELS:
        layers += [
            nn.Conv2d(channels, after, kernel_size=3, padding=1),
            nn.GroupNorm(after // CHANNELS_PER_GROUP, after),
            ACTIVATIONS[config.activation](),
            nn.AvgPool2d(2),
        ]
        channels, height, width = after, height // 2, width // 2
    dropout = [nn.Dropout(config.dropout)] if config.dropout > 0 else []
    return nn.Sequential(*layers, nn.Flatten(), *dropout, nn.Linear(channels * height * width, task.num_outputs))
