"""The kinds of dataset that `nufed.simulate` takes say the same federation, whatever it is kept in."""

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from flwr_datasets.partitioner import NaturalIdPartitioner
from torch.utils.data import TensorDataset

import nufed
from nufed.library.tables import Columns, clients_of_table
from tests.library.federations import Site, sites

NEW = ["site-5"]
NAMES = ("no", "yes")


def frame():
    parts = [
        pd.DataFrame({"site": name, **{f"x{k}": inputs[:, k] for k in range(3)}, "ill": targets})
        for name, (inputs, targets) in sites().items()
    ]
    return pd.concat(parts, ignore_index=True)


def hugging_face(vector=True):
    rows = frame()
    columns = {"site": rows["site"].tolist(), "ill": rows["ill"].tolist()}
    inputs = rows[["x0", "x1", "x2"]].to_numpy()
    columns |= {"x": inputs.tolist()} if vector else {f"x{k}": inputs[:, k].tolist() for k in range(3)}
    return datasets.Dataset.from_dict(columns)


def partitioner():
    made = NaturalIdPartitioner("site")
    made.dataset = hugging_face()
    return made


COLUMNS = {"client_column": "site", "target_column": "ill"}
KINDS = {
    "tensors": (lambda: {name: tuple(map(torch.from_numpy, pair)) for name, pair in sites().items()}, {}),
    "tensor-datasets": (
        lambda: {name: TensorDataset(*map(torch.from_numpy, pair)) for name, pair in sites().items()},
        {},
    ),
    "datasets": (lambda: {name: Site(*pair) for name, pair in sites().items()}, {}),
    "frame": (frame, COLUMNS),
    "frame-some-columns": (lambda: frame().assign(note="text"), {**COLUMNS, "input_columns": ["x0", "x1", "x2"]}),
    "hugging-face": (hugging_face, COLUMNS),
    "hugging-face-columns": (lambda: hugging_face(vector=False), {**COLUMNS, "input_columns": ["x0", "x1", "x2"]}),
    "hugging-face-torch": (lambda: hugging_face().with_format("torch"), COLUMNS),
    "partitioner": (partitioner, {"input_columns": "x", "target_column": "ill"}),
    "frame-by-client": (
        lambda: {name: part.drop(columns="site") for name, part in frame().groupby("site")},
        {"target_column": "ill"},
    ),
}


def simulated(dataset, **options):
    return nufed.simulate(dataset, "linear", num_rounds=0, progress=False, **options)


@pytest.fixture(scope="module")
def expected():
    return simulated(sites(), new_clients=NEW)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_the_same_federation(kind, expected):
    """The source is named by its content, so that equal names are equal arrays, clients and groups."""
    make, options = KINDS[kind]

    run = simulated(make(), new_clients=NEW, **options)

    if kind != "hugging-face-torch":  # which has inputs in single precision
        assert run.config == expected.config
    assert run.curves().equals(expected.curves())


def test_another_value_is_another_name(expected):
    clients = sites()
    clients["site-3"][0][7, 1] += 1e-6

    assert simulated(clients, new_clients=NEW).config.data.source != expected.config.data.source
    assert simulated(sites(), new_clients=["site-4"]).config.data.source != expected.config.data.source


def test_texts_and_class_labels_are_classes_with_names(expected):
    texts = frame().assign(ill=lambda rows: np.array(NAMES)[rows["ill"]])
    labels = hugging_face().cast_column("ill", datasets.ClassLabel(names=list(NAMES)))

    runs = [simulated(dataset, new_clients=NEW, **COLUMNS) for dataset in (texts, labels)]

    assert runs[0].config == runs[1].config
    assert all(run.curves().equals(expected.curves()) for run in runs)


def test_several_columns_of_arrays_are_several_inputs_of_every_client():
    ids, marks = np.arange(24).reshape(8, 3), np.arange(16).reshape(8, 2)
    table = pd.DataFrame({"site": [*"abab"] * 2, "ids": list(ids), "marks": list(marks), "ill": [0, 0, 1, 1] * 2})

    clients, _ = clients_of_table(table, Columns("site", target="ill"))

    assert {name: pair[0].keys() for name, pair in clients.items()} == {key: {"ids", "marks"} for key in "ab"}
    for start, name in enumerate("ab"):
        np.testing.assert_array_equal(clients[name][0]["ids"], ids[start::2])
        np.testing.assert_array_equal(clients[name][0]["marks"], marks[start::2])


def test_images_of_hugging_face_are_pixels():
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, size=(12, 8, 8), dtype=np.uint8)
    rows = {"image": [Image.fromarray(each) for each in pixels], "writer": ["a", "b", "c"] * 4, "label": [0, 1] * 6}
    images = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    plain = {name: (pixels[k::3], np.array([0, 1] * 6)[k::3]) for k, name in enumerate("abc")}

    run = simulated(images, client_column="writer", target_column="label")

    assert run.config == simulated(plain).config


@pytest.mark.parametrize(
    ("dataset", "options", "kind", "said"),
    [
        (frame, {"target_column": "ill"}, nufed.ConfigError, "client_column is missing.*Columns: site, x0"),
        (frame, {"client_column": "site"}, nufed.ConfigError, "target_column is missing"),
        (frame, {**COLUMNS, "client_column": "sites"}, nufed.ConfigError, "Did you mean 'site'"),
        (frame, {**COLUMNS, "input_columns": "x"}, nufed.ConfigError, "input_columns='x' is no column"),
        (lambda: frame().assign(note="text"), COLUMNS, nufed.DataError, "column 'note', but it has texts"),
        (lambda: frame().assign(ill=None), COLUMNS, nufed.DataError, "fill in what is missing"),
        (lambda: frame().assign(x1=np.nan), COLUMNS, nufed.DataError, "NaN or infinite"),
        (frame, {**COLUMNS, "input_columns": []}, nufed.ConfigError, "input_columns is empty"),
        (frame, {**COLUMNS, "input_columns": ["x0", "ill"]}, nufed.ConfigError, "names 'ill', which .*the target"),
        (frame, {**COLUMNS, "client_column": ["site"]}, nufed.ConfigError, r"\['site'\] is no column. Did you mean"),
        (lambda: frame().rename(columns={"x1": "x0"}), COLUMNS, nufed.ConfigError, "'x0' is the name of 2 columns"),
        (lambda: frame().iloc[:0], COLUMNS, nufed.DataError, "expected a client in each row, but of 0 rows"),
        (lambda: frame().assign(site=lambda f: f["site"].where(f.index > 0)), COLUMNS, nufed.DataError, "1 have none"),
        (
            lambda: {"a": frame().drop(columns="site"), "b": frame()[["x0", "ill"]]},
            {"target_column": "ill"},
            nufed.DataError,
            "the columns of client 'a' in the table of client 'b', but it has no 'x1'",
        ),
        (partitioner, COLUMNS, nufed.ConfigError, "contradicts a partitioner"),
        (lambda: datasets.DatasetDict(train=hugging_face()), COLUMNS, nufed.DataError, r"dataset\['train'\]"),
        (lambda: {"a": Site([1, 2], [0, 1])}, {}, nufed.DataError, "client 'a'"),
    ],
)
def test_what_a_table_lacks_is_said(dataset, options, kind, said):
    with pytest.raises(kind, match=said):
        simulated(dataset(), **options)
