"""Claims about the symbols that each client of `omniglot` has of its own."""

import numpy as np
import pytest
import torch

from nufed.common.data import load_federation
from nufed.common.errors import DataError
from nufed.common.settings import Settings
from tests.common.data.stand_ins import REAL_DATA, config_for

ALPHABETS, SYMBOLS, DRAWN = 8, 6, 10


def image_of(alphabet: int, symbol: int, person: int) -> np.ndarray:
    """Return an image that tells whose it is: three numbers in its first row."""
    image = np.zeros((28, 28), np.uint8)
    image[0, :3] = 10 + alphabet, 10 + symbol, 10 + person
    return image


@pytest.fixture
def root(tmp_path):
    numbers = [(a, c, p) for a in range(ALPHABETS) for c in range(SYMBOLS) for p in range(DRAWN)]
    np.savez(
        tmp_path / "omniglot.npz",
        x=np.stack([image_of(*each) for each in numbers]),
        alphabet=np.array([a for a, _, _ in numbers], np.uint8),
        character=np.array([c for _, c, _ in numbers], np.uint8),
    )
    return tmp_path


def load(root, seed=0, **changes):
    config = config_for("omniglot", classes_per_client=3, **changes)
    return load_federation(config, seed=seed, dtype=torch.float32, settings=Settings(data_root=root))


def held(client):
    """Return {label: {(alphabet, symbol)}} of all examples of a client."""
    found: dict[int, set[tuple[int, int]]] = {}
    for part in (client.support, client.validation, client.test):
        numbers = (part.inputs[:, 0, 0, :2] * 255).round().to(int).tolist()
        for label, (alphabet, symbol) in zip(part.targets.tolist(), numbers, strict=True):
            found.setdefault(label, set()).add((alphabet, symbol))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_each_client_has_symbols_of_one_alphabet_that_nobody_else_has(root, seed):
    """A label is one symbol of a client; new clients' alphabets are at no participating client."""
    clients = load(root, seed).clients
    symbols = [held(client) for client in clients]

    assert all(sorted(own) == [0, 1, 2] and all(len(each) == 1 for each in own.values()) for own in symbols)
    owned = [symbol for own in symbols for each in own.values() for symbol in each]
    assert len(set(owned)) == len(owned)
    alphabets = {"participating": set(), "new": set()}
    for client, own in zip(clients, symbols, strict=True):
        of_client = {alphabet for each in own.values() for alphabet, _ in each}
        assert len(of_client) == 1
        alphabets[client.group] |= of_client
    assert not alphabets["participating"] & alphabets["new"]


def test_the_folder_above_serves_as_well_and_the_seed_decides(root):
    """An archive beside torchvision's folders is found; another seed deals other symbols."""
    (root / "torchvision").mkdir()

    here, above, other = load(root), load(root / "torchvision"), load(root, seed=1)

    assert torch.equal(here.clients[0].support.inputs, above.clients[0].support.inputs)
    assert [held(client) for client in here.clients] != [held(client) for client in other.clients]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_clients": 14}, "symbols for 12 participating clients of 3 symbols each .* 14 are asked for; lower"),
        ({"num_new_clients": 20}, "symbols for 16 new clients|symbols for 0 participating"),
        ({"classes_per_client": 7}, "symbols for 0 participating clients of 7"),
        ({"classes_per_client": 1}, "two symbols or more"),
    ],
)
def test_more_than_there_is_is_refused_with_the_numbers(root, changes, message):
    """Nobody gets fewer symbols than asked for, and none twice."""
    with pytest.raises(DataError, match=message):
        load_federation(
            config_for("omniglot", **{"classes_per_client": 3, **changes}),
            seed=0,
            dtype=torch.float32,
            settings=Settings(data_root=root),
        )


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("x", np.zeros((480, 28, 28)), "8-bit images of 28 x 28, but got float64"),
        ("x", np.zeros((480, 14, 28), np.uint8), r"of shape \[480, 14, 28\]"),
        ("alphabet", np.zeros(3, np.uint8), "480 whole numbers"),
        ("character", np.zeros(480), "480 whole numbers, one for each image, but got float64"),
        ("character", None, "lacks character"),
    ],
)
def test_a_malformed_archive_is_refused_by_the_array(root, name, array, message):
    """The message names the array and what it is instead."""
    with np.load(root / "omniglot.npz") as file:
        arrays = {**file, name: array}
    np.savez(root / "omniglot.npz", **{key: value for key, value in arrays.items() if value is not None})

    with pytest.raises(DataError, match=message):
        load(root)


def test_without_files_the_message_says_what_to_type(tmp_path):
    """As for torchvision's other data sets."""
    with pytest.raises(DataError, match=r"omniglot.npz, but none was given; add --data-root DIR --download"):
        load_federation(config_for("omniglot"), seed=0, dtype=torch.float32, settings=Settings())
    with pytest.raises(DataError, match=rf"add --data-root {tmp_path} --download"):
        load(tmp_path)


@pytest.mark.skipif(not (REAL_DATA / "omniglot.npz").is_file(), reason="no omniglot.npz in NUFED_DATA_ROOT")
def test_all_of_omniglot_serves_three_hundred_clients():
    """1623 symbols of 50 alphabets make 20 images of each symbol, and clients of five."""
    config = config_for("omniglot", classes_per_client=5, num_clients=240, num_new_clients=40)

    clients = load_federation(config, seed=0, dtype=torch.float32, settings=Settings(data_root=REAL_DATA)).clients

    assert len(clients) == 280
    assert all(len(c.support) + len(c.validation) + len(c.test) == 100 for c in clients)
