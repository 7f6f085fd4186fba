"""A CSV file for each hospital: train over all but one, and see which number of fine-tuning steps serves the new one.

    python examples/hospitals_from_csv.py [FOLDER]

FOLDER holds files such as `north.csv` with the columns `diagnosis` and any columns of numbers. Without it, made-up
files are written to a temporary folder.
"""

import sys
import tempfile
from pathlib import Path

import pandas as pd
from sklearn.datasets import load_breast_cancer

import nufed

HOSPITALS = ("north", "east", "south", "west", "new")


def write_example(folder: Path) -> None:
    """Deal the breast cancer data set that comes with scikit-learn to hospitals; two write curvature for radius."""
    table = load_breast_cancer(as_frame=True).frame[["mean radius", "mean texture", "mean area", "target"]]
    table = table.sample(frac=1, random_state=0).rename(columns={"target": "diagnosis"})
    for number, name in enumerate(HOSPITALS):
        part = table.iloc[number :: len(HOSPITALS)].copy()
        if number % 2:
            part[["mean radius", "mean area"]] = 1 / part[["mean radius", "mean area"]]
        part["diagnosis"] = part["diagnosis"].map({0: "malignant", 1: "benign"})
        part.to_csv(folder / f"{name}.csv", index=False)


def standardized(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its inputs in standard units; here by each hospital's own mean and deviation."""
    inputs = table.columns.drop("diagnosis")
    scaled = (table[inputs] - table[inputs].mean()) / table[inputs].std()
    return scaled.assign(diagnosis=table["diagnosis"])


def main(folder: Path) -> None:
    """Compare FedAvg (ν = 0), Per-FedAvg (ν = 1) and ν = 3."""
    hospitals = {path.stem: standardized(pd.read_csv(path)) for path in sorted(folder.glob("*.csv"))}
    runs = {
        f"ν = {steps}": nufed.simulate(
            hospitals,
            "linear",
            target_column="diagnosis",
            new_clients=["new"],
            num_inner_steps=steps,
            inner_lr=0.2,
            participation_fraction=1.0,
            num_rounds=10,
        )
        for steps in (0, 1, 3)
    }
    print(nufed.compare(runs)[["run", "group", "num_clients", "before", "after"]].round(3).to_string(index=False))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            write_example(Path(made))
            main(Path(made))
