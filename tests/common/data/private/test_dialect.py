"""How a csv file may be written, what is done with its empty cells, and rows that cannot be read."""

import json
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch

from nufed.client.model_export import PreparedModel
from nufed.common.config import RunConfig
from nufed.common.data.private.dialect import Numerals
from nufed.common.data.private.found_rows import load_rows
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.private.matrix import Matrix
from nufed.common.data.private.missing import Missing
from nufed.common.data.private.preparation import Policy, Preparation, fit_preparation
from nufed.common.data.private.task import Column
from nufed.common.errors import ConfigError, DataError
from nufed.common.settings import Settings

RUN = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "age,sex",
        "data.categories": "sex:f|m",
        "data.class-names": "nein,ja",
        "data.validation-fraction": 0.0,
    }
)
BARE = RUN.updated({"data.feature-names": "", "data.categories": "", "data.input-shape": "2"})
EUROPEAN, SWISS = "&sep=;&decimal=,&thousands=", "&sep=tab&thousands='"
PLAIN = "age,sex,krank\n1234.5,f,ja\n-2,m,nein\n1000,f,nein\n0.25,m,ja\n"


def load(text, options="", run=RUN, *, folder, encoding="utf-8", label="krank"):
    (folder / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return load_private(Membership(f"csv:{folder}/t.csv?label={label}{options}", "site"), run, Settings())


def rows(client):
    parts = [part for part in (client.data.support, client.data.test) if len(part)]
    return sorted(
        (*inputs, target)
        for part in parts
        for inputs, target in zip(part.inputs.tolist(), part.targets.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("text", "options", "encoding"),
    [
        (PLAIN.replace(",", ";").replace(".", ","), "&sep=;&decimal=,", "utf-8"),
        ("age;sex;krank\n1.234,5;f;ja\n-2,0;m;nein\n1.000;f;nein\n,25;m;ja\n", "&sep=;&decimal=,&thousands=.", "utf-8"),
        ('age,sex,krank\n"1,234.5",f,ja\n-2,m,nein\n"1,000",f,nein\n0.25,m,ja\n', "&thousands=,", "utf-8"),
        (
            "age;sex;krank\n1\u202f234,5;f;ja\n-2;m;nein\n1 000;f;nein\n0,25;m;ja\n",
            "&sep=;&decimal=,&thousands=space",
            "utf-8",
        ),
        (
            "age\tsex\tkrank\n1'234.5\tf\tja\n-2\tm\tnein\n1'000\tf\tnein\n0.25\tm\tja\n",
            "&sep=tab&thousands='",
            "utf-8",
        ),
        (PLAIN, "&encoding=utf-16", "utf-16"),
        (PLAIN, "&encoding=utf-16-le", "utf-16"),
        ("\ufeff" + PLAIN, "", "utf-8"),
        ("Messung, exportiert\n\n" + PLAIN, "&skip=2", "utf-8"),
    ],
)
def test_one_table_in_many_spellings(text, options, encoding, tmp_path):
    """Whatever program of whatever country wrote it."""
    if "utf-16-le" in options:
        text = text.encode("utf-16")  # with a byte-order mark, which this codec takes for a character

    assert rows(load(text, options, folder=tmp_path, encoding=encoding)) == rows(load(PLAIN, folder=tmp_path))


def test_latin_letters_of_other_encodings(tmp_path):
    """Without encoding= the file is refused, with what to type."""
    run = RUN.updated({"data.class-names": "gesund,geschwächt"})
    text = PLAIN.replace("ja", "geschwächt").replace("nein", "gesund")

    client = load(text, "&encoding=latin-1", run, folder=tmp_path, encoding="latin-1")

    assert sorted(row[-1] for row in rows(client)) == [0, 0, 1, 1]
    with pytest.raises(DataError, match="encoding="):
        load(text, "", run, folder=tmp_path, encoding="latin-1")


def test_a_file_without_a_header_names_its_columns_by_number(tmp_path):
    """From 1, as spreadsheets count."""
    run = RUN.updated({"data.feature-names": "1,2", "data.categories": "2:f|m"})

    client = load(PLAIN.split("\n", 1)[1], "&header=none", run, folder=tmp_path, label="3")

    assert rows(client) == rows(load(PLAIN, folder=tmp_path))


@pytest.mark.parametrize(
    ("numerals", "text", "plain"),
    [
        (Numerals(thousands=","), "12,34", None),
        (Numerals(thousands=","), "1234,567", None),
        (Numerals(thousands=","), "1,234,567.5e3", "1234567.5e3"),
        (Numerals(",", "."), "1.5", None),
        (Numerals(",", "."), "1.500", "1500"),
        (Numerals(","), "1.5", None),
        (Numerals(",", "space"), "1 234\u00a0567", None),
        (Numerals(), "1,5", None),
    ],
)
def test_marks_are_where_they_belong_or_the_number_is_refused(numerals, text, plain):
    """Half a number read is worse than none."""
    assert numerals.plain(text) == plain


def test_missing_markers_and_names_are_read_as_the_file_is_written(tmp_path):
    """-9,0 is what na=-9 names; 3,0 is the category 3."""
    run = RUN.updated({"data.categories": "sex:1|3"})
    text = "age;sex;krank\n-9,0;3,0;ja\n5,5;1;nein\n6;3;ja\n7;1,0;nein\n"

    client = load(text, "&sep=;&decimal=,&na=-9&missing=zero", run, folder=tmp_path)

    assert rows(client) == [(0, 0, 1, 1), (5.5, 1, 0, 0), (6, 0, 1, 1), (7, 1, 0, 0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("&decimal=x", "decimal='x' is unknown. Known: ',', '.'."),
        ("&decimal=,&thousands=,", "one mark"),
        ("&thousands=xx", "thousands='xx' is unknown"),
        ("&encoding=klingon", "encoding='klingon' is unknown.*latin-1"),
        ("&encoding=hex", "encoding='hex' is unknown"),
        ("&skip=-1", "expected how many lines"),
        ("&header=no", "header='no' is unknown"),
        ("&bad=keep", "bad='keep' is unknown"),
        ("&missing=age:often", "missing='often' is unknown.*COLUMN:POLICY"),
        ("&missing=mean,median", "two policies"),
        ("&missing=age:mean,age:zero", "two policies"),
        ("&missing=weight:mean", "1 columns that are no inputs"),
        ("&indicator=yes", "missing= names, but it names none"),
        ("&indicator=yes&missing=age:mean", "data.indicators"),
    ],
)
def test_what_an_option_cannot_be(options, message, tmp_path):
    """Each with the way out."""
    with pytest.raises(ConfigError, match=message):
        load(PLAIN, options, folder=tmp_path)


def test_bad_rows_are_left_out_and_counted(tmp_path, caplog):
    """Of numbers and fields; a class that nobody declared is no unreadable row."""
    broken = PLAIN + "1,f\nabc,m,ja\n1,f,ja,4\n1e999,f,ja\n5,m,ja\n"

    client = load(broken, "&bad=drop", folder=tmp_path)

    assert rows(client) == sorted([*rows(load(PLAIN, folder=tmp_path)), (5, 0, 1, 1)])
    assert "bad=drop leaves out 4 of 9 rows, which cannot be read: 2 have another number of fields" in caplog.text
    with pytest.raises(DataError, match="bad=drop"):
        load(broken, folder=tmp_path)
    with pytest.raises(DataError, match="run's classes"):
        load(PLAIN + "1,f,vielleicht\n", "&bad=drop", folder=tmp_path)


def test_misplaced_quotes_are_bad_rows(tmp_path, caplog):
    """Of so many lines; a cell's quoted line break and lines of blanks are none."""
    quoted = PLAIN.replace("0.25,m,ja", '0.25,m,"ja\n"\n   ')
    broken = quoted + '1,"f"f,ja\n1,f,"ja\n5,m,ja\n'

    client = load("a\nb\n" + broken, "&bad=drop&skip=2", folder=tmp_path)

    assert rows(client) == rows(load(PLAIN, folder=tmp_path)) == rows(load(quoted, folder=tmp_path))
    assert "leaves out 3 of 7 rows, which cannot be read: 3 have" in caplog.text
    with pytest.raises(DataError, match=r"not closed.*bad=drop"):
        load("a\nb\n" + broken, "&skip=2", folder=tmp_path)
    assert "in what begins in line 10" in caplog.text
    with pytest.raises(DataError, match="no further line behind those of skip="):
        load(PLAIN, "&skip=20", folder=tmp_path)


def test_rows_keep_their_numbers_where_others_are_left_out(tmp_path):
    """What `nufed predict` prints is the row in the file."""
    (tmp_path / "t.csv").write_text("age,sex\n1,f\nabc,m\n3,f\n1\n5,m\n")
    task = load(PLAIN, folder=tmp_path).task
    (tmp_path / "t.csv").write_text("age,sex\n1,f\nabc,m\n3,f\n1\n5,m\n")

    found = load_rows(f"csv:{tmp_path}/t.csv?bad=drop", task, RUN, Settings())

    assert found.rows.numbers.tolist() == [1, 3, 5]


HOLES = "age,sex,krank\n" + "".join(
    f"{age},{sex},{label}\n"
    for age, sex, label in [
        ("", "f", "ja"),
        (2, "", "nein"),
        (2, "f", "ja"),
        (4, "f", "nein"),
        (12, "m", "ja"),
        ("", "m", "nein"),
    ]
)


def test_columns_have_policies_of_their_own(tmp_path):
    """The others have the one that names no column, or are refused where they lack a value."""
    assert len(rows(load(HOLES, "&missing=age:drop,sex:zero", folder=tmp_path))) == 4
    assert len(rows(load(HOLES, "&missing=drop,age:zero", folder=tmp_path))) == 5
    with pytest.raises(DataError, match=r"column 'sex' \(1\)"):
        load(HOLES, "&missing=age:zero", folder=tmp_path)


def test_what_is_filled_in_is_of_the_support_split_by_the_columns_policy():
    """The most frequent value, the smallest of two; of categories the most frequent or their shares."""
    columns = [Column("a"), Column("b"), Column("c", ("f", "m")), Column("d", ("f", "m"))]
    one, other = [1, 0], [0, 1]
    values = np.array(
        [[7, 1, *one, *one], [5, 2, *one, *other], [7, 9, *other, *one], [5, np.nan, *one, *one], [99] * 6]
    )
    policy = Policy(Missing("mean", {"a": "mode", "b": "median", "c": "mode"}), "none")

    fitted = fit_preparation(columns, policy, values, np.arange(4))

    assert fitted.fill == (5, 2, 1, 0, 0.75, 0.25)


def test_an_indicator_says_that_a_cell_was_empty(tmp_path):
    """As the run declares it, in the column's last input, neither filled in nor scaled."""
    run = RUN.updated({"data.indicators": "age,sex"})

    client = load(HOLES, "&missing=zero&scale=local", run, folder=tmp_path)

    assert client.task.input_shape == (5,)
    inputs = torch.cat([client.data.support.inputs, client.data.test.inputs])
    assert inputs[:, 1].sum() == 2
    assert inputs[:, 4].sum() == 1
    assert set(inputs[:, [1, 4]].unique().tolist()) == {0, 1}
    assert (inputs[inputs[:, 4] == 1][:, 2:4] == 0).all()


def test_indicators_where_the_run_names_no_columns(tmp_path):
    """The columns with a policy of their own have one; a personal model brings them along."""
    text, run = HOLES.replace("f,", "0,").replace("m,", "1,"), BARE.updated({"data.input-shape": "3"})

    client = load(text, "&missing=zero,age:median&indicator=yes", run, folder=tmp_path)
    (tmp_path / "t.csv").write_text("age,sex\n,1\n3,\n")
    found = load_rows(f"csv:{tmp_path}/t.csv", client.task, run, Settings(), client.preparation)

    fill = client.preparation.fill[0]
    assert found.examples.inputs.tolist() == [[fill, 1, 1], [3, 0, 0]]
    with pytest.raises(ConfigError, match="brings its own"):
        load_rows(f"csv:{tmp_path}/t.csv?indicator=yes", client.task, run, Settings(), client.preparation)


def test_an_indicator_is_kept_with_a_personal_model_and_exported():
    """What stands in its place in the inputs is not looked at."""
    kept = Preparation((5.0, 0.0, 1.0), (1.0, 0.0, 0.0), (2.0, 1.0, 1.0), (-1, 0, -1), ("age",))
    inputs = np.array([[np.nan, np.nan, 3.0], [3.0, 7.0, np.nan]])

    read = Preparation.from_json(json.loads(json.dumps(kept.to_json(), allow_nan=False)))
    exported = PreparedModel(torch.nn.Identity(), kept, None, (3,))(torch.from_numpy(inputs))

    assert read == kept
    assert kept.apply(inputs).tolist() == [[2, 1, 3], [1, 0, 1]]
    assert torch.equal(exported, torch.from_numpy(kept.apply(inputs)))
    for wrong in ({"flags": [0]}, {"flags": [-1, 7, -1]}, {"flags": "a"}):
        with pytest.raises(ValueError, match=r"no preparation|invalid literal"):
            Preparation.from_json({**kept.to_json(), **wrong})


@pytest.mark.parametrize("last", [0.1, 1e300, 16777217.0])
def test_a_matrix_holds_numbers_exactly(last):
    """In half the memory as long as that is possible."""
    matrix, parts = Matrix(2), [np.array([[1.5, np.nan], [2.0, -3.0]]), np.full((9, 2), last), np.full((1, 2), 0.25)]

    matrix.append(parts[0])
    assert matrix._held.dtype == np.float32
    for part in parts[1:]:
        matrix.append(part)

    assert np.array_equal(matrix.close(), np.concatenate(parts), equal_nan=True)


def test_a_file_takes_a_few_times_its_size_in_memory(tmp_path, monkeypatch):
    """Also where a cell is one digit, which as a number of the model's precision takes twice the room."""
    monkeypatch.setattr("nufed.common.data.private.readers._CELLS_AT_ONCE", 2**12)  # in proportion to a small file
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 10, (30_000, 30))).assign(y=["no", "yes"] * 15_000)
    frame.to_csv(tmp_path / "t.csv", index=False)
    size, run = (
        (tmp_path / "t.csv").stat().st_size,
        BARE.updated({"data.input-shape": "30", "data.class-names": "no,yes"}),
    )
    member = Membership(f"csv:{tmp_path}/t.csv?label=y", "site")

    tracemalloc.start()
    client = load_private(member, run, Settings())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    tensors = sum(part.inputs.nbytes + part.targets.nbytes for part in (client.data.support, client.data.test))
    assert 4 * size < peak + tensors < 8 * size
