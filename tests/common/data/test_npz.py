"""Claims about NumPy archives of the user's own."""

import numpy as np
import pytest
import torch

from nufed.common.config import DataConfig
from nufed.common.data import describe_task, load_federation
from nufed.common.errors import DataError
from nufed.common.rng import numpy_generator
from nufed.common.settings import Settings
from tests.common.data.stand_ins import REAL_DATA


def write(path, **arrays):
    """Return a configuration for an archive with these arrays: 2 + 1 clients by user unless changed."""
    np.savez(path / "made.npz", **arrays)
    return config_for(path / "made.npz")


def config_for(path, partition="by-user", num_clients=2, num_new_clients=1):
    return DataConfig(
        source=f"npz:{path}", partition=partition, num_clients=num_clients, num_new_clients=num_new_clients
    )


def load(config):
    return load_federation(config, seed=0, dtype=torch.float64, settings=Settings())


def features(num_rows, width=3):
    return numpy_generator(0, "test", "npz").standard_normal((num_rows, width))


USERS = np.repeat([0, 1, 2], 10)


def test_numbers_are_taken_as_they_are(tmp_path):
    """Tabular inputs are not scaled, whole-number targets are classes, unnamed users are numbered."""
    x = features(30)

    federation = load(write(tmp_path, x=x, y=np.arange(30) % 2, user=USERS))

    rows = torch.cat([torch.cat([c.support.inputs, c.validation.inputs, c.test.inputs]) for c in federation.clients])
    assert np.array_equal(np.sort(rows.numpy(), 0), np.sort(x, 0))
    assert federation.task.kind == "classification"
    assert federation.task.num_outputs == 2
    assert sorted(c.client_id for c in federation.clients) == ["0", "1", "2"]


@pytest.mark.parametrize("targets", [np.linspace(0, 1, 30), np.linspace(0, 1, 60).reshape(30, 2)])
def test_floats_are_values_to_predict(tmp_path, targets):
    """A vector of floats becomes [N, 1]; a matrix stays."""
    federation = load(write(tmp_path, x=features(30), y=targets, user=USERS))

    assert federation.task.kind == "regression"
    assert federation.clients[0].support.targets.shape[1:] == (federation.task.num_outputs,)
    assert federation.task.num_outputs == (targets.shape[1] if targets.ndim == 2 else 1)


@pytest.mark.parametrize(
    ("shape", "expected"), [((5, 7), (1, 5, 7)), ((5, 7, 3), (3, 5, 7)), ((5, 7, 1), (1, 5, 7)), ((3, 5, 7), (3, 5, 7))]
)
def test_bytes_in_two_or_more_dimensions_are_images(tmp_path, shape, expected):
    """Grey and color images become [C, H, W] in [0, 1], pixel by pixel."""
    x = numpy_generator(0, "test", "pixels").integers(0, 256, (30, *shape), dtype=np.uint8)

    federation = load(write(tmp_path, x=x, y=np.arange(30) % 2, user=USERS))

    client = next(c for c in federation.clients if c.client_id == "0")
    got = torch.cat([client.support.inputs, client.validation.inputs, client.test.inputs]).numpy()
    ordered = x[:10, None] if len(shape) == 2 else (x[:10] if shape == (3, 5, 7) else np.moveaxis(x[:10], 3, 1))
    assert federation.task.input_shape == expected
    assert sorted(map(bytes, np.rint(got * 255).astype(np.uint8))) == sorted(map(bytes, np.ascontiguousarray(ordered)))


def test_three_parts_keep_their_roles(tmp_path):
    """Participating clients are judged on the file's test part; new clients are its new users."""
    config = write(
        tmp_path,
        x_train=features(20),
        y_train=np.arange(20) % 3,
        user_train=np.array(["ann", "ben"] * 10),
        x_test=features(6) + 100,
        y_test=np.zeros(6, int),
        user_test=np.array(["ann", "ben"] * 3),
        x_new=features(8) + 200,
        y_new=np.ones(8, int),
        user_new=np.array(["cat"] * 8),
        class_names=np.array(["a", "b", "c"]),
    )

    federation = load(config)

    assert federation.task.class_names == ("a", "b", "c")
    assert [c.client_id for c in federation.clients][2] == "cat"
    assert {c.client_id for c in federation.clients[:2]} == {"ann", "ben"}
    assert all(c.test.inputs.min() > 50 and len(c.test) == 3 for c in federation.clients[:2])
    assert all(c.support.inputs.max() < 50 for c in federation.clients[:2])
    assert federation.clients[2].support.inputs.min() > 150


def test_missing_values_are_refused_by_feature_and_count(tmp_path):
    """NaN never becomes a number silently: the message names the features, their counts and what to do."""
    x = features(30)
    x[:4, 1] = np.nan
    x[7, 2] = np.inf

    with pytest.raises(DataError, match=r"of 30 examples .* chol \(4\), ca \(1\); fill them in, or leave"):
        load(write(tmp_path, x=x, y=np.arange(30) % 2, user=USERS, feature_names=np.array(["age", "chol", "ca"])))


