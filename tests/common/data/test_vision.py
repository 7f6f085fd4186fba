"""Claims about torchvision's data sets that need more than a stand-in's random pixels."""

import numpy as np
import pytest
import torch

from nufed.common.config import DataConfig
from nufed.common.data import load_federation
from nufed.common.errors import DataError
from nufed.common.settings import Settings
from tests.common.data.stand_ins import REAL_VISION, STAND_INS

VISION = ("mnist", "fashion-mnist", "emnist", "cifar10", "cifar100")

needs_mnist = pytest.mark.skipif(not (REAL_VISION / "MNIST").is_dir(), reason="no MNIST in NUFED_DATA_ROOT")
needs_cifar10 = pytest.mark.skipif(
    not (REAL_VISION / "cifar-10-batches-py").is_dir(), reason="no CIFAR-10 in NUFED_DATA_ROOT"
)


def load(config, settings):
    return load_federation(config, seed=0, dtype=torch.float32, settings=settings)


@pytest.mark.parametrize("source", VISION)
def test_without_a_folder_the_message_says_what_to_type(source):
    """A first-time user learns both flags from one message."""
    with pytest.raises(DataError, match=rf"data.source={source} .* add --data-root DIR --download"):
        load(DataConfig(source=source), Settings())


@pytest.mark.parametrize("source", VISION)
def test_missing_files_are_refused_with_folder_and_flags(source, tmp_path):
    """Nothing is downloaded unless asked for."""
    with pytest.raises(DataError, match=rf"in {tmp_path}, .* add --data-root {tmp_path} --download"):
        load(DataConfig(source=source), Settings(data_root=tmp_path))


def test_a_failed_download_is_told_with_the_folder(tmp_path, monkeypatch):
    """Without a network the message says so and offers to copy the files."""

    def refuse(*_args, **_options):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)

    with pytest.raises(DataError, match=rf"download mnist to {tmp_path}, but that failed .*check the network"):
        load(DataConfig(source="mnist"), Settings(data_root=tmp_path, download=True))


def test_letters_of_emnist_stand_upright(tmp_path, monkeypatch):
    """Rows and columns of the file change places."""
    stand_in = STAND_INS["emnist"](tmp_path, monkeypatch)
    raw = np.fromfile(tmp_path / "EMNIST/raw/emnist-balanced-train-images-idx3-ubyte", np.uint8, offset=16)
    upright = {image.T.tobytes() for image in raw.reshape(-1, 28, 28)}

    client = load(stand_in.config, stand_in.settings).clients[0]

    pixels = (client.support.inputs * 255).round().to(torch.uint8)
    assert all(image.numpy().tobytes() in upright for image in pixels)


def test_per_fedavg_deals_the_sources_own_test_part(tmp_path, monkeypatch):
    """Test splits hold test images of the client's classes; the rest of the training rows is support and validation."""
    stand_in = STAND_INS["mnist"](tmp_path, monkeypatch)
    raw = np.fromfile(tmp_path / "MNIST/raw/t10k-images-idx3-ubyte", np.uint8, offset=16)
    test_images = {image.tobytes() for image in raw.reshape(-1, 784)}
    config = stand_in.config.model_copy(update={"partition": "per-fedavg", "num_new_clients": 0, "num_clients": 4})

    federation = load(config, stand_in.settings)

    for client in federation.clients:
        pixels = (client.test.inputs * 255).round().to(torch.uint8)
        assert all(image.numpy().tobytes() in test_images for image in pixels)
        assert set(client.test.targets.tolist()) == set(
            torch.cat([client.support.targets, client.validation.targets]).tolist()
        )


@needs_mnist
@pytest.mark.parametrize(("num_new", "size", "test_size"), [(0, 196, 32), (24, 140, 22)])
def test_mnist_fits_the_papers_split(num_new, size, test_size):
    """5a training and 5a' test images at a client of the first kind, 2.5a and 2.5a' at one of the second."""
    config = DataConfig(source="mnist", partition="per-fedavg", num_clients=50, num_new_clients=num_new)

    federation = load(config, Settings(data_root=REAL_VISION))

    first, second = federation.clients[0], federation.clients[49]
    assert len(first.support) + len(first.validation) == 5 * size
    assert len(second.support) + len(second.validation) == 2.5 * size
    assert (len(first.test), len(second.test)) == (5 * test_size, 2.5 * test_size)
    assert set(first.test.targets.tolist()) == {0, 1, 2, 3, 4}


@needs_cifar10
def test_cifar10_fits_the_papers_split():
    """Images are [3, 32, 32] in [0, 1], 340 training and 70 test images at a client of the first kind."""
    config = DataConfig(source="cifar10", partition="per-fedavg", num_clients=50, num_new_clients=0)

    client = load(config, Settings(data_root=REAL_VISION)).clients[0]

    assert client.support.inputs.shape[1:] == (3, 32, 32)
    assert len(client.support) + len(client.validation) == 340
    assert len(client.test) == 70
    # sky above ground: blue outweighs red in the upper rows of airplanes
    planes = client.support.inputs[client.support.targets == 0]
    assert planes[:, 2, :8].mean() > planes[:, 0, :8].mean()
