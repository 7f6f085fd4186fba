"""Claims about who gets which examples of a pool, and what is said when it does not work out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import DataConfig
from nufed.common.data import load_federation
from nufed.common.data.dealing import deal
from nufed.common.data.pool import Pool, Table
from nufed.common.errors import DataError
from nufed.common.examples import TaskInfo
from nufed.common.settings import Settings

TASK = TaskInfo("classification", (1,), 10, tuple("0123456789"))


def table(num_rows, users=None, names=(), first=0):
    """A table whose input is the number of its row."""
    return Table(
        np.arange(first, first + num_rows, dtype=np.float64)[:, None],
        np.arange(num_rows) % 10,
        None if users is None else np.asarray(users),
        tuple(names),
    )


def config_for(partition, **changes):
    return DataConfig(**{"partition": partition, "num_clients": 3, "num_new_clients": 2, **changes})


def make_all(pool, config, seed=0):
    dealt = deal(pool, config, seed)
    return [dealt.make_client(index, torch.float64) for index in range(dealt.num_total)]


def numbers(examples):
    return examples.inputs.flatten().int().tolist()


@given(
    partition=st.sampled_from(["iid", "dirichlet", "classes", "by-user"]),
    test_fraction=st.floats(0.01, 0.99),
    validation_fraction=st.floats(0, 0.99),
    seed=st.integers(0, 2**61),
)
def test_splits_of_all_clients_are_disjoint(partition, test_fraction, validation_fraction, seed):
    """Whatever the fractions, no example is in two splits, and support and test have one at least."""
    config = config_for(
        partition,
        dirichlet_alpha=10.0,
        classes_per_client=2,
        test_fraction=test_fraction,
        validation_fraction=validation_fraction,
    )
    pool = Pool(TASK, table(200, np.repeat(np.arange(5), 40), "abcde"))

    clients = make_all(pool, config, seed)

    rows = [row for c in clients for part in (c.support, c.validation, c.test) for row in numbers(part)]
    assert len(rows) == len(set(rows))
    assert all(len(c.support) and len(c.test) for c in clients)


def test_fractions_mean_what_they_say():
    """A quarter is for the test; 15 % of what remains for validation, none of it at new clients."""
    clients = make_all(Pool(TASK, table(500)), config_for("iid", test_fraction=0.25, validation_fraction=0.15))

    sizes = [(len(c.support), len(c.validation), len(c.test)) for c in clients]

    assert sizes == [(64, 11, 25)] * 3 + [(75, 0, 25)] * 2


def test_a_split_does_not_follow_the_order_of_the_source():
    """The test split is a random choice of the client's examples."""
    client = make_all(
        Pool(TASK, table(100, np.zeros(100, int), ["only"])), config_for("by-user", num_clients=1, num_new_clients=0)
    )[0]

    assert numbers(client.test) != sorted(numbers(client.test))
    assert max(numbers(client.test)) > 50


def test_more_clients_than_examples_is_refused_with_the_numbers():
    """30 clients need 60 examples."""
    with pytest.raises(DataError, match=r"at least 60 examples, 2 for each of 20 participating and 10 new .* has 59"):
        deal(Pool(TASK, table(59)), config_for("iid", num_clients=20, num_new_clients=10), 0)


def test_a_client_that_would_be_too_small_is_named_with_its_size():
    """One class of one example each: the client that gets a rare class cannot be judged."""
    labels = np.array([0] * 20 + [1])
    pool = Pool(TASK, Table(np.arange(21.0)[:, None], labels))

    with pytest.raises(DataError, match=r"'(client|new)-00\d' .* has 1 examples and needs at least 2"):
        deal(pool, config_for("classes", classes_per_client=1, num_clients=1, num_new_clients=1), 0)


def test_by_user_makes_each_user_a_client():
    """A client has the user's name and that user's examples only."""
    pool = Pool(TASK, table(50, np.arange(50) % 5, "abcde"))

    clients = make_all(pool, config_for("by-user"))

    assert sorted(c.client_id for c in clients) == list("abcde")
    for client in clients:
        rows = numbers(client.support) + numbers(client.validation) + numbers(client.test)
        assert {row % 5 for row in rows} == {"abcde".index(client.client_id)}
        assert len(rows) == 10


def test_by_user_chooses_among_more_users_by_the_seed():
    """Which users take part is a random choice."""
    pool = Pool(TASK, table(400, np.arange(400) % 20, [f"u{i}" for i in range(20)]))

    chosen = {tuple(c.client_id for c in make_all(pool, config_for("by-user"), seed)) for seed in range(5)}

    assert len(chosen) == 5


def test_fewer_users_than_clients_is_refused_with_the_numbers():
    """5 users are not 20 + 10 clients."""
    pool = Pool(TASK, table(50, np.arange(50) % 5, "abcde"))

    with pytest.raises(DataError, match=r"expected 30 .* users .*num-clients=20.*num-new-clients=10.* has 5;"):
        deal(pool, config_for("by-user", num_clients=20, num_new_clients=10), 0)


