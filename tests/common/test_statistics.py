"""What sites tell of their columns: right when pooled, nothing of few examples, nothing believed that cannot be."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Error, Message
from hypothesis import given
from hypothesis import strategies as st

from nufed.client.told_statistics import told_statistics
from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.data.private.task import check_is_scaled
from nufed.common.errors import ConfigError, RunError, WireError
from nufed.common.settings import Settings
from nufed.common.statistics import NOT_TOLD, StatisticsShape, pool, site_statistics, told_counts
from nufed.common.wire import ClientDescription, read_statistics, statistics_records
from nufed.server.statistics import StatisticsReport
from nufed.strategy.known_clients import Member
from nufed.strategy.statistics import gather_statistics
from tests.strategy.fake_grid import FakeGrid

SHAPE = StatisticsShape(("age", "sex", "dose"), ((), ("f", "m"), ()), ("no", "yes"), 5)


OPTIONS = {
    "data.source": "private",
    "data.feature-names": "age,sex,dose",
    "data.categories": "sex:f|m",
    "data.class-names": "no,yes",
    "data.scale": "federated",
}


def site(seed, num=60, offset=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    numbers = offset + scale * rng.normal(seed, 1 + seed, size=(num, 2))
    return np.stack([numbers[:, 0], *np.eye(2)[rng.integers(0, 2, num)].T, numbers[:, 1]], 1), rng.integers(0, 2, num)


@given(st.sampled_from([0.0, 1e9, -1e12]), st.sampled_from([1.0, 1e-3, 1e200]), st.permutations(range(4)))
def test_pooled_is_what_all_examples_together_have(offset, scale, order):
    """Mean and deviation of the concatenation, wherever the values lie, and the same bits in every order."""
    tables = {f"site-{index}": site(index, 40 + 13 * index, offset, scale) for index in range(4)}
    told = {name: site_statistics(*table, SHAPE) for name, table in tables.items()}

    pooled = pool({f"site-{index}": told[f"site-{index}"] for index in order}, SHAPE)

    together = np.concatenate([inputs[:, [0, 3]] for inputs, _ in tables.values()]).astype(np.longdouble)
    largest = np.abs(together).max(0)
    deviation = (together / largest).std(0) * largest
    np.testing.assert_allclose(np.array([pooled.means[0], pooled.means[2]]), together.mean(0).astype(float), rtol=1e-12)
    expected = np.where(deviation > 2.0**-23 * largest, deviation, np.maximum(1, np.abs(pooled.means)[[0, 2]]))
    np.testing.assert_allclose(np.array([pooled.scales[0], pooled.scales[2]]), expected.astype(float), rtol=1e-3)
    assert pooled == pool(told, SHAPE)
    assert pooled.counts == (4 * 40 + 13 * 6,) * 3


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), st.integers(2, 12))
def test_what_is_kept_back_cannot_be_worked_out(counts, least):
    """The total is known; so what is left of it is nobody's, or that of enough examples of more than one kind."""
    told = told_counts(counts, least)

    kept_back = [count for count, shown in zip(counts, told, strict=True) if shown == NOT_TOLD]
    assert all(shown in (NOT_TOLD, count) for count, shown in zip(counts, told, strict=True))
    assert all(count >= least for count, shown in zip(counts, told, strict=True) if shown != NOT_TOLD)
    is_everything = len(kept_back) == len(counts)
    assert is_everything or not sum(kept_back) or (sum(kept_back) >= least and sum(c > 0 for c in kept_back) > 1)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ([*range(4), *[np.nan] * 56], 0),  # fewer values than 5
        ([*range(60)], 60),
        ([*range(50), *[np.nan] * 10], 50),
        ([*range(57), *[np.nan] * 3], 60),  # so few are empty that none is said to be
        ([0] * 57 + [1] * 3, 0),  # the mean times 60 is how many have a 1
        ([0] * 57 + [7.5, 8.5, 1e6], 0),
        ([1] * 60, 60),
        ([0] * 30 + [1] * 30, 60),
        ([1e308] * 30 + [-1e308] * 30, 0),  # no deviation of it can be told
    ],
)
def test_a_column_of_few_values_is_kept_back(values, count):
    """With its mean and deviation."""
    inputs, targets = site(1)
    inputs[:, 0] = values

    told = site_statistics(inputs, targets, SHAPE)

    assert (told.counts[0], bool(told.means[0] or told.deviations[0]) <= bool(count)) == (count, True)
    if count and not np.isnan(values).any() and len(set(values)) > 1:
        assert told.means[0] == pytest.approx(np.mean(values))
        assert told.deviations[0] == pytest.approx(np.std(values))
    assert read_statistics(statistics_records(told), SHAPE, 60) == told


def changed(name, index, value):
    """A way to spoil a reply: one element of a list, or a whole metric."""

    def spoil(metrics):
        if index is None:
            metrics[name] = value
        else:
            values = list(metrics[name])
            values[index] = value
            metrics[name] = values

    return spoil


