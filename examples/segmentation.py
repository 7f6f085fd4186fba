"""Segmentation of small images: which pixels belong to a cell, under the microscope of each laboratory.

Stains differ: where one laboratory's cells are dark on light, another's are light on dark.

    python examples/segmentation.py
"""

import numpy as np
from torch import Tensor, nn

import nufed

SIZE = 16


def laboratory(number: int, num_images: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, 1, 16, 16] and their masks [N, 16, 16], 1 where a cell is."""
    random = np.random.default_rng(number)
    stain = random.choice([-1, 1]) * random.uniform(0.5, 1.5)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    centers = random.uniform(4, SIZE - 4, size=(2, num_images, 1, 1))
    radii = random.uniform(2, 5, size=(num_images, 1, 1))
    masks = (rows - centers[0]) ** 2 + (columns - centers[1]) ** 2 < radii**2
    images = stain * (masks - 0.5) + 0.3 * random.normal(size=masks.shape)
    return images[:, None].astype(np.float32), masks.astype(np.int64)


class Net(nn.Sequential):
    """Three convolutions that keep the size: images [B, 1, H, W] to logits [B, 2, H, W]."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, 2, H, W]."""
        logits: Tensor = super().forward(images)
        return logits


def main() -> None:
    """Train over eight laboratories, and judge two new ones by the Dice coefficient."""
    laboratories = {f"laboratory-{number}": laboratory(number) for number in range(10)}
    run = nufed.simulate(
        laboratories,
        Net,
        task="segmentation",
        new_clients=["laboratory-8", "laboratory-9"],
        num_inner_steps=3,
        inner_lr=0.5,
        num_rounds=10,
    )
    print(run)
    before, *_, after = run.summary["new"]["metrics"]["test-dice"]
    print(f"Dice coefficient at new laboratories: {before:.2f} before, {after:.2f} after adaptation")


if __name__ == "__main__":
    main()