def test_users_too_small_to_be_judged_are_left_out_and_noted():
    """A user with one example is no client if enough others are there."""
    pool = Pool(TASK, table(51, [*(np.arange(50) % 5), 5], "abcdef"))

    dealt = deal(pool, config_for("by-user"), 0)

    assert "f" not in [dealt.make_client(index, torch.float64).client_id for index in range(5)]
    assert "of 6 users" in dealt.notes[0]
    assert "'f', which has 1 examples" in dealt.notes[0]


def test_a_user_too_small_is_named_if_it_is_needed():
    """The message says who is too small and how small."""
    pool = Pool(TASK, table(51, [*(np.arange(50) % 5), 5], "abcdef"))

    with pytest.raises(DataError, match="has 6, of which 1 are too small, such as 'f', which has 1 examples"):
        deal(pool, config_for("by-user", num_clients=4), 0)


def test_a_source_without_users_cannot_be_dealt_by_user():
    """The message offers the partitions that work."""
    with pytest.raises(DataError, match=r"by-user needs to know who made each example.*iid"):
        deal(Pool(TASK, table(50)), config_for("by-user"), 0)


def test_a_source_with_users_says_so_when_it_is_dealt_otherwise():
    """Somebody who forgot data.partition=by-user finds a note."""
    dealt = deal(Pool(TASK, table(50, np.arange(50) % 5, "abcde")), config_for("iid"), 0)

    assert "data.partition=by-user" in dealt.notes[0]


def test_by_user_keeps_the_sources_own_test_part_and_new_users():
    """Clients are judged on the user's own test examples; new clients are the source's new users."""
    pool = Pool(
        TASK,
        train=table(30, np.arange(30) % 3, "abc"),
        test=table(9, np.arange(9) % 3, "abc", first=100),
        new=table(20, np.arange(20) % 2, "xy", first=200),
    )

    clients = make_all(pool, config_for("by-user"))

    assert sorted(c.client_id for c in clients[:3]) == list("abc")
    assert sorted(c.client_id for c in clients[3:]) == list("xy")
    for client in clients[:3]:
        user = "abc".index(client.client_id)
        assert sorted(numbers(client.test)) == [100 + user, 103 + user, 106 + user]
        assert len(client.support) + len(client.validation) == 10
    for client in clients[3:]:
        assert min(numbers(client.support) + numbers(client.test)) >= 200
        assert len(client.support) + len(client.test) == 10


def test_a_user_without_test_examples_is_too_small():
    """Where the source has a test part, a client needs one example in each."""
    pool = Pool(TASK, table(30, np.arange(30) % 3, "abc"), test=table(4, [0, 0, 1, 1], "abc"))

    with pytest.raises(DataError, match="'c', which has 10 training and 0 test examples"):
        deal(pool, config_for("by-user", num_new_clients=0), 0)


def test_one_name_for_a_participating_and_a_new_user_is_refused():
    """Client ids key random streams and result files, so they must differ."""
    pool = Pool(TASK, table(30, np.arange(30) % 3, "abc"), new=table(20, np.arange(20) % 2, "cd"))

    with pytest.raises(DataError, match="'c' names two users"):
        deal(pool, config_for("by-user"), 0)


def test_other_partitions_leave_the_sources_test_part_alone():
    """iid, dirichlet and classes deal the training part and split it for each client."""
    pool = Pool(TASK, table(100), test=table(50, first=1000))

    clients = make_all(pool, config_for("iid"))

    rows = [row for c in clients for part in (c.support, c.validation, c.test) for row in numbers(part)]
    assert sorted(rows) == list(range(100))


def test_every_partition_of_the_default_source_deals_all_clients():
    """The digits can be dealt by every rule that does not need users."""
    for partition in ("iid", "dirichlet", "classes", "per-fedavg"):
        config = DataConfig(source="digits", partition=partition)

        federation = load_federation(config, seed=3, dtype=torch.float32, settings=Settings())

        assert len(federation.clients) == config.num_clients + config.num_new_clients


@pytest.mark.parametrize(("labels", "is_told"), [(np.arange(60) % 10, False), (np.arange(60) % 3, True)])
def test_new_users_with_other_labels_are_told_of(labels, is_told):
    """Where the source sets users apart, what they lose may be their labels; chance alone is not told."""
    rows = table(600, np.arange(600) % 3, "abc")
    new = Table(np.arange(1000.0, 1060.0)[:, None], labels, np.arange(60) % 2, ("x", "y"))

    notes = deal(Pool(TASK, rows, new=new), config_for("by-user"), 0).notes

    told = [note for note in notes if "total variation distance" in note]
    assert bool(told) == is_told
    assert not is_told or "distance 0.70" in told[0]


def test_new_clients_may_be_drawn_from_the_same_users():
    """With new-users=drawn the users that the source sets apart take no part."""
    pool = Pool(TASK, table(60, np.arange(60) % 5, "abcde"), new=table(20, np.arange(20) % 2, "xy", first=200))

    clients = make_all(pool, config_for("by-user", new_users="drawn"))

    assert [client.group for client in clients] == ["participating"] * 3 + ["new"] * 2
    assert {client.client_id for client in clients} == set("abcde")
