"""`digits`: handwritten digits that come with scikit-learn; needs no download.

1797 grey images of 8 x 8 pixels by 13 writers, 10 classes of 174 to 183 images: the test part of "Optical Recognition
of Handwritten Digits" (Alpaydin and Kaynak 1998), UCI Machine Learning Repository, CC BY 4.0. A pixel counts the dark
pixels of a 4 x 4 block of the scan, 0 to 16; here it is divided by 16.
"""

import numpy as np

from nufed.common.data.pool import Pool, SourceRequest, Table
from nufed.common.examples import TaskInfo

_TASK = TaskInfo("classification", (1, 8, 8), 10, tuple("0123456789"))


def describe(_request: SourceRequest) -> TaskInfo:
    """Return the task, without reading the images."""
    return _TASK


def load(_request: SourceRequest) -> Pool:
    """Return the images as one table."""
    from sklearn.datasets import load_digits

    images = load_digits()
    return Pool(_TASK, Table(images.images.astype(np.float32) / 16, images.target.astype(np.int64)))
