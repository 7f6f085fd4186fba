"""What a cell means is one table, whichever file it stands in."""

import datetime as dt
import decimal
import io
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.config import RunConfig
from nufed.common.data.private.cells import MISSING_WORDS, Markers, NameColumn, NumberColumn
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.private.task import declared_columns, declared_task
from nufed.common.errors import ConfigError, DataError
from nufed.common.settings import Settings

LONG = "900000000000000007", "900000000000000009"


def run(**changes):
    return RunConfig().updated(
        {
            "data.source": "private",
            "data.feature-names": "v",
            "data.class-names": "no,yes",
            "data.validation-fraction": 0.0,
            "model.dtype": "float64",
            **{f"data.{key.replace('_', '-')}": value for key, value in changes.items()},
        }
    )


def _arrow_unless_float32(kind):
    """Pandas writes float32 in its own digits, Arrow's in float64's."""
    return None if kind == pa.float32() else pd.ArrowDtype(kind)


def read(table, config, kind, options="label=y"):
    """Return (inputs, targets) of a client that holds a table, in order of the inputs; `table` is of Arrow."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table"
        if kind == "csv":
            table.to_pandas(types_mapper=_arrow_unless_float32).to_csv(path, index=False)
        else:
            pq.write_table(table, path)
        client = load_private(Membership(f"{kind}:{path}?{options}", "a"), config, Settings())
    parts = [client.data.support, client.data.test]
    inputs, targets = torch.cat([p.inputs for p in parts]), torch.cat([p.targets for p in parts])
    order = np.lexsort([*inputs.numpy().T, targets.numpy()])
    return inputs[order].tolist(), targets[order].tolist()


def labels(values, known, **how):
    """Return the classes of label cells, by csv and by parquet, as the order of the inputs has them."""
    table = pa.table({"v": list(map(float, range(len(values)))), "y": values})
    config = run(class_names=",".join(known))
    found = []
    for kind in ("csv", "parquet"):
        inputs, targets = read(table, config, kind, **how)
        found.append([targets[inputs.index([float(index)])] for index in range(len(values))])
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *(
            ("3", 3.0),
            ("3.0", 3.0),
            ("01", 1.0),
            ("+1", 1.0),
            (".5", 0.5),
            ("5.", 5.0),
            ("1E3", 1000.0),
            ("1e-400", 0.0),
        ),
        *(("true", 1.0), ("True", 1.0), ("TRUE", 1.0), ("false", 0.0), (" 7 ", 7.0), ("0.1", 0.1)),
        ("900000000000000007", 900000000000000007.0),
        *((word, None) for word in sorted(MISSING_WORDS)),
        *((" ", None), (None, None), ("?", None), ("-9", None), ("-9.0", None), ("-9e0", None)),
    ],
)
def test_a_cell_as_a_number(cell, number):
    """`?` and -9 are what `na=` names; None is a value that the file itself lacks."""
    column = NumberColumn(Markers(["?", "-9"]))

    [read] = column.read([cell], np.array([1]))

    assert column.refused.count == 0
    assert np.array_equal(read, np.nan if number is None else number, equal_nan=True)


@pytest.mark.parametrize(
    ("marker", "cell", "missing"),
    [
        ("-9", "-9.00E0", True),
        ("9", "09", True),
        ("0.50", "0.5", True),
        ("9007199254740993", "9007199254740993", True),
        ("9007199254740993", "9007199254740992", False),
        ("1", "true", False),
        ("true", "TRUE", True),
        ("x", "1", False),
    ],
)
def test_a_marker_is_a_number_where_the_column_is(marker, cell, missing):
    """However it is written; neighbors that one float64 stands for stay two."""
    column = NumberColumn(Markers([marker]))

    [number] = column.read([cell], np.array([1]))

    assert bool(np.isnan(number)) == missing
    assert column.refused.count == 0


@pytest.mark.parametrize(
    "cell",
    ["1,234", "1_000", "0x1F", "٣", "inf", "-Infinity", "1e999", "1.2.3", "2026-01-31", "yes", "1 2", "--1", "e5"],
)
def test_what_only_resembles_a_number_is_refused(cell):
    """Python's float() would take some of them."""
    column = NumberColumn(Markers())

    column.read(["1", cell], np.array([5, 6]))

    assert (column.refused.count, column.refused.row, column.refused.cell) == (1, 6, cell)


