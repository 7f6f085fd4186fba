"""What a server that does not keep to the protocol gets from the clients as they are: nothing, and a reason."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from nufed.client.app import app as client_app
from nufed.common.errors import WireError
from nufed.common.privacy.secure import CohortKeys, DeliveredShares, SecureTask, Survivors
from nufed.common.secure_wire import TOLD
from nufed.deploy.simulation.simulated_grid import copy_records, take_turn
from tests.deploy.simulation.secure_federation import FailingGrid, config_of, one_round

VICTIM = 3


def stage_of(message):
    return message.metadata.message_type.removeprefix("query.")


def changing(stage, change):
    """Return a server that changes a stage's message to the victim."""

    def hook(message):
        if stage_of(message) == stage and message.metadata.dst_node_id == 1000 + VICTIM:
            message.content = change(message.content)
        return message

    return hook


def told(change):
    """Return a change of what the protocol says in a message."""

    def changed(records):
        config = dict(records.config_records["config"])
        config[TOLD] = change(config[TOLD])
        return RecordDict({**records, "config": ConfigRecord(config)})

    return changed


def lower_threshold(content):
    task = SecureTask.from_bytes(content)
    return SecureTask(**{**vars(task), "threshold": 3, "share_threshold": 3}).to_bytes()


def another_total(content):
    task = SecureTask.from_bytes(content)
    return SecureTask(**{**vars(task), "total_weight": task.total_weight + 1}).to_bytes()


def exchanged_keys(content):
    members = list(CohortKeys.from_bytes(content).members)
    names = [each.name for each in members]
    fields = {**vars(members[0]), "mask_key": b"k" * 32}
    other = type(members[0])(**fields)
    assert names[0] != names[VICTIM]
    return CohortKeys((other, *members[1:])).to_bytes()


def fewer_sharers(content):
    delivered = DeliveredShares.from_bytes(content)
    return DeliveredShares(delivered.sharers[:4], ()).to_bytes()


def without_it(content):
    survivors = Survivors.from_bytes(content)
    names = tuple(name for number, name in enumerate(survivors.names) if number != VICTIM)
    return Survivors(survivors.transcript, names).to_bytes()


def in_the_clear(records):
    config = {name: value for name, value in records.config_records["config"].items() if not name.startswith("secure")}
    return RecordDict({**records, "config": ConfigRecord(config)})


def another_model(records):
    name, arrays = next(iter(records.array_records.items()))
    changed = {key: torch.from_numpy(array.numpy().copy()) + 1 for key, array in arrays.items()}
    return RecordDict({**records, name: ArrayRecord(changed)})


def another_grid(records):
    config = dict(records.config_records["config"])
    config["secure-max-growth"] *= 2
    return RecordDict({**records, "config": ConfigRecord(config)})


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        ("secure_keys", told(lower_threshold), "Expected a sum of at least 4 of 7"),
        ("secure_keys", told(another_total), "signed"),
        ("secure_shares", told(exchanged_keys), "signed for this round"),
        ("train", another_model, "model that all clients of the round were promised"),
        ("train", another_grid, "encoding that all clients of the round were promised"),
        ("train", told(fewer_sharers), "at least 5 clients that shared, got 4"),
        ("secure_confirm", told(without_it), "among the survivors"),
    ],
)
def test_a_client_does_not_answer_what_it_should_not_and_the_others_go_on(stage, change, reason):
    result = one_round(config_of(), secure=True, hook=changing(stage, change))

    reasons = {**result.problems, **result.secure.late}
    assert len(reasons) == 1
    assert reason in next(iter(reasons.values()))
    assert result.secure.summed == (7 if stage == "secure_confirm" else 6)


def test_a_model_in_the_clear_is_not_given_in_a_run_that_promised_otherwise():
    with pytest.raises(WireError, match="asked for this client's model itself"):
        one_round(config_of(), secure=True, hook=changing("train", in_the_clear))


def test_a_client_told_other_options_than_the_others_is_in_no_sum_with_them(monkeypatch):
    """If the others trained with a step size of 0, the server would know their models, and so the victim's."""
    context_of = FailingGrid._context

    def told_differently(grid, node_id):
        context = context_of(grid, node_id)
        if node_id != 1000 + VICTIM:
            context.run_config = {**context.run_config, "method.local-lr": 1e-30}
        return context

    monkeypatch.setattr(FailingGrid, "_context", told_differently)
    result = one_round(config_of(), secure=True)

    assert result.secure.summed == 6
    assert "keys of 'client-003' itself" in result.problems["client-003"]


def test_two_lists_of_survivors_that_come_at_once_are_not_both_signed(monkeypatch):
    """The second message finds the node's state as it was before the first was answered."""
    turns_of, answers = FailingGrid._turns, []

    def shorter(content):
        survivors = Survivors.from_bytes(content)
        return Survivors(survivors.transcript, survivors.names[:6]).to_bytes()

    def impatient(grid, messages):
        for message in messages:
            before = copy_records(grid._states.get(message.metadata.dst_node_id, RecordDict()))
            yield from turns_of(grid, [message])
            if stage_of(message) == "secure_confirm" and message.metadata.dst_node_id == 1000 + VICTIM:
                context = grid._context(message.metadata.dst_node_id)
                context.state = before
                message.content = told(shorter)(message.content)
                answers.append(take_turn(client_app, message, context).reply)

    monkeypatch.setattr(FailingGrid, "_turns", impatient)
    result = one_round(config_of(), secure=True)

    assert result.secure.summed == 7
    assert "stage 'confirm' that was answered already" in answers[0].error.reason
