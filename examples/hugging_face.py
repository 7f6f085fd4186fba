"""A Hugging Face dataset with a column that names the client.

    pip install datasets
    python examples/hugging_face.py

The dataset is made here, so that nothing is downloaded. One from the Hub that says who wrote what is used likewise:
`datasets.load_dataset("flwrlabs/femnist", split="train")` with client_column="writer_id", input_columns="image" and
target_column="character". One that does not is divided by a partitioner of flwr-datasets, which `nufed.simulate` takes
in the place of the dataset.
"""

import datasets
import numpy as np
from sklearn.datasets import load_digits

import nufed


def handwriting(num_writers: int = 12) -> datasets.Dataset:
    """Return digits of 8 x 8 pixels, each by one of the writers, who prefer some digits to others."""
    digits = load_digits()
    order = np.argsort(digits.target + np.random.default_rng(0).normal(0, 1.5, len(digits.target)))
    writers = np.empty(len(order), dtype=int)
    writers[order] = np.arange(len(order)) * num_writers // len(order)
    return datasets.Dataset.from_dict(
        {
            "image": (digits.images / 16).tolist(),
            "digit": digits.target.tolist(),
            "writer": [f"writer-{number}" for number in writers],
        },
    ).cast_column("digit", datasets.ClassLabel(names=[str(digit) for digit in range(10)]))


def main() -> None:
    """Train over nine writers; three are new."""
    run = nufed.simulate(
        handwriting(),
        client_column="writer",
        input_columns="image",
        target_column="digit",
        new_clients=["writer-0", "writer-5", "writer-11"],
        num_inner_steps=3,
        num_rounds=15,
        engine="auto",
    )
    print(run)
    print(run.clients.to_string(index=False))


if __name__ == "__main__":
    main()
