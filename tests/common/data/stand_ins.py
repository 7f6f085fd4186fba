"""A small, offline stand-in for every data source, in the source's own file format; where real data may be."""

import itertools
import os
import pickle
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from nufed.common.config import DataConfig
from nufed.common.rng import numpy_generator
from nufed.common.settings import Settings

PER_CLASS, PER_CLASS_TEST = 24, 12

REAL_DATA = Path(os.environ.get("NUFED_DATA_ROOT", Path(__file__).parents[4] / "shared/data"))
REAL_VISION = REAL_DATA / "torchvision" if (REAL_DATA / "torchvision").is_dir() else REAL_DATA


@dataclass(frozen=True)
class StandIn:
    """A configuration that loads within a fraction of a second.

    Attributes:
        config: 5 participating and 3 new clients.
        settings: where its files are.
        num_dealt: examples that all clients together must hold; None if the source makes as many as it needs.
    """

    config: DataConfig
    settings: Settings
    num_dealt: int | None


Prepare = Callable[[Path, pytest.MonkeyPatch], StandIn]


def config_for(source: str, **changes) -> DataConfig:
    return DataConfig(
        **{
            "source": source,
            "partition": "dirichlet",
            "dirichlet_alpha": 1.0,
            "num_clients": 5,
            "num_new_clients": 3,
            **changes,
        }
    )


def random_images(count: int, shape: tuple[int, ...], purpose: str) -> np.ndarray:
    return numpy_generator(0, "stand-in", purpose).integers(0, 256, (count, *shape), dtype=np.uint8)


def balanced_labels(num_classes: int, per_class: int) -> np.ndarray:
    return np.tile(np.arange(num_classes), per_class)


def _write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def idx_files(folder: str, prefix: str, num_classes: int) -> Prepare:
    source = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist", "EMNIST": "emnist"}[folder]

    def prepare(root: Path, _monkeypatch: pytest.MonkeyPatch) -> StandIn:
        raw = root / folder / "raw"
        raw.mkdir(parents=True)
        for part, test_part, per_class in (("train", "train", PER_CLASS), ("t10k", "test", PER_CLASS_TEST)):
            stem = f"{prefix}{test_part if prefix else part}"
            labels = balanced_labels(num_classes, per_class)
            _write_idx(raw / f"{stem}-images-idx3-ubyte", random_images(len(labels), (28, 28), f"{source} {part}"))
            _write_idx(raw / f"{stem}-labels-idx1-ubyte", labels)
        return StandIn(config_for(source), Settings(data_root=root), num_classes * PER_CLASS)

    return prepare


def cifar_files(folder: str, num_classes: int) -> Prepare:
    source, key = ("cifar10", "labels") if num_classes == 10 else ("cifar100", "fine_labels")

    def prepare(root: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
        monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
        base = root / folder
        base.mkdir(parents=True)
        train_files = [f"data_batch_{index}" for index in range(1, 6)] if num_classes == 10 else ["train"]
        test_file = "test_batch" if num_classes == 10 else "test"
        per_file = PER_CLASS // len(train_files) + 1
        for name, per_class in [*((name, per_file) for name in train_files), (test_file, PER_CLASS_TEST)]:
            labels = balanced_labels(num_classes, per_class)
            pixels = random_images(len(labels), (3072,), f"{source} {name}")
            (base / name).write_bytes(pickle.dumps({"data": pixels, key: labels.tolist()}))
        meta = ("batches.meta", "label_names") if num_classes == 10 else ("meta", "fine_label_names")
        (base / meta[0]).write_bytes(pickle.dumps({meta[1]: [str(label) for label in range(num_classes)]}))
        return StandIn(config_for(source), Settings(data_root=root), num_classes * per_file * len(train_files))

    return prepare


def _digits(_root: Path, _monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn(config_for("digits"), Settings(), 1797)


def _omniglot(root: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    monkeypatch.setattr("torchvision.datasets.omniglot.check_integrity", lambda *_: True)
    for part, alphabets in (("images_background", 5), ("images_evaluation", 3)):
        for alphabet, symbol in itertools.product(range(alphabets), range(4)):
            folder = root / "omniglot-py" / part / f"Alphabet {alphabet}" / f"character{symbol:02d}"
            folder.mkdir(parents=True)
            for index, image in enumerate(random_images(6, (105, 105), f"{part} {alphabet} {symbol}")):
                image[:8] = 255
                image[8:16] = 0
                Image.fromarray(image).save(folder / f"{index:02d}.png")
    return StandIn(config_for("omniglot"), Settings(data_root=root), None)


def _npz(root: Path, _monkeypatch: pytest.MonkeyPatch) -> StandIn:
    labels = balanced_labels(4, 20)
    np.savez(
        root / "made.npz",
        x=random_images(len(labels), (6, 6), "npz"),
        y=labels,
        user=np.repeat([f"writer {index}" for index in range(8)], 10),
    )
    return StandIn(config_for(f"npz:{root / 'made.npz'}", partition="by-user"), Settings(), len(labels))


def _table(kind: str) -> Prepare:
    """A csv or parquet file of eight sites, with numbers, names and an empty cell."""

    def prepare(root: Path, _monkeypatch: pytest.MonkeyPatch) -> StandIn:
        rng, num = numpy_generator(0, "stand-in", kind), 160
        ages = np.where(np.arange(num) == 3, np.nan, 1 + rng.permutation(num))
        names = {"sex": rng.choice(["f", "m"], num), "ill": rng.choice(["no", "yes"], num)}
        frame = pd.DataFrame({"age": ages, **names, "site": np.repeat([f"site {index}" for index in range(8)], 20)})
        path = root / f"all.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
        return StandIn(config_for(f"{kind}:{path}?label=ill&missing=zero&user=site"), Settings(), num)

    return prepare


def _images(root: Path, _monkeypatch: pytest.MonkeyPatch) -> StandIn:
    for site in range(8):
        for name in ("cat", "dog"):
            folder = root / "all" / f"site {site}" / name
            folder.mkdir(parents=True)
            for number, pixels in enumerate(random_images(6, (4, 4), f"{site} {name}")):
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return StandIn(config_for(f"images:{root / 'all'}"), Settings(), 96)


def _made(source: str) -> Prepare:
    return lambda _root, _monkeypatch: StandIn(config_for(source), Settings(), None)


PYTHON_MODULE = """
import numpy as np


def make(config, seed):
    rng = np.random.default_rng(seed)
    return {f"site {i}": (rng.standard_normal((6 + i, 3)), rng.integers(0, 2, 6 + i)) for i in range(8)}
"""


def _python(root: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    (root / "made_by_user.py").write_text(PYTHON_MODULE)
    monkeypatch.chdir(root)
    monkeypatch.delitem(sys.modules, "made_by_user", raising=False)
    return StandIn(config_for("python:made_by_user:make"), Settings(), sum(range(6, 14)))


STAND_INS: dict[str, Prepare] = {
    "digits": _digits,
    "mnist": idx_files("MNIST", "", 10),
    "fashion-mnist": idx_files("FashionMNIST", "", 10),
    "emnist": idx_files("EMNIST", "emnist-balanced-", 47),
    "cifar10": cifar_files("cifar-10-batches-py", 10),
    "cifar100": cifar_files("cifar-100-python", 100),
    "omniglot": _omniglot,
    "npz": _npz,
    "csv": _table("csv"),
    "parquet": _table("parquet"),
    "images": _images,
    "python": _python,
}


def stand_in_of(source: str) -> Prepare:
    """Return a source's stand-in; a source without one makes its data, or has them in the code."""
    return STAND_INS.get(source, _made(source))
