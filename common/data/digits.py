"""`digits`: handwritten digits that come with scikit-learn; needs no download.

1797 grey images of 8 x 8 pixels by 13 writers, 10 classes of 174 to 183 images: the test part of "Optical Recognition
of Handwritten Digits" (Alpaydin and Kaynak 1998), UCI Machine Learning Repository, CC BY 4.0. A pixel counts the dark
pixels of a 4 x 4 block of the scan, 0 to 16; here it is divided by 16.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nufed.common.data.pool import Pool, SourceRequest, Table
from nufed.common.examples import TaskInfo

_TASK = TaskInfo("classification", (1, 8, 8), 10, tuple("0123456789"))


def describe(_request: SourceRequest) -> TaskInfo:
    """Return the task, without reading the images."""
    return _TASK


def load(_request: SourceRequest) -> Pool:
    """Return the images as one table."""
    pixels, labels = _read()
    return Pool(_TASK, Table(pixels.reshape(-1, 8, 8).astype(np.float32) / 16, labels.astype(np.int64)))


def _read() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pixels [1797, 64] and labels [1797] from scikit-learn's file.

    Importing scikit-learn takes 1.3 of the 4 seconds until a first round, so its function is called only where the file
    is not where it has always been.
    """
    package = find_spec("sklearn")
    file = Path(((package and package.submodule_search_locations) or [""])[0]) / "datasets/data/digits.csv.gz"
    if file.is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1], table[:, -1]
    from sklearn.datasets import load_digits

    images = load_digits()
    return images.data, images.target
