"""A new site adapts the federation's model offline: it needs the run's folder, and nobody sees its data.

    python examples/new_site.py

The same without a line of Python, for a site that has its examples in a file:

    nufed personalize --model RUN_FOLDER --data 'csv:patients.csv?label=diagnosis' --out personal.safetensors
    nufed predict --model personal.safetensors --data csv:patients.csv
"""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import nufed


def federation(out: Path) -> Path:
    """Train over the federation, as it was done long ago, and return the run's folder."""
    return nufed.simulate("digits", num_new_clients=0, num_inner_steps=3, num_rounds=15, engine="auto", out=out).path


def main() -> None:
    """Fine-tune the model to a site that sees threes and eights alone, in other light."""
    digits = load_digits()
    mine = (digits.target == 3) | (digits.target == 8)
    images = torch.from_numpy(0.6 * digits.images[mine] / 16).float()[:, None]  # [N, 1, 8, 8], darker
    labels = torch.from_numpy(digits.target[mine])

    with tempfile.TemporaryDirectory() as folder:
        run = nufed.load_run(federation(Path(folder)))
        personal = nufed.personalize(run.model, images[:40], labels[:40], steps=5)

    for name, model in (("the federation's model", run.model), ("after five steps on 40 images", personal)):
        judged = nufed.evaluate(model, images[40:], labels[40:])
        print(f"{name}: accuracy {judged.accuracy:.1%}, loss {judged.loss:.3f}")
    torch.save(personal.state_dict(), "personal.pt")


if __name__ == "__main__":
    main()
