"""Which clients are connected is looked up anew when that, or a client's place, has changed; and not otherwise."""

import pytest

from nufed.common.wire import ClientDescription
from nufed.strategy.known_clients import KnownClients, Member


def member(name, node_id, group="participating", num_support=10):
    return Member(node_id, ClientDescription(name, group, num_support, 0, 0))


@pytest.fixture
def known():
    known = KnownClients()
    for each in (member("b", 2), member("a", 1), member("z", 26, "new")):
        known.enter(each)
    return known


class CountedNodes(set):
    """Counts how often somebody asks whether a node is there."""

    lookups = 0

    def __contains__(self, node_id):
        self.lookups += 1
        return super().__contains__(node_id)


def test_a_second_look_at_the_same_nodes_asks_for_none_of_them(known):
    here = CountedNodes({1, 2, 26})
    first = known.connected(here, ["participating"])
    looked = here.lookups

    second = known.connected(here, ["participating"])

    assert (list(first), second) == (["a", "b"], first)
    assert here.lookups == looked > 0


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda known: None, ["a", "b"]),
        (lambda known: known.enter(member("c", 3)), ["a", "b", "c"]),
        (lambda known: known.remove("a"), ["b"]),
        (lambda known: known.enter(member("a", 9)), ["b"]),
        (lambda known: known.enter(member("a", 1, "new")), ["b"]),
        (lambda known: known.enter(member("z", 26)), ["a", "b", "z"]),
    ],
)
def test_what_changes_who_is_found_is_found(known, change, expected):
    known.connected({1, 2, 3, 26}, ["participating"])

    change(known)

    assert list(known.connected({1, 2, 3, 26}, ["participating"])) == expected


def test_a_client_that_says_more_of_itself_is_given_as_it_is_now(known):
    known.connected({1, 2}, ["participating"])

    known.enter(member("a", 1, num_support=77))

    assert known.connected({1, 2}, ["participating"])["a"].description.num_support == 77


def test_nodes_that_come_and_go_are_noticed_and_nobody_changes_what_is_kept(known):
    found = known.connected({1, 2}, ["participating", "new"])
    with pytest.raises(TypeError, match="does not support item assignment"):
        found["c"] = found["a"]

    assert list(known.connected({1, 2}, ["participating", "new"])) == ["a", "b"]
    assert list(known.connected({2, 26}, ["participating", "new"])) == ["b", "z"]
