"""A client's table becomes what the run expects, or is refused by column and row."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from nufed.common.config import RunConfig
from nufed.common.data.private.found_rows import load_rows
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.private.task import declared_scaling
from nufed.common.errors import ConfigError, DataError
from nufed.common.settings import Settings

RUN = {
    "data.source": "private",
    "data.feature-names": "age,sex,chol",
    "data.categories": "sex:f|m",
    "data.class-names": "no,yes",
    "data.validation-fraction": 0.0,
}
NUM_ROWS = 12


@pytest.fixture
def frame():
    """Column `extra` is no input; whole numbers are written as 3 or 3.0."""
    return pd.DataFrame(
        {
            "extra": [f"row-{index}" for index in range(NUM_ROWS)],
            "chol": [200.5 + index for index in range(NUM_ROWS)],
            "sex": ["f", "m"] * (NUM_ROWS // 2),
            "age": [f"{40 + index}.0" for index in range(NUM_ROWS)],
            "disease": ["no", "yes", "yes"] * (NUM_ROWS // 3),
        }
    ).astype({"extra": str})


def config(**changes):
    return RunConfig().updated({**RUN, **{f"data.{key.replace('_', '-')}": value for key, value in changes.items()}})


def write(frame, tmp_path, **how):
    path = tmp_path / "table.csv"
    frame.to_csv(path, index=False, **how)
    return path


def load(path, options="label=disease", run=None, name="site-a"):
    return load_private(Membership(f"csv:{path}?{options}", name), run or config(), Settings())


def everything(data):
    """All examples as rows (inputs…, target), in a fixed order."""
    parts = [part for part in (data.support, data.validation, data.test) if len(part)]
    rows = torch.cat([torch.cat([p.inputs.double(), p.targets.double().reshape(len(p), -1)], 1) for p in parts])
    return np.array(sorted(rows.tolist()))


def test_columns_are_taken_by_name_in_the_runs_order(frame, tmp_path):
    """The file's order does not matter, a category becomes one input for each of its values."""
    client = load(write(frame, tmp_path))

    sex = np.array([[1, 0], [0, 1]] * (NUM_ROWS // 2))
    expected = np.column_stack(
        [40 + np.arange(NUM_ROWS), sex, 200.5 + np.arange(NUM_ROWS), [0, 1, 1] * (NUM_ROWS // 3)]
    )
    assert np.array_equal(everything(client.data), expected)
    assert client.task.input_shape == (4,)
    assert client.data.test.targets.dtype == torch.int64


def test_parquet_gives_what_csv_gives(frame, tmp_path):
    """Types of columns do not change what they hold."""
    pytest.importorskip("pyarrow")
    frame.assign(age=frame["age"].astype(float), chol=frame["chol"].astype("float32")).to_parquet(
        tmp_path / "t.parquet"
    )

    client = load_private(Membership(f"parquet:{tmp_path}/t.parquet?label=disease", "site-a"), config(), Settings())

    again = load(write(frame, tmp_path))
    assert np.array_equal(everything(client.data), everything(again.data))
    assert torch.equal(client.data.test.inputs, again.data.test.inputs)


def test_the_split_depends_on_seed_and_name_alone(frame, tmp_path):
    """A client that comes back holds the same test split."""
    path = write(frame, tmp_path)

    same, again, other = load(path), load(path), load(path, name="site-b")
    reseeded = load(path, run=config().updated({"seed": 1}))

    assert torch.equal(same.data.test.inputs, again.data.test.inputs)
    assert 1 <= len(same.data.test) <= 6
    assert not torch.equal(same.data.test.inputs, other.data.test.inputs)
    assert not torch.equal(same.data.test.inputs, reseeded.data.test.inputs)


def test_a_run_that_names_no_columns_takes_all_but_label_and_ignored(frame, tmp_path):
    """In the file's order; the client says what is categorical."""
    run = config(feature_names="", categories="", input_shape="4")

    client = load(write(frame, tmp_path), "label=disease&ignore=extra&categories=sex:f|m", run)

    assert everything(client.data)[0].tolist() == [200.5, 1, 0, 40, 0]


def test_labels_may_be_numbered(frame, tmp_path):
    """Where the file has 0 and 1 for the run's no and yes."""
    numbered = frame.assign(disease=frame["disease"].map({"no": 0, "yes": 1}))

    client = load(write(numbered, tmp_path), "label=disease&labels=numbers")

    assert np.array_equal(everything(client.data), everything(load(write(frame, tmp_path)).data))


def test_values_to_predict_are_taken_from_as_many_columns_as_named(frame, tmp_path):
    """Regression on two values at once."""
    run = config(
        task="regression", num_outputs=2, class_names="", feature_names="age", categories="", target_scale="none"
    )

    client = load(write(frame.assign(other=frame["chol"] * 2), tmp_path), "label=chol,other", run)

    assert torch.equal(client.data.test.targets[:, 1], client.data.test.targets[:, 0] * 2)
    assert client.data.test.targets.dtype == torch.float32


def test_separators_and_spellings_of_missing_values_can_be_named(frame, tmp_path, caplog):
    """As in the heart disease files of the UCI repository."""
    path = write(frame.assign(age=["?", *frame["age"][1:]]), tmp_path, sep=";")

    client = load(path, "label=disease&sep=;&na=?&missing=drop")

    assert len(everything(client.data)) == NUM_ROWS - 1
    assert "leaves out 1 of 12 rows" in caplog.text


def test_an_empty_cell_is_refused_with_columns_and_counts(frame, tmp_path):
    """Nothing is filled in unless it is asked for."""
    spoiled = frame.assign(age=[None, None, *frame["age"][2:]], sex=["m", None, *frame["sex"][2:]])

    with pytest.raises(
        DataError, match=r"client 'site-a': .*of 12 rows .*: column 'age' \(2\), column 'sex' \(1\);.*missing="
    ):
        load(write(spoiled, tmp_path))


@pytest.mark.parametrize(
    ("missing", "expected_age", "expected_sex"),
    [("mean", None, None), ("median", None, None), ("zero", 0.0, [0.0, 0.0]), ("run", 54.0, [0.0, 0.0])],
)
def test_empty_cells_are_filled_from_the_support_split_alone(frame, tmp_path, missing, expected_age, expected_sex):
    """A mean over the test split would leak it into training."""
    run = config(feature_means="54,246", feature_scales="9,52")
    path = write(frame.assign(age=[None, *frame["age"][1:]], sex=[None, *frame["sex"][1:]]), tmp_path)

    client = load(path, f"label=disease&scale=none&missing={missing}", run)

    known = client.data.support.inputs[client.data.support.inputs[:, 3] != 200.5].double().numpy()
    if missing in ("mean", "median"):
        expected_age = {"mean": np.mean, "median": np.median}[missing](known[:, 0])
        shares = known[:, 1:3].mean(0)
        expected_sex = shares if missing == "mean" else np.eye(2)[shares.argmax()]
    filled = everything(client.data)
    [row] = filled[filled[:, 3] == 200.5]
    assert row[0] == pytest.approx(expected_age)
    assert row[1:3] == pytest.approx(expected_sex)
    assert len(known) < NUM_ROWS - 1


def test_local_scaling_is_of_the_support_split(frame, tmp_path):
    """Support has mean 0 and deviation 1; the test split is moved by the same numbers; categories are not scaled."""
    client = load(write(frame, tmp_path), "label=disease&scale=local")

    numbers = client.data.support.inputs[:, [0, 3]].double()
    assert torch.allclose(numbers.mean(0), torch.zeros(2, dtype=torch.double), atol=1e-6)
    assert torch.allclose(numbers.std(0, correction=0), torch.ones(2, dtype=torch.double), atol=1e-6)
    assert set(client.data.support.inputs[:, 1].tolist()) == {0.0, 1.0}
    plain = load(write(frame, tmp_path)).data.test.inputs.double().numpy()
    assert np.allclose(client.preparation.apply(plain), client.data.test.inputs.numpy(), atol=1e-6)


def test_the_runs_scaling_is_used_where_it_gives_one(frame, tmp_path):
    """No client statistic is needed then."""
    run = config(feature_means="54,246", feature_scales="9,52")

    client = load(write(frame, tmp_path), run=run)

    assert everything(client.data)[0, :4] == pytest.approx([(40 - 54) / 9, 1, 0, (200.5 - 246) / 52])


def test_a_column_that_never_varies_is_only_shifted(frame, tmp_path):
    """Nothing is divided by 0."""
    client = load(write(frame.assign(age=50), tmp_path), "label=disease&scale=local")

    assert set(client.data.support.inputs[:, 0].tolist()) == {0.0}


@pytest.mark.parametrize(
    "values",
    [
        [0.1] * NUM_ROWS,
        [0.1 + 0.2, 0.3] * (NUM_ROWS // 2),
        [1e9, 1e9 + 1e-6] * (NUM_ROWS // 2),
        [-1e300] * NUM_ROWS,
        [0.0] * NUM_ROWS,
    ],
)
def test_a_column_is_not_divided_by_the_rounding_of_its_values(frame, tmp_path, values):
    """The deviation of 0.1, 0.1, 0.1 is 1.4e-17, and the next patient's 0.2 would be 7e15."""
    run = config().updated({"model.dtype": "float64"})

    client = load(write(frame.assign(age=values), tmp_path), "label=disease&scale=local", run)

    assert client.preparation.scale[0] == 1.0
    assert float(client.data.support.inputs[:, 0].abs().max()) <= 1e-7 * max(1.0, abs(values[0]))
    nearby = np.array([[values[0] + 0.1, 1, 0, 200.5]])
    assert abs(client.preparation.apply(nearby)[0, 0]) <= 0.11


def test_columns_of_huge_numbers_are_scaled_as_others(frame, tmp_path):
    """Their squares are infinite in float64; a deviation that is would make every value 0."""
    values = [1e200, -1e200] * (NUM_ROWS // 2)

    client = load(write(frame.assign(age=values), tmp_path), "label=disease&scale=local&missing=mean")

    assert float(client.data.support.inputs[:, 0].double().std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_what_varies_little_beside_its_size_is_scaled(frame, tmp_path):
    """Minutes of one day as seconds since 1970."""
    seconds = [1.7e9 + 60.0 * index * 60 for index in range(NUM_ROWS)]

    client = load(write(frame.assign(age=seconds), tmp_path), "label=disease&scale=local")

    assert client.preparation.scale[0] > 1000
    assert float(client.data.support.inputs[:, 0].double().std(correction=0)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scales", ["0,52", "1e-17,52", "-1,52", "9,1e-400"])
def test_scales_of_the_run_that_are_none_are_refused(scales):
    """0, and what is 0 but for rounding."""
    with pytest.raises(ConfigError, match="Write 1 for a column that never varies"):
        declared_scaling(config(feature_means="54,246", feature_scales=scales).data)


def test_numbers_beyond_the_runs_precision_are_refused_by_column(frame, tmp_path):
    """1e39 is finite in the file and infinite in float32; so is what a division makes of 1e300."""
    path = write(frame.assign(chol=[1e39, 1e39, *frame["chol"][2:]]), tmp_path)

    with pytest.raises(DataError, match=r"float32 can hold.*: column 'chol' \([12]\); .*model.dtype=float64") as caught:
        load(path)
    assert "e39" not in str(caught.value)
    assert "e+39" not in str(caught.value)

    run = config().updated({"model.dtype": "float64"})
    assert 1e39 in everything(load(path, run=run).data)[:, 3]
    tiny = config(feature_means="54,0", feature_scales="9,1e-300").updated({"model.dtype": "float64"})
    with pytest.raises(DataError, match=r"float64 can hold.*: column 'chol' \(\d\); correct them") as caught:
        load(path, run=tiny)
    assert "model.dtype" not in str(caught.value)


def test_an_empty_cell_that_an_earlier_versions_model_cannot_fill_is_refused_with_what_helps(frame, tmp_path):
    """It was made with missing=drop, and nobody fitted what fills a cell then."""
    client = load(write(frame, tmp_path), "label=disease&missing=drop")
    path = write(frame.assign(age=[None, *frame["age"][1:]]), tmp_path)

    with pytest.raises(DataError, match=r"1 of 12 rows lack one; type --missing drop"):
        load_rows(f"csv:{path}", client.task, config(), Settings(), replace(client.preparation, spare=()))
    found = load_rows(f"csv:{path}", client.task, config(), Settings(), client.preparation, empty="drop")
    assert found.rows.numbers.tolist() == list(range(2, 13))


SECRET = "Ann-Smith-77"


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        ({"age": SECRET}, "label=disease", "finite numbers in column 'age', but 12 of 12 values are others;"),
        ({"age": "inf"}, "label=disease", "finite numbers in column 'age'"),
        ({"sex": SECRET}, "label=disease", r"categories of column 'sex' \(f, m\), but 12 of 12"),
        ({"disease": SECRET}, "label=disease", r"classes in the label column \(no, yes\), but 12 of 12"),
        ({"disease": 2}, "label=disease&labels=numbers", r"\(0, 1\), but 12 of 12"),
        ({"disease": [None] * 3 + ["no"] * 9}, "label=disease", "3 of 12 rows lack one; .*missing=drop"),
        ({"age": None}, "label=disease&missing=mean", "no row of the support split has one in column 'age'"),
        ({}, "label=illness", "the file's header lacks 1 that --data names;"),
        ({}, "label=age", "names a column as an input and as something else"),
        ({}, "missing=zero", "names no label"),
        ({}, "label=disease,extra", "expected one label column"),
        ({}, "label=disease&missing=guess", "missing='guess' is unknown"),
        ({}, "label=disease&scale=run", "run's data.feature-means"),
        ({}, "label=disease&categories=sex:m|f", "categories= contradicts the run"),
        ({}, "label=disease&ignore=extra", "ignore= contradicts the run"),
        ({}, "label=disease&sep=;;", "one character"),
        ({}, "label=disease&na=,", "without repetition"),
    ],
)
def test_what_is_not_as_declared_is_refused_without_quoting_it(frame, tmp_path, spoil, options, message, caplog):
    """The message may reach the server; the value is logged on this machine."""
    path = write(frame.assign(**spoil), tmp_path)

    with pytest.raises((DataError, ConfigError), match=message) as caught:
        load(path, options)

    assert SECRET not in str(caught.value)
    assert (SECRET in caplog.text) == (SECRET in spoil.values())


def test_another_number_of_columns_is_told_with_their_widths(frame, tmp_path, caplog):
    """The run says how many inputs there are; which columns became them is said here."""
    run = config(feature_names="", categories="", input_shape="5")

    with pytest.raises(DataError, match=r"shape \[5\].*3 columns become 4 inputs"):
        load(write(frame, tmp_path), "label=disease&ignore=extra&categories=sex:f|m", run)

    assert "'chol' (1), 'sex' (2), 'age' (1)" in caplog.text


HEADER = "age,sex,chol,disease"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (f"{HEADER}\n40,f,200,no,5\n", "as many fields"),
        (f"{HEADER}\n40,f,200,no\n40,f,200\n", "as many fields"),
        (f'{HEADER}\n40,f,200,"no\n', "cannot be read"),
        (f"{HEADER}\n40,f,200,no\x00\n", "1 of 1 values are others"),
        (f"{HEADER}\n", "expected examples, but there are none"),
        ("age,age\n1,2\n", "2 columns are empty or stand twice"),
        ("age,\n1,2\n", "2 columns are empty or stand twice"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path, text, message):
    """Rows are neither shifted nor cut."""
    (tmp_path / "t.csv").write_text(text)

    with pytest.raises(DataError, match=message):
        load(tmp_path / "t.csv")


def test_a_missing_or_binary_file_is_refused(tmp_path):
    """Here with its path."""
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00a,b\n")

    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.csv")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "t.csv")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    """It is an extra."""
    (tmp_path / "t.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)

    with pytest.raises(DataError, match=r"nufed\[parquet\]"):
        load_private(Membership(f"parquet:{tmp_path}/t.parquet?label=disease", "a"), config(), Settings())


def test_rows_to_predict_need_no_label(frame, tmp_path):
    """They keep their order and numbers, and are prepared as the support split was."""
    path = write(frame, tmp_path)
    preparation = load(path, "label=disease&scale=local").preparation
    unlabelled = write(frame.drop(columns="disease"), tmp_path)

    task = load(path_with(frame, tmp_path)).task
    found = load_rows(f"csv:{unlabelled}", task, config(), Settings(), preparation)

    rows, examples = found.rows, found.examples
    assert rows.targets is None
    assert rows.numbers.tolist() == list(range(1, NUM_ROWS + 1))
    assert np.allclose(examples.inputs.numpy(), preparation.apply(rows.inputs), atol=1e-6)


def path_with(frame, tmp_path):
    path = tmp_path / "labelled.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("option", ["scale=local", "missing=mean"])
def test_statistics_are_never_those_of_the_rows_to_predict(frame, tmp_path, option):
    """Predicting one row must not depend on the others."""
    path = write(frame, tmp_path)

    with pytest.raises(ConfigError, match="nufed personalize"):
        load_rows(f"csv:{path}?{option}", load(path).task, config(), Settings())


def test_a_personal_model_brings_its_own_preparation(frame, tmp_path):
    """Another one would feed it other inputs than it was made with."""
    path = write(frame, tmp_path)
    client = load(path, "label=disease&scale=local")

    with pytest.raises(ConfigError, match="scale= contradicts"):
        load_rows(f"csv:{path}?scale=none", client.task, config(), Settings(), client.preparation)
