"""`mnist`, `fashion-mnist`, `emnist`, `cifar10`, `cifar100`: torchvision's data sets, dealt by index.

Pixels are 8-bit grey or color values, scaled to [0, 1]; images stay 8-bit until a client is made. Each set has a
training and a test part; only `data.partition=per-fedavg` deals the test part, the others split each client's training
images.

* mnist: 60000 + 10000 handwritten digits, 28 x 28 (LeCun, Cortes and Burges; from NIST), CC BY-SA 3.0.
* fashion-mnist: 60000 + 10000 articles of clothing, 28 x 28 (Xiao, Rasul and Vollgraf 2017, Zalando), MIT.
* emnist: 112800 + 18800 handwritten digits and letters, 28 x 28, 47 classes, the "balanced" split (Cohen et al. 2017;
  from NIST Special Database 19), no licence stated. torchvision's images lie on their side; here they stand.
* cifar10, cifar100: 50000 + 10000 photographs, 32 x 32 in color (Krizhevsky 2009; from the Tiny Images collection, no
  licence stated).
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nufed.common.data.pool import Pool, SourceRequest, Table
from nufed.common.data.raw import image_layout
from nufed.common.errors import DataError
from nufed.common.examples import TaskInfo

_FASHION = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


@dataclass(frozen=True)
class _VisionSet:
    """A data set of torchvision: its class there, the task, and arguments of its own."""

    torchvision_name: str
    task: TaskInfo
    options: dict[str, Any] = field(default_factory=dict)
    on_its_side: bool = False


def _task(shape: tuple[int, int, int], names: list[str]) -> TaskInfo:
    return TaskInfo("classification", shape, len(names), tuple(names))


_SETS: dict[str, _VisionSet] = {
    "mnist": _VisionSet("MNIST", _task((1, 28, 28), list("0123456789"))),
    "fashion-mnist": _VisionSet("FashionMNIST", _task((1, 28, 28), _FASHION.split(","))),
    "emnist": _VisionSet(
        "EMNIST",
        _task((1, 28, 28), list("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")),
        {"split": "balanced"},
        on_its_side=True,
    ),
    "cifar10": _VisionSet("CIFAR10", _task((3, 32, 32), _CIFAR10.split())),
    "cifar100": _VisionSet("CIFAR100", _task((3, 32, 32), _CIFAR100.split())),
}


def describe(name: str, _request: SourceRequest) -> TaskInfo:
    """Return the task, without reading the images."""
    return _SETS[name].task


def load(name: str, request: SourceRequest) -> Pool:
    """Return the training and the test part.

    Raises:
        DataError: the files are not there and may not be downloaded, or the download failed.
    """
    return Pool(_SETS[name].task, _table(name, request, train=True), test=_table(name, request, train=False))


def _table(name: str, request: SourceRequest, *, train: bool) -> Table:
    root, download = request.settings.data_root, request.settings.download
    if root is None:
        raise DataError(
            f"data.source={name} expects a folder of torchvision data sets, but none was given; "
            "add --data-root DIR --download (NUFED_DATA_ROOT and NUFED_DOWNLOAD for other processes)"
        )
    import torchvision.datasets

    vision_set = _SETS[name]
    make = getattr(torchvision.datasets, vision_set.torchvision_name)
    try:
        images = make(str(root), train=train, download=download, **vision_set.options)
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        if download:
            raise DataError(
                f"expected to download {name} to {root}, but that failed ({reason}); check the network and the "
                f"folder's permissions, or copy torchvision's {vision_set.torchvision_name} files there"
            ) from error
        raise DataError(
            f"expected torchvision's {vision_set.torchvision_name} files in {root}, but found none that are complete "
            f"({reason}); add --data-root {root} --download"
        ) from error
    pixels = image_layout(np.asarray(images.data))
    return Table(
        pixels.transpose(0, 1, 3, 2) if vision_set.on_its_side else pixels, np.asarray(images.targets, dtype=np.int64)
    )