@pytest.mark.parametrize(
    ("known", "cell", "name"),
    [
        *((("3", "6"), "3.0", "3"), (("3.0", "6"), "3", "3.0"), (("1000", "2"), "1e+3", "1000")),
        *((("01", "1"), "01", "01"), (("01", "1"), "1", "1"), (("01", "1"), "1.0", "1"), (("01", "02"), "1", None)),
        *((LONG, LONG[0], LONG[0]), (LONG, LONG[1], LONG[1]), (LONG, "900000000000000008", None)),
        *((("1E5", "x"), "100000", None), (("1e5", "x"), "1e5", "1e5"), (("1.50", "x"), "1.5", None)),
        *((("True", "False"), "TRUE", "True"), (("0", "1"), "true", "1"), (("true", "false"), "0", "false")),
        *((("0", "1", "2"), "true", None), (("no", "yes"), "true", None), (("no", "yes"), "YES", None)),
        *(((word, "x"), word, word) for word in ("NA", "None", "nan", "null", "NULL", "N/A")),
        *((("no", "yes"), word, "missing") for word in ("NA", "None", "nan", "null", "", " ", "?", None)),
        (("Ko\u0308ln", "x"), "Köln", "Ko\u0308ln"),
    ],
)
def test_a_cell_as_a_name(known, cell, name):
    """Sameness is of the text, digit by digit; 3.0 is what programs write for 3."""
    column = NameColumn(known, Markers(["?"]))

    [code] = column.read([cell], np.array([1]))

    if name is None:
        assert column.refused.count == 1
    elif name == "missing":
        assert np.isnan(code)
    else:
        assert known[int(code)] == name


@pytest.mark.parametrize("names", ["3,3.0", "true,True", "1e+3,1000", "-0,0", "Ko\u0308ln,Köln"])
def test_two_spellings_of_one_class_are_refused(names):
    """By the server, before any client joins; categories likewise."""
    with pytest.raises(ConfigError, match="two spellings of one name"):
        declared_task(run(class_names=names).data)
    with pytest.raises(ConfigError, match="one of its values stands twice"):
        declared_columns(run(categories=f"v:{names.replace(',', '|')}").data)


@pytest.mark.parametrize("names", [",".join(LONG), "01,1", "1E5,100000", "a,A"])
def test_names_that_differ_stay_as_many(names):
    """Float64 has one number for the first two."""
    assert declared_task(run(class_names=names).data).class_names == tuple(names.split(","))


@pytest.mark.parametrize(
    ("values", "known"),
    [
        (pa.array([*map(int, LONG)] * 3), LONG),
        (pa.array([*map(decimal.Decimal, LONG)] * 3, pa.decimal128(38, 0)), LONG),
        (pa.array([*map(decimal.Decimal, ("1.00", "2.50"))] * 3, pa.decimal128(5, 2)), ("1", "2.50")),
        (pa.array(["01", "1"] * 3), ("01", "1")),
        (pa.array(["None", "NA"] * 3), ("None", "NA")),
        (pa.array([*LONG] * 3).dictionary_encode(), LONG),
        (pa.array([False, True] * 3), ("false", "true")),
        (pa.array([False, True] * 3), ("0", "1")),
        (pa.array([0.0, 1.0] * 3, pa.float32()), ("0", "1")),
        (pa.array([0.5, 0.1] * 3, pa.float32()), ("0.5", "0.1")),
        (pa.array([1e16, 3e22] * 3), ("10000000000000000", "30000000000000000000000")),
        (pa.array([dt.date(2026, 1, day) for day in (1, 2)] * 3), ("2026-01-01", "2026-01-02")),
        (
            pa.array([dt.datetime(2026, 1, 1, hour, tzinfo=dt.UTC) for hour in (1, 2)] * 3, pa.timestamp("us")),
            ("2026-01-01 01:00:00", "2026-01-01 02:00:00"),
        ),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else None,
)
def test_labels_of_every_type_of_parquet_are_the_classes_of_the_csv(values, known):
    """Integers beyond 2**53, decimals, dictionaries, dates; and names that look like nothing."""
    assert labels(values, known) == [0, 1] * 3


COLUMNS = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=4, max_size=8).map(
        lambda cells: pa.array(cells, pa.int64())
    ),
    st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=True)), min_size=4, max_size=8).map(
        lambda cells: pa.array(cells, pa.float64())
    ),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=4, max_size=8).map(
        lambda cells: pa.array(cells, pa.float32())
    ),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=4, max_size=8).map(pa.array),
    st.lists(st.decimals(-(10**6), 10**6, places=3), min_size=4, max_size=8).map(
        lambda cells: pa.array(cells, pa.decimal128(12, 3))
    ),
    st.lists(
        st.one_of(
            st.none(),
            st.sampled_from(["NA", "-9", "-9.0", "1e3", "01", "1", "1.0", "True", "nan", "x", " 2 ", "1,5", "None"]),
        ),
        min_size=4,
        max_size=8,
    ).map(lambda cells: pa.array(cells, pa.string())),
)


