"""`fedavg-cnn`: the small image network that personalized federated learning is most often compared on.

Two 5 x 5 convolutions of 32 and 64 channels without padding, each followed by the configured activation and
max-pooling by 2, then fully connected layers of the widths in `model.hidden-sizes`. Images of fewer than 16 pixels a
side are padded before each convolution, as McMahan et al. (2017) pad all of theirs, so that something is left of them.

With `relu` and the width 512 it is the `FedAvgCNN` of PFLlib (Zhang et al. 2025, "4-layer CNN"), with 2048 the
`FemnistCNN` of FedEM (Marfoq et al. 2021).
"""

from itertools import pairwise

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.examples import TaskInfo
from nufed.common.models.layers import ACTIVATIONS, activated, hidden_sizes, image_shape

CHANNELS = (32, 64)
KERNEL = 5
UNPADDED_SIDE = 16
"""Of an image: of less, convolutions without padding and pooling leave nothing."""


def build(config: ModelConfig, task: TaskInfo) -> nn.Module:
    """Return the network for inputs of shape [C, H, W].

    Raises:
        ModelError: the inputs are no images, or smaller than 4 x 4.
    """
    channels, height, width = image_shape("fedavg-cnn", task)
    padding = 0 if min(height, width) >= UNPADDED_SIDE else KERNEL // 2
    layers: list[nn.Module] = []
    for after in CHANNELS:
        layers += [
            nn.Conv2d(channels, after, KERNEL, padding=padding),
            ACTIVATIONS[config.activation](),
            nn.MaxPool2d(2),
        ]
        channels, shrinks = after, KERNEL - 1 - 2 * padding
        height, width = (height - shrinks) // 2, (width - shrinks) // 2
    layers.append(nn.Flatten())
    widths = [channels * height * width, *hidden_sizes(config)]
    for before, after in pairwise(widths):
        layers += activated(nn.Linear(before, after), config)
    return nn.Sequential(*layers, nn.Linear(widths[-1], task.num_outputs))
