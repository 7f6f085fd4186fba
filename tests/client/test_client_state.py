"""What a deployed client keeps between rounds stays with it, survives it, and belongs to one run."""

import logging

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.client.app import app
from nufed.client.client_state import client_state_path
from nufed.client.personal_model import load_personal_model
from nufed.client.workplace import forget_workplaces, workplace
from nufed.common.client_states import RUN_ID, StateFile
from nufed.common.config import RunConfig
from nufed.common.durable_file import write_tensors
from nufed.common.errors import ConfigError
from nufed.common.methods import METHODS
from nufed.common.params import model_params
from nufed.common.settings import process_settings
from nufed.common.wire import EvaluateReply, EvaluateRequest, TrainReply, TrainRequest
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import MODEL_FORMAT

SMALL = {"model.hidden-sizes": "8", "data.num-clients": 4, "data.num-new-clients": 1, "evaluation.num-adapt-steps": 5}


def configured(name, **options):
    return RunConfig().updated({**METHODS[name].options(), **SMALL, **options})


@pytest.fixture
def node(tmp_path):
    return {"data": "digits#0/4", "client-id": "ward-3", "state": str(tmp_path / "ward.split")}


def ask(kind, run, node, params, number, *, run_id="a", context=None):
    """Return the client's answer to a round of a run, from a process that has just started unless it has a context."""
    forget_workplaces()
    content = {"train": TrainRequest, "evaluate": EvaluateRequest}[kind](params, number).to_records()
    content["told"] = ConfigRecord({RUN_ID: run_id})
    context = context or Context(1, 7, dict(node), RecordDict(), run.flat())
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    reply = app(message=Message(content, 7, kind), context=context)
    return (TrainReply if kind == "train" else EvaluateReply).from_records(reply.content)


def train(run, node, number, **options):
    return ask("train", run, node, initial(run, node), number, **options).params


def initial(run, node):
    return model_params(workplace(run.flat(), node, process_settings()).model)


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["fedrep", "fedper", "ditto", "pfedme"])
def test_it_survives_the_process_and_nothing_of_it_is_sent(name, node):
    """A client that was killed and started again goes on as one that was not; in another run it starts anew."""
    run = configured(name)
    context = Context(1, 7, {"data": node["data"], "client-id": node["client-id"]}, RecordDict(), run.flat())

    killed = [train(run, node, number) for number in (1, 2, 3)]
    lasting = [train(run, node, number, context=context) for number in (1, 2, 3)]

    assert all(equal(one, other) for one, other in zip(killed, lasting, strict=True))
    stored = StateFile.read(client_state_path(node))
    assert list(stored.versions) == [2, 3]
    kept, sent = stored.versions[3], initial(run, node)
    assert not any(torch.equal(kept[name], sent[name]) for name in kept)
    if run.method.client_state == "head":
        assert list(kept) == ["3.weight", "3.bias"]
        assert all(torch.equal(killed[2][name], sent[name]) for name in kept)
    after, before = (ask("evaluate", run, node, sent, 3, run_id=each).metrics["test-loss"] for each in ("a", "b"))
    assert after[0] < before[0]


def test_a_round_that_is_asked_for_again_starts_where_it_started(node):
    """As a server does that was killed before its checkpoint of the round."""
    run = configured("fedrep")
    first = [train(run, node, number) for number in (1, 2)]
    before = client_state_path(node).read_bytes()

    again = train(run, node, 2)

    assert equal(again, first[1])
    assert client_state_path(node).read_bytes() == before


def test_a_file_of_another_run_is_replaced_and_more_rounds_are_no_other_run(node, caplog):
    run = configured("fedrep")
    first = train(run, node, 1)
    second = train(run.updated({"federation.num-rounds": 99}), node, 2)

    with caplog.at_level(logging.WARNING):
        other = train(run, node, 2, run_id="b")

    assert "is of another run: this run starts anew" in caplog.text
    assert not equal(other, second)
    assert list(StateFile.read(client_state_path(node)).versions) == [2]
    assert not equal(first, second)


@pytest.mark.parametrize("how", ["cut", "changed", "other-model", "other-client", "strange"])
def test_a_file_that_does_not_fit_is_refused_before_it_is_used(how, node, caplog):
    run, path = configured("fedrep"), client_state_path(node)
    train(run, node, 1)
    content = path.read_bytes()
    if how == "cut":
        path.write_bytes(content[:-5])
    elif how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "other-model":
        run = run.updated({"model.hidden-sizes": "9"})
    elif how == "other-client":
        node = {**node, "data": "digits#1/4"}
    else:
        path.write_text("notes")

    with pytest.raises(ConfigError, match=r"this client's own state \(method\.client-state\) is"):
        train(run, node, 2)

    assert str(path) in caplog.text
    if how not in ("other-model", "other-client"):
        assert path.read_bytes() != content


def test_it_has_no_part_in_a_method_that_keeps_nothing(node):
    train(configured("fedavg"), node, 1)

    assert not client_state_path(node).exists()


def test_a_personal_model_made_later_starts_from_what_the_client_kept(node, tmp_path, capsys):
    """By `nufed personalize`: from its own head where its file is named, else from the server's, and says so."""
    run = configured("fedrep")
    train(run, node, 1)
    kept, model = StateFile.read(client_state_path(node)).versions[1], tmp_path / "model.safetensors"
    metadata = {"format": MODEL_FORMAT, "round": 1, "config": run.model_dump(by_alias=True)}
    write_tensors(model, initial(run, node), metadata)
    own = ["--client-state", str(client_state_path(node))]
    command = ["personalize", "--model", str(model), "--data", node["data"], "--name", "ward-3", "--steps", "0"]
    command += ["--out", str(tmp_path / "p.safetensors"), "--force"]

    assert main(command) == 0
    without, said = load_personal_model(tmp_path / "p.safetensors").params, capsys.readouterr().out
    assert main([*command, *own]) == 0
    found = load_personal_model(tmp_path / "p.safetensors").params
    refused = main([*command[:4], "digits#1/4", *command[5:], *own])

    assert equal(without, initial(run, node))
    assert "starts from the run's model, as a new client does" in " ".join(said.split())
    assert {name for name in found if not torch.equal(found[name], without[name])} == kept.keys()
    assert equal({name: found[name] for name in kept}, kept)
    assert (refused, main([*command, "--client-state", str(model)])) == (ConfigError.exit_code, ConfigError.exit_code)
    assert "it is of another client" in " ".join(capsys.readouterr().err.split())