@settings(max_examples=120)
@given(
    column=COLUMNS,
    missing=st.sampled_from(["drop", "zero", "error"]),
    marker=st.sampled_from(["", "&na=-9", "&na=1,x", "&na=0"]),
    categories=st.sampled_from(["", "v:01|1|NA", "v:true|false", "v:0|1|2"]),
)
def test_csv_and_parquet_mean_the_same(column, missing, marker, categories):
    """The same examples, or the same refusal, whatever type the column has and whatever is done with missing cells."""
    table = pa.table({"v": column, "y": ["no", "yes"] * (len(column) // 2) + ["no"] * (len(column) % 2)})
    config = run(categories=categories)

    found = []
    for kind in ("csv", "parquet"):
        try:
            found.append(read(table, config, kind, f"label=y&missing={missing}{marker}"))
        except (DataError, ConfigError) as error:
            found.append((type(error), str(error)))

    assert repr(found[0]) == repr(found[1])


def test_what_na_names_is_missing_in_a_numeric_column_of_parquet():
    """As in a csv file."""
    table = pa.table({"v": pa.array([1.0, -9.0, 3.0, -9.0, 5.0, 6.0]), "y": ["no", "yes"] * 3})

    for kind in ("csv", "parquet"):
        inputs, _ = read(table, run(), kind, "label=y&na=-9&missing=drop")
        assert sorted(inputs) == [[1.0], [3.0], [5.0], [6.0]]


def test_a_name_of_the_run_is_no_spelling_of_what_is_missing():
    """`na=NA` would drop the patients of the class NA."""
    table = pa.table({"v": [1.0, 2.0], "y": ["NA", "yes"]})

    with pytest.raises(ConfigError, match="na= names a class of the run"):
        read(table, run(class_names="NA,yes"), "csv", "label=y&na=NA&missing=drop")


@pytest.mark.parametrize(
    "column",
    [
        pa.array([{"ann-smith": 1}] * 4),
        pa.array([[1, 2]] * 4),
        pa.array([b"ann-smith"] * 4),
        pa.array([dt.timedelta(1)] * 4),
    ],
    ids=lambda column: str(column.type),
)
def test_types_without_a_text_are_refused(column):
    """The type's words may name what is in it."""
    with pytest.raises(DataError, match="column 1 of the file holds something else") as caught:
        read(pa.table({"v": column, "y": ["no", "yes"] * 2}), run(), "parquet")

    assert "ann-smith" not in str(caught.value)


def test_a_small_file_does_not_become_a_large_table(tmp_path):
    """A column that repeats one value is a few bytes."""
    path = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(path, pa.schema([("v", pa.float64()), ("y", pa.string())])) as writer:
        part = pa.table({"v": np.zeros(2**20), "y": pa.array(["no"]).take(pa.array(np.zeros(2**20, np.int64)))})
        for _ in range(40):
            writer.write_table(part)

    with pytest.raises(DataError, match="of about the size of its file"):
        load_private(Membership(f"parquet:{path}?label=y", "a"), run(), Settings())


def test_long_tables_are_read_in_parts(tmp_path):
    """Cells beyond the first part are where they belong, and refused by their own row."""
    rows = 70_000
    text = io.StringIO()
    pd.DataFrame({"v": np.arange(rows), "y": np.where(np.arange(rows) % 2, "yes", "no")}).to_csv(text, index=False)
    (tmp_path / "long.csv").write_text(text.getvalue())

    client = load_private(Membership(f"csv:{tmp_path}/long.csv?label=y", "a"), run(), Settings())

    parts = [client.data.support, client.data.test]
    inputs = torch.cat([part.inputs for part in parts])[:, 0].long()
    assert torch.equal(inputs.sort().values, torch.arange(rows))
    assert torch.equal(inputs % 2, torch.cat([part.targets for part in parts]))
