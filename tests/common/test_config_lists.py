"""Lists and tables among the options: whatever a name holds, every form reads back as the same names."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nufed
from nufed.common.config import DataConfig, RunConfig
from nufed.common.config.lists import read_names, read_table, write_names, write_table
from nufed.common.data.private.task import declared_columns, declared_scaling, parse_categories, split_names
from nufed.common.errors import ConfigError

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8).filter(
    lambda name: name.strip() == name
)
SEPARATORS = st.text(st.sampled_from(",;:|=[]{}\"'\\ ab1."), min_size=1, max_size=6).filter(
    lambda name: name.strip() == name
)
ANY_NAME = NAMES | SEPARATORS


@given(st.lists(ANY_NAME, unique=True, max_size=5))
def test_every_list_of_names_reads_back(names):
    """By its text, as an option, and through the JSON of a run's folder."""
    config = DataConfig(feature_names=names)

    assert read_names(write_names(names)) == tuple(names)
    again = RunConfig.parse(json.loads(RunConfig(data=config).to_json()))
    assert split_names(again.data.feature_names, "names") == tuple(names)


@given(st.dictionaries(ANY_NAME, st.lists(ANY_NAME, min_size=1, max_size=3, unique=True), max_size=3))
def test_every_table_of_names_reads_back(table):
    """By its text, and as an option whose names are nobody's keys: dots and underscores in them stay."""
    expected = {name: tuple(values) for name, values in table.items()}

    assert dict(read_table(write_table(table))) == expected
    for nested in ({"data": {"categories": table}}, {"data.categories": table}):
        assert dict(read_table(RunConfig.parse(nested).data.categories)) == expected


@pytest.mark.parametrize(
    ("names", "text"), [(["age", "sex"], "age,sex"), (["a\\b", '"c"'], 'a\\b,"c"'), (["a,b"], '["a,b"]'), ([], "")]
)
def test_the_old_spelling_is_written_where_it_suffices(names, text):
    """Earlier versions read the options of a run whose names hold no separator."""
    assert write_names(names) == text


def test_a_toml_file_may_hold_lists_and_tables(tmp_path):
    """The same run as by the old spelling, and names that it cannot have."""
    (tmp_path / "run.toml").write_text(
        '[data]\nsource = "private"\nfeature-names = ["age", "sex, at birth", "a.b_c"]\n'
        'class-names = ["no", "yes; ill"]\n'
        "feature-means = [54.5]\nfeature-scales = [9]\n"
        'categories = { "sex, at birth" = ["f", "m"], "a.b_c" = [1, 2] }\n'
        "[model]\nhidden-sizes = [8, 4]\n"
    )

    config = RunConfig.load(tmp_path / "run.toml")

    assert [(column.name, column.categories) for column in declared_columns(config.data)] == [
        ("age", ()),
        ("sex, at birth", ("f", "m")),
        ("a.b_c", ("1", "2")),
    ]
    assert split_names(config.data.class_names, "classes") == ("no", "yes; ill")
    assert declared_scaling(config.data) == ((54.5,), (9.0,))
    assert config.model.hidden_sizes == "8,4"
    assert RunConfig.parse(config.flat()) == config
    old = RunConfig.parse({"data.feature-names": "age,sex", "data.categories": "sex:f|m"})
    assert old.replace(data__feature_names="age,sex") == RunConfig.parse(
        {"data": {"feature_names": ["age", "sex"], "categories": {"sex": ["f", "m"]}}}
    )


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("feature-names", ["a\nb"], "line break"),
        ("feature-names", "a\x07b,c", "line break"),
        ("feature-names", [["a"]], "names in the list"),
        ("feature-names", ["a", "a"], "without repetition"),
        ("categories", {"sex": []}, "no values"),
        ("categories", {"sex": "f|m"}, "list of values"),
        ("categories", '{"sex": ["f"], "sex": ["m"]}', "stands twice"),
        ("feature-means", [float("nan")], "finite numbers"),
        ("feature-means", ["1"], "finite numbers"),
        ("source", ["digits"], "string"),
        ("num-outputs", {"a": 1}, "num-outputs"),
    ],
)
def test_what_is_no_list_is_refused(key, value, told):
    """By the option's name, before anybody reads data."""
    options = {"data": {"source": "private", "input-shape": "1", key: value}}

    with pytest.raises(ConfigError, match=told) as caught:
        declared_columns(RunConfig.parse(options).data)

    assert key in str(caught.value)


def test_lists_are_taken_from_python_and_by_set():
    """As keyword options, and as JSON behind --set."""
    by_set = RunConfig().updated({"data.class-names": '["no", "yes, ill"]', "data.categories": '{"a:b": ["1;2"]}'})

    assert split_names(by_set.data.class_names, "") == ("no", "yes, ill")
    assert parse_categories(by_set.data.categories) == {"a:b": ("1;2",)}
    with pytest.raises(ConfigError, match="describes private data"):
        nufed.simulate("digits", class_names=["no", "yes, ill"])
