"""Claims about NumPy archives of the user's own."""

import io
import zipfile

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


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([10, 1_000_000], "2 different numbers up to 1000000 would make 1000001 classes; write 0 to 1 in their place"),
        ([0, 2**31], "1 are above 2147483647|15 are above 2147483647"),
        ([0, 2**63 - 1], "15 are above 2147483647"),
        ([250, 401], "402 classes; write 0 to 1"),
        ([-1, 0], "15 values below 0"),
    ],
)
def test_class_numbers_that_are_codes_are_refused(tmp_path, labels, message):
    """They would become as many classes, and as many outputs of the model; neither load nor describe makes them."""
    config = write(tmp_path, x=X, y=np.array(labels * 15), user=USERS)

    for read in (load, lambda config: describe_task(config, Settings())):
        with pytest.raises(DataError, match=message):
            read(config)


def test_unsigned_labels_do_not_become_negative(tmp_path):
    """2**64 - 1 is -1 in 64 signed bits."""
    with pytest.raises(DataError, match="15 are above"):
        load(write(tmp_path, x=X, y=np.array([0, 2**64 - 1] * 15, np.uint64), user=USERS))


def test_codes_are_classes_where_every_class_has_a_name(tmp_path):
    """Their number is then that of the names."""
    federation = load(
        write(tmp_path, x=X, y=Y * 150, user=USERS, class_names=np.array([f"c{index}" for index in range(151)]))
    )

    assert federation.task.num_outputs == 151


def test_classes_without_examples_and_whole_floats_are_noted(tmp_path):
    """Neither is a fault, both are often a slip."""
    made = []
    for name, targets in {"gaps": Y * 3, "floats": Y * 1.0, "values": Y * 0.5}.items():
        np.savez(tmp_path / f"{name}.npz", x=X, y=targets, user=USERS)
        made.append(load(config_for(tmp_path / f"{name}.npz")))

    gaps, floats, values = made
    assert "of the 4 classes of npz:" in gaps.notes[0]
    assert "whole floats, taken as values to predict" in floats.notes[0]
    assert not values.notes


@pytest.mark.parametrize("dtype", [">f4", ">f8", "g", "f2", ">i8", ">u2", "u8", "?", "<i1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_every_type_are_read(tmp_path, dtype, order):
    """Whatever machine wrote them: in either byte order, longer or shorter, by columns or by rows."""
    x = np.array(np.abs(np.rint(features(30))), dtype=np.dtype(dtype), order=order)
    y = (np.arange(30) % 2).astype(np.dtype(dtype if np.dtype(dtype).kind in "iub" else ">i2"))

    federation = load(write(tmp_path, x=x, y=y, user=USERS.astype(">i4")))

    client = next(c for c in federation.clients if c.client_id == "0")
    rows = torch.cat([client.support.inputs, client.validation.inputs, client.test.inputs])
    assert sorted(rows.tolist()) == sorted(x[:10].astype(float).tolist())
    assert federation.task.num_outputs == 2


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((30, 3), complex), "expected x in .* to be numbers, but got complex128"),
        (np.zeros((30, 3), "M8[s]"), "expected x in .* to be numbers"),
        (np.zeros(30, [("a", "f4"), ("b", "f4")]), "'x' in .* plain array"),
        (np.zeros((30, 3), "V4"), "'x' in .* plain array"),
        (np.full((30, 3), b"a"), "expected x in .* to be numbers"),
        (np.array(1.0), r"x in .* of shape \[N, ...\]"),
        (np.zeros((30, 0)), "to have values in each example"),
        (np.full((30, 3), np.longdouble("1e400")), r"NaN or infinite values: feature 0 \(30\)"),
    ],
)
def test_inputs_that_are_no_numbers_are_refused(tmp_path, array, message):
    """With what they are."""
    with pytest.raises(DataError, match=message):
        load(write(tmp_path, x=array, y=Y, user=USERS))


@pytest.mark.parametrize("key", ["class_names", "feature_names", "user_names"])
@pytest.mark.parametrize("value", [np.array("one"), np.array([["a"], ["b"]]), np.array([0.5, 1.5])])
def test_names_are_a_list_of_text(tmp_path, key, value):
    """A single text, a table or floats are none."""
    with pytest.raises(DataError, match=f"expected {key} in .* to be names"):
        load(write(tmp_path, **{"x": X, "y": Y, "user": USERS, key: value}))


