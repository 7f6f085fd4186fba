"""What contradicts what, as early as it is known; and rounds in which too few replies come."""

import pytest
import torch
from flwr.app import ConfigRecord

from nufed.common.config import RunConfig, option_descriptions
from nufed.common.errors import ConfigError
from nufed.deploy.commands.run_options import complete_assignment
from nufed.strategy.aggregation import AGGREGATION_RULES
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.robust_options import RobustOptions, check_config, shortfall
from nufed.strategy.robust_rules import ROBUST_RULES
from tests.strategy.fake_grid import FakeGrid, client, error_reply

ALONE = [
    ({"aggregation": "medain"}, "Did you mean 'median'"),
    ({"num_attackers": 1}, "contradicts aggregation=mean"),
    ({"bucket_size": 2}, "contradicts aggregation=mean"),
    ({"aggregation": "median", "num_attackers": -1}, "at least 0 attackers"),
    ({"aggregation": "median", "bucket_size": 0}, "at least 1 reply"),
    *(({"aggregation": rule, "weighting": "examples"}, "Set weighting to uniform") for rule in ROBUST_RULES),
    *(({"aggregation": rule}, "needs num-attackers") for rule in ("trimmed-mean", "krum", "multi-krum")),
]
ROUNDS = [
    ("median", 10, 4, 1, None),
    ("median", 10, 5, 1, "needs 11 replies, and there are 10"),
    ("trimmed-mean", 8, 4, 1, "needs 9 replies"),
    ("krum", 11, 4, 1, None),
    ("krum", 10, 4, 1, "needs 11 replies"),
    ("multi-krum", 10, 4, 1, "needs 11 replies"),
    ("krum", 9, 1, 2, None),
    ("krum", 8, 1, 2, "needs 9 replies in buckets of 2"),
    ("norm-clipping", 2, 1, 1, "needs 3 replies"),
    ("mean", 1, 0, 1, None),
]


@pytest.mark.parametrize(("options", "reason"), ALONE)
def test_what_has_no_meaning_is_refused_before_anything_starts(options, reason):
    with pytest.raises(ConfigError, match=reason):
        MetaFedAvg(**options)


@pytest.mark.parametrize(("rule", "count", "b", "s", "reason"), ROUNDS)
def test_a_rule_says_how_many_replies_it_needs(rule, count, b, s, reason):
    found = shortfall(rule, count, RobustOptions(b, s))

    assert reason in found if reason else found is None
    options = {"federation.aggregation": rule, "federation.num-attackers": b, "federation.bucket-size": s}
    config = RunConfig().updated({**options, "data.num-clients": 2 * count, "federation.participation-fraction": 0.5})
    if reason:
        with pytest.raises(ConfigError, match="participation-fraction"):
            check_config(config)
    else:
        check_config(config)


def test_the_option_and_the_command_line_name_every_rule():
    _, described = option_descriptions()["federation.aggregation"]

    assert all(rule in described for rule in AGGREGATION_RULES)
    assert complete_assignment("federation.aggregation=multi") == ["federation.aggregation=multi-krum"]


def test_connected_clients_too_few_for_the_rule_are_refused_before_the_first_round():
    grid = FakeGrid({100 + i: client(f"c{i}") for i in range(4)})
    strategy = MetaFedAvg(aggregation="krum", num_attackers=1, participation_fraction=1.0)

    with pytest.raises(ConfigError, match="needs 5 replies, and there are 4 in a round"):
        strategy.discover(grid, expected=4)

    assert grid.asked("train") == []


def test_a_round_with_too_few_replies_leaves_the_model_and_says_why():
    nodes = {100 + i: client(f"c{i}", step=float(i)) for i in range(5)}
    grid = FakeGrid(nodes)
    strategy = MetaFedAvg(aggregation="krum", num_attackers=1, participation_fraction=1.0)
    strategy.discover(grid, expected=5)
    sent = {"w": torch.zeros(2)}

    whole = strategy.train_round(grid, sent, 1, timeout=5, config=ConfigRecord())
    grid.nodes[104] = client("c4", train=error_reply)
    short = strategy.train_round(grid, sent, 2, timeout=5, config=ConfigRecord())

    assert whole.counts.replied == 5
    assert whole.params["w"].tolist() in [[i, i] for i in range(5)]
    assert torch.equal(short.params["w"], sent["w"])
    assert (short.counts.replied, short.counts.rejected, short.counts.failed) == (0, 4, 1)
    assert "needs 5 replies, and there are 4" in short.problems["c0"]
    assert short.client_metrics == {}
