"""`omniglot`: each client has symbols of its own, from one alphabet; what a label means differs from client to client.

Omniglot (Lake, Salakhutdinov and Tenenbaum 2015, MIT licence) has 1623 handwritten symbols of 50 alphabets, each drawn
by 20 people; here [1, 28, 28] with ink 1 on paper 0. A client holds `data.classes-per-client` symbols of one alphabet
with all their images, in an order of its own: its first symbol is class 0. No symbol is at two clients, and alphabets
of new clients are at no participating one. So no model can know a client's symbols before it has seen examples of them,
which is the setting that few-shot learning is judged in.

The files are torchvision's Omniglot in the data folder (`--download` fetches both parts), or `omniglot.npz` in it or in
the folder above: `x` [N, 28, 28] of 8 bits, `alphabet` [N] and `character` [N], numbers of them.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch

from nufed.common.data.archive import open_archive
from nufed.common.data.dealt_client import DealtClient, client_name, split_client
from nufed.common.data.pool import Array, DealtFederation, Rows, SourceRequest, Table
from nufed.common.errors import DataError
from nufed.common.examples import ClientData, TaskInfo
from nufed.common.rng import NumpyGenerator, numpy_generator
from nufed.common.settings import Settings

ARCHIVE, SIZE = "omniglot.npz", 28
_ARRAYS = ("x", "alphabet", "character")

Symbols = tuple[Rows, ...]
"""Rows of the images of each symbol that a client holds, in the order of its classes."""


def describe(request: SourceRequest) -> TaskInfo:
    """Return the task, without reading the images.

    Raises:
        DataError: clients are to hold fewer than two symbols.
    """
    number = request.config.classes_per_client
    if number < 2:
        raise DataError(
            f"data.source=omniglot expects two symbols or more for each client; "
            f"data.classes-per-client={number} leaves nothing to tell apart"
        )
    return TaskInfo("classification", (1, SIZE, SIZE), number, tuple(f"symbol {index + 1}" for index in range(number)))


def load(request: SourceRequest) -> DealtFederation:
    """Return clients whose symbols and alphabets follow from the run's seed.

    Raises:
        DataError: the files are not there or malformed, or have too few symbols for so many clients.
    """
    task = describe(request)
    images, alphabets, characters = _images(request.settings)
    held = _symbols_of_clients(request, alphabets, characters)

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        name, group = client_name(partition_id, request.config)
        rows = np.concatenate(held[partition_id])
        labels = np.repeat(np.arange(task.num_outputs), [len(symbol) for symbol in held[partition_id]])
        dealt = DealtClient(name, group, Table(images[rows], labels), np.arange(len(rows)))
        return split_client(dealt, task, request.config, request.seed, dtype)

    identify = partial(client_name, config=request.config)
    return DealtFederation(task, request.num_total, make_client, identify=identify)


def _symbols_of_clients(request: SourceRequest, alphabets: Array, characters: Array) -> list[Symbols]:
    """Return the symbols of each client by partition id, whole alphabets set apart for new clients first."""
    rng = numpy_generator(request.seed, "data", "omniglot")
    size = request.config.classes_per_client
    groups = {
        int(alphabet): list(_groups(np.flatnonzero(alphabets == alphabet), characters, size, rng))
        for alphabet in np.unique(alphabets)
    }
    order = [int(alphabet) for alphabet in rng.permutation(sorted(groups))]
    new: list[Symbols] = []
    while order and len(new) < request.config.num_new_clients:
        new += groups[order.pop()]
    participating = [group for alphabet in order for group in groups[alphabet]]
    chosen = []
    for kind, wanted, found in (
        ("participating", request.config.num_clients, participating),
        ("new", request.config.num_new_clients, new),
    ):
        if len(found) < wanted:
            raise DataError(
                f"data.source=omniglot has symbols for {len(found)} {kind} clients of {size} symbols each beside the "
                f"others, and {wanted} are asked for; lower data.num-clients, data.num-new-clients or "
                "data.classes-per-client"
            )
        chosen += [found[index] for index in rng.permutation(len(found))[:wanted]]
    return chosen


def _groups(rows: Rows, characters: Array, size: int, rng: NumpyGenerator) -> Iterator[Symbols]:
    """Yield the symbols of one alphabet in groups, drawn at random; what does not fill a group is left out."""
    symbols = rng.permutation(np.unique(characters[rows]))
    for first in range(0, len(symbols) - size + 1, size):
        yield tuple(rows[characters[rows] == symbol] for symbol in symbols[first : first + size])


@lru_cache(maxsize=2)
def _images(settings: Settings) -> tuple[Array, Array, Array]:
    """Return (images [N, 28, 28] of 8 bits, alphabets [N], characters [N], both numbers)."""
    root = settings.data_root
    if root is None:
        raise DataError(
            f"data.source=omniglot expects a folder with torchvision's Omniglot or {ARCHIVE}, but none was given; "
            "add --data-root DIR --download (NUFED_DATA_ROOT and NUFED_DOWNLOAD for other processes)"
        )
    for path in (root / ARCHIVE, root.parent / ARCHIVE):
        if path.is_file():
            return _of_archive(path)
    return _of_torchvision(root, download=settings.download)


def _of_archive(path: Path) -> tuple[Array, Array, Array]:
    with open_archive(path, "give the folder that holds it with --data-root DIR") as archive:
        if missing := sorted({*_ARRAYS} - {*archive.names}):
            raise DataError(f"expected arrays {', '.join(_ARRAYS)} in {path}, but it lacks {', '.join(missing)}")
        images, alphabets, characters = (archive.read(name) for name in _ARRAYS)
    if images.dtype != np.uint8 or images.shape[1:] != (SIZE, SIZE):
        raise DataError(
            f"expected x in {path} to be 8-bit images of {SIZE} x {SIZE}, but got {images.dtype} of shape "
            f"{list(images.shape)}"
        )
    for name, array in (("alphabet", alphabets), ("character", characters)):
        if array.shape != images.shape[:1] or array.dtype.kind not in "iu":
            raise DataError(
                f"expected {name} in {path} to be {len(images)} whole numbers, one for each image, but got "
                f"{array.dtype} of shape {list(array.shape)}"
            )
    return images, alphabets, characters


def _of_torchvision(root: Path, *, download: bool) -> tuple[Array, Array, Array]:
    """Return both parts that torchvision has, made smaller; alphabets and characters numbered by their names."""
    import torchvision.datasets
    from PIL import Image

    images, alphabets, characters = [], [], []
    for background in (True, False):
        try:
            part = torchvision.datasets.Omniglot(str(root), background=background, download=download)
        except (RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(
                f"expected torchvision's Omniglot, or {ARCHIVE}, in {root}, but found none complete ({reason}); "
                f"{'check the network' if download else f'add --data-root {root} --download'}"
            ) from error
        for image, character in part:
            small = image.resize((SIZE, SIZE), Image.Resampling.BOX)
            images.append(255 - np.asarray(small, dtype=np.uint8))
            characters.append(f"{background}/{part._characters[character]}")
            alphabets.append(str(Path(characters[-1]).parent))
    numbers = [np.unique(names, return_inverse=True)[1] for names in (alphabets, characters)]
    return np.stack(images), numbers[0], numbers[1]