def archive_of(path, members, **how):
    """Write an archive of these bytes and return a configuration for it."""
    with zipfile.ZipFile(path / "made.npz", "w", **how) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return config_for(path / "made.npz")


def npy(array, lie=None):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue().replace(*lie) if lie else stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        npy(X, (b"(30, 3), ", b"(30, 4), ")),
        npy(X, (b"(30, 3), ", b"(-1, 3), ")),
        npy(X, (b"(30, 3), }          ", b"(99999999999, 999), }")),
        npy(X, (b"'<f8'", b"'|O' ")),
        npy(X, (b"{'descr'", b"{'descr[")),
        npy(X)[:200],
        npy(X)[:9],
        b"",
        b"\x93NUMPY\x07\x00" + npy(X)[8:],
    ],
)
def test_headers_that_lie_and_arrays_that_are_cut_are_refused(tmp_path, content):
    """Before memory is asked for what they announce; the server, which reads the header alone, refuses them too."""
    config = archive_of(tmp_path, {"x": content, "y": npy(Y), "user": npy(USERS)})

    for read in (load, lambda config: describe_task(config, Settings())):
        with pytest.raises(DataError, match=r"'x' in .* plain array, but it cannot be read"):
            read(config)


def test_a_damaged_archive_is_refused(tmp_path):
    """One byte is enough: zip has check sums."""
    config = write(tmp_path, x=X, y=Y, user=USERS)
    content = bytearray((tmp_path / "made.npz").read_bytes())
    for position in (200, len(content) // 2):
        damaged = content.copy()
        damaged[position] ^= 255
        (tmp_path / "made.npz").write_bytes(damaged)

        with pytest.raises(DataError, match="cannot be read"):
            load(config)

    (tmp_path / "made.npz").write_bytes(content[:-30])
    with pytest.raises(DataError, match="is none; write it with"):
        load(config)


def test_an_archive_made_to_fill_the_memory_is_refused(tmp_path):
    """A gigabyte of zeros is a megabyte of file."""
    with zipfile.ZipFile(tmp_path / "made.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        with file.open("x.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(
                member, {"descr": "<f8", "fortran_order": False, "shape": (2**15, 2**10)}
            )
            for _ in range(16):
                member.write(bytes(2**24))
        file.writestr("y.npy", npy(np.zeros(2**15, np.int64)))

    with pytest.raises(DataError, match=r"arrays of about the size of .* would become \d{9}; .* numpy.savez"):
        load(config_for(tmp_path / "made.npz"))


def test_an_array_that_stands_twice_is_refused(tmp_path):
    """Zip allows it, and which one counts is anybody's guess."""
    write(tmp_path, x=X, y=Y, user=USERS)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "made.npz", "a") as file:
        file.writestr("y.npy", npy(1 - Y))

    with pytest.raises(DataError, match="one stands twice"):
        load(config_for(tmp_path / "made.npz"))


def test_numbers_beyond_the_runs_precision_are_refused_by_feature(tmp_path):
    """1e39 is finite in the file and infinite in float32."""
    x = features(30)
    x[3:6, 1] = 1e39

    config = write(tmp_path, x=x, y=Y, user=USERS)

    with pytest.raises(DataError, match=r"float32 can hold.*: input 2 \(\d\); .*model.dtype=float64") as caught:
        load_federation(config, seed=0, dtype=torch.float32, settings=Settings())
    assert "e+39" not in str(caught.value)
    load(config)


def test_users_that_take_no_part_are_noted_with_their_number(tmp_path):
    """Whoever has 100 sites and asks for 4 should know what became of the others."""
    users = np.repeat(np.arange(10), 3)

    federation = load(write(tmp_path, x=X, y=Y, user=users))

    [note] = federation.notes
    assert "3 of 10 users of npz:" in note
    assert "7 take no part (data.num-clients=2, data.num-new-clients=1)" in note


def test_parts_that_the_partition_leaves_out_are_noted(tmp_path):
    """A test part of one's own is used by users only; whoever deals the examples otherwise should know."""
    np.savez(tmp_path / "parts.npz", x_train=X, y_train=Y, x_test=X[:9], y_test=Y[:9])

    federation = load(config_for(tmp_path / "parts.npz", partition="iid"))

    assert federation.notes == (
        f"9 examples of x_test in npz:{tmp_path}/parts.npz take no part: data.partition=iid deals the others",
    )


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