X, Y = features(30), np.arange(30) % 2


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"inputs": X}, "expected the arrays x and y, or x_train and y_train, .* found inputs; rename"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "x_test and y_test .* only x_test"),
        ({"x": X, "y": Y[:29], "user": USERS}, r"as many rows in y .* 29 and 30"),
        ({"x": X, "y": Y, "user": USERS[:29]}, r"as many rows in user .* 29 and 30"),
        ({"x": X, "y": Y - 1, "user": USERS}, "class numbers from 0.* with 15 values below 0"),
        ({"x": X, "y": np.stack([Y, Y], 1), "user": USERS}, r"class numbers from 0, of shape \[N\].*\[30, 2\]"),
        ({"x": X, "y": np.where(Y, np.nan, 1.0), "user": USERS}, "15 values that are NaN or infinite"),
        ({"x": X[:, 0], "y": Y, "user": USERS}, r"shape \[N, ...\]"),
        ({"x": X.astype(str), "y": Y, "user": USERS}, "expected x in .* to be numbers"),
        ({"x": X, "y": Y, "user": USERS, "class_names": np.array(["one"])}, "below 1, .* some are beyond"),
        ({"x": X, "y": Y, "user": USERS + 5, "user_names": np.array(["a", "b"])}, "2 names from 0, .* from 5 to 7"),
        ({"x": X, "y": Y, "user": USERS / 2}, "user in .* names or whole numbers.*float64"),
        ({"x": X, "y": np.array([{}] * 30), "user": USERS}, "'y' in .* plain array.*not objects"),
        (
            {"x_train": X, "y_train": Y, "user_train": USERS, "x_test": X, "y_test": Y},
            "user_train, user_test in .* user_test is missing",
        ),
        ({"x_train": X, "y_train": Y, "x_new": X, "y_new": Y}, "user_train, user_new are missing"),
        (
            {"x_train": X, "y_train": Y, "x_test": X[:, :2], "y_test": Y},
            r"x_test .* of shape \[3\], .* but got \[2\]",
        ),
        ({"x_train": X, "y_train": Y, "x_test": X, "y_test": Y * 0.5}, "y_train, y_test .* of one kind"),
    ],
)
def test_a_malformed_archive_is_refused_with_array_and_reason(tmp_path, arrays, message):
    """Each message names the array, what was expected and what came."""
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, **arrays))


def test_a_missing_file_is_named_with_its_whole_path(tmp_path):
    """The path shown is absolute, because processes may start in different folders."""
    with pytest.raises(DataError, match=f"archive at {tmp_path}/nothing.npz, but there is no such file"):
        load(config_for(tmp_path / "nothing.npz"))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    """Some other file gives a sentence, not a pickle error."""
    (tmp_path / "text.npz").write_text("x,y\n1,2\n")

    with pytest.raises(DataError, match=r"text.npz is none; write it with numpy.savez_compressed"):
        load(config_for(tmp_path / "text.npz"))


def test_the_description_does_not_read_the_inputs(tmp_path):
    """A server can build the model for inputs it could not hold, or that only a client may check."""
    config = write(tmp_path, x=np.full((30, 4), np.nan), y=np.arange(30) % 5, user=USERS)

    task = describe_task(config, Settings())

    assert (task.kind, task.input_shape, task.num_outputs) == ("classification", (4,), 5)


@pytest.mark.skipif(not (REAL_DATA / "femnist.npz").is_file(), reason="no femnist.npz in NUFED_DATA_ROOT")
def test_writers_of_femnist_are_clients_with_their_own_test_images():
    """105 writers take part, judged on the file's 1685 test images; other writers are new."""
    config = config_for(REAL_DATA / "femnist.npz", num_clients=105, num_new_clients=70)

    federation = load(config)

    own, new = federation.clients[:105], federation.clients[105:]
    assert sum(len(c.test) for c in own) == 1685
    assert sum(len(c.support) + len(c.validation) for c in own) == 14708
    assert {c.client_id for c in own}.isdisjoint(c.client_id for c in new)
    assert federation.task.input_shape == (1, 28, 28)
    assert federation.task.num_outputs == 62
    assert "'f0822_30', which has 1 examples" in federation.notes[0]


@pytest.mark.skipif(not (REAL_DATA / "heart_disease.npz").is_file(), reason="no heart_disease.npz in NUFED_DATA_ROOT")
def test_hospitals_with_missing_values_are_refused():
    """The heart disease file lacks values in ten of its features."""
    with pytest.raises(DataError, match=r"chol \(23\).*slope \(212\), ca \(428\), thal \(349\)"):
        load(config_for(REAL_DATA / "heart_disease.npz", num_clients=4, num_new_clients=0))
