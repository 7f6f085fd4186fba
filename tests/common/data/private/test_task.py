"""The server says what its clients' data must be, or is told what it has to say."""

import pytest

from nufed.common.config import RunConfig
from nufed.common.data import describe_task, load_federation
from nufed.common.data.private.task import Column, canonical, declared_columns, declared_scaling, parse_categories
from nufed.common.errors import ConfigError
from nufed.common.examples import TaskInfo
from nufed.common.settings import Settings


def config(**options):
    keys = {f"data.{key.replace('_', '-')}": value for key, value in options.items()}
    return RunConfig().updated({"data.source": "private", **keys}).data


def task(**options):
    return describe_task(config(**options), Settings())


def test_the_task_follows_from_shape_and_class_names():
    """Nothing but the options is read."""
    assert task(input_shape="1,28,28", class_names="no, yes") == TaskInfo(
        "classification", (1, 28, 28), 2, ("no", "yes")
    )


def test_classes_that_are_only_counted_are_named_by_their_numbers():
    """Every classification task has class names."""
    assert task(input_shape="13", num_outputs=3).class_names == ("0", "1", "2")


def test_the_shape_follows_from_the_columns_categories_counted():
    """A column with three categories becomes three inputs."""
    described = task(feature_names="age,thal", categories="thal:3|6|7", class_names="no,yes")

    assert described.input_shape == (4,)
    assert declared_columns(config(feature_names="age,thal", categories="thal:3.0|6|7")) == (
        Column("age"),
        Column("thal", ("3", "6", "7")),
    )


@pytest.mark.parametrize(("num_outputs", "expected"), [(0, 1), (4, 4)])
def test_regression_predicts_one_value_unless_told_otherwise(num_outputs, expected):
    """Values have no class names."""
    assert task(task="regression", input_shape="2", num_outputs=num_outputs) == TaskInfo("regression", (2,), expected)


def test_scaling_is_of_the_columns_without_categories():
    """Means and scales come in the order of those columns."""
    options = {"feature_names": "age,sex,chol", "categories": "sex:f|m"}

    assert declared_scaling(config(**options, feature_means="54,246", feature_scales="9,52")) == ((54, 246), (9, 52))
    assert declared_scaling(config(**options)) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_names": "no,yes"}, "needs the shape.*data.input-shape"),
        ({"input_shape": "13"}, "needs the classes.*data.class-names"),
        ({"input_shape": "13", "class_names": "no,yes", "num_outputs": 3}, "num-outputs=3 contradicts"),
        ({"input_shape": "13", "class_names": "no,no"}, "without repetition"),
        ({"input_shape": "13", "class_names": "no,"}, "without repetition"),
        ({"input_shape": "13", "class_names": "a,b", "task": "regression"}, "contradicts data.task=regression"),
        ({"input_shape": "3", "feature_names": "a,b", "class_names": "no,yes"}, "become 2 inputs"),
        ({"feature_names": "a", "categories": "b:1|2", "class_names": "no,yes"}, "names the column 'b'"),
        ({"feature_names": "a", "categories": "a", "class_names": "no,yes"}, "expected COLUMN:VALUE"),
        ({"feature_names": "a", "categories": "a:1|1.0", "class_names": "no,yes"}, "stands twice"),
        ({"feature_names": "a,b", "feature_means": "1,2", "class_names": "no,yes"}, "2 in data.feature-means and 0"),
        ({"feature_names": "a", "feature_means": "1", "feature_scales": "0", "class_names": "x,y"}, "above 0"),
        ({"feature_names": "a", "feature_means": "x", "feature_scales": "1", "class_names": "x,y"}, "numbers"),
        ({"feature_names": "a", "feature_means": "inf", "feature_scales": "1", "class_names": "x,y"}, "finite"),
    ],
)
def test_a_task_that_is_not_described_well_is_refused_with_what_is_missing(options, message):
    """The server does not start with half a description."""
    with pytest.raises(ConfigError, match=message):
        task(**options)


@pytest.mark.parametrize("option", [{"class_names": "no,yes"}, {"task": "regression"}, {"input_shape": "13"}])
def test_a_description_beside_a_source_that_describes_itself_is_refused(option):
    """No option is ignored."""
    with pytest.raises(ConfigError, match="describes private data"):
        task(source="digits", **option)


def test_private_data_cannot_be_simulated():
    """There is nothing to deal on the server."""
    with pytest.raises(ConfigError, match="nufed server"):
        load_federation(config(input_shape="2", class_names="a,b"), seed=0, dtype=None, settings=Settings())


def test_column_names_may_have_colons():
    """The last colon separates the values."""
    assert parse_categories("a:b:1|2") == {"a:b": ("1", "2")}


def test_numbers_have_one_spelling():
    """Files differ in how they write whole numbers."""
    assert [canonical(text) for text in ("3.0", " 3", "3.5", "nan", "inf", "a b")] == [
        "3",
        "3",
        "3.5",
        "nan",
        "inf",
        "a b",
    ]