HOSTILE = {
    "NaN": changed("means", 0, math.nan),
    "infinite": changed("deviations", 0, math.inf),
    "beyond every mean": changed("means", 0, 1e301),
    "a negative count": changed("counts", 0, -1),
    "a negative deviation": changed("deviations", 0, -1.0),
    "more values than examples": changed("counts", 0, 61),
    "fewer values than agreed": changed("counts", 0, 4),
    "so few empty cells": changed("counts", 0, 58),
    "a mean of nothing": changed("counts", 0, 0),
    "a mean of categories": changed("means", 1, 1.0),
    "categories beyond their values": changed("categories", 0, 61),
    "categories that lack some": changed("categories", 0, 5),
    "classes beyond the examples": changed("classes", 1, 60),
    "too short": changed("means", None, [1.0]),
    "too long": changed("counts", None, [60] * 4),
    "no list": changed("counts", None, 60),
    "another number of examples": changed("num-examples", None, 61),
    "a further metric": changed("ages", None, [1.0]),
}


@pytest.mark.parametrize("way", HOSTILE)
def test_what_no_examples_can_have_is_refused(way):
    """By a WireError that names it, whoever sent it."""
    records = statistics_records(site_statistics(*site(1), SHAPE))
    HOSTILE[way](records.metric_records["metrics"])

    with pytest.raises(WireError):
        read_statistics(records, SHAPE, 60)


def test_bad_answers_are_counted_and_the_good_ones_are_used():
    """In whatever order they come; who told nothing is named, with the reason."""
    good = {1: site(1), 2: site(2)}
    spoiled = statistics_records(site_statistics(*site(3), SHAPE))
    HOSTILE["NaN"](spoiled.metric_records["metrics"])

    def node(number):
        def answer(message):
            if number == 4:
                return Message(Error(2, "this client tells no statistics"), reply_to=message)
            if number == 5:
                return None
            told = spoiled if number == 3 else statistics_records(site_statistics(*good[number], SHAPE))
            reply = Message(told, reply_to=message)
            return [reply, reply] if number == 2 else reply  # of two answers the first counts

        return answer

    members = {
        f"site-{number}": Member(number, ClientDescription(f"site-{number}", "participating", 60, 1, 1))
        for number in range(1, 6)
    }
    found = [
        gather_statistics(FakeGrid({number: node(number) for number in range(1, 6)}, order), members, SHAPE, 0.1)
        for order in (list, lambda values: values[::-1])
    ]

    assert found[0] == found[1]
    assert (list(found[0].sites), found[0].rejected) == (["site-1", "site-2"], 1)
    assert [name for name, _ in itertools.groupby(found[0].absent)] == ["site-3", "site-4", "site-5"]
    said = "\n".join(StatisticsReport.of(found[0]).lines())
    assert "site-4 told no statistics: error 2: this client tells no statistics" in said
    assert "site-5 told no statistics: did not answer" in said


@pytest.mark.parametrize(
    ("spec", "node", "told"),
    [
        ("csv:secret.csv?label=y", {}, "--allow-statistics"),
        ("digits#3/20", {"allow-statistics": True}, "expected a table"),
        ("npz:secret.npz", {"allow-statistics": True}, "expected a table"),
    ],
)
def test_a_client_that_tells_nothing_says_why(spec, node, told, tmp_path, monkeypatch):
    """Because it is not allowed to, or has no columns; and nothing else."""
    monkeypatch.chdir(tmp_path)
    np.savez("secret.npz", x=np.ones((9, 4)), y=np.arange(9) % 2)
    options = OPTIONS if "csv" in spec else {**OPTIONS, "data.scale": "given"}

    with pytest.raises(ConfigError, match=told) as caught:
        told_statistics(options, {"data": spec, "client-id": "a", **node}, Settings())

    assert caught.value.sendable
    assert "secret" not in str(caught.value)


def test_rounds_do_not_begin_without_the_statistics():
    """Where nobody gathers them, as under Flower's own server; and columns must be named for them."""
    with pytest.raises(ConfigError, match="before round 1"):
        check_is_scaled(RunConfig.parse(OPTIONS).data)
    with pytest.raises(ConfigError, match="feature-names"):
        describe_task(RunConfig.parse({**OPTIONS, "data.feature-names": "", "data.input-shape": "4"}).data, Settings())
    with pytest.raises(ConfigError, match="describes private data"):
        describe_task(RunConfig.parse({"data.scale": "federated"}).data, Settings())


def test_the_run_gets_the_means_unless_it_has_some():
    """And does not begin without any."""
    config = RunConfig.parse(OPTIONS)
    members = {"a": Member(1, ClientDescription("a", "participating", 60, 1, 1))}
    told = site_statistics(*site(1), SHAPE)
    grid = FakeGrid({1: lambda message: Message(statistics_records(told), reply_to=message)})
    report = StatisticsReport.of(gather_statistics(grid, members, SHAPE, 1))

    scaled = report.scaled(config)

    assert scaled.data.feature_means == f"{told.means[0]!r},{told.means[2]!r}"
    assert report.scaled(scaled) == scaled
    assert report.to_csv().count("\na,") == 1 + 2 + 1 + 2
    nobody = StatisticsReport.of(replace(report.gathered, sites={}, absent={"a": "did not answer"}))
    with pytest.raises(RunError, match="--allow-statistics"):
        nobody.scaled(config)
