"""A deployed client that is held out of a trial: what it answers about parts of its examples, and what it refuses."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from nufed.client.app import app
from nufed.client.personal_model import load_personal_model
from nufed.client.workplace import start_run, workplace
from nufed.common.config import RunConfig
from nufed.common.data.as_new import DATA_SEED, SEARCH
from nufed.common.errors import ConfigError, DataError, RunError, WireError
from nufed.common.methods import find_method
from nufed.common.params import model_params
from nufed.common.settings import process_settings
from nufed.common.wire import CONFIG, HELD_OUT, ClientDescription, EvaluateRequest, TrainRequest

RUN = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "age,dose",
        "data.class-names": "no,yes",
        "data.validation-fraction": 0.2,
        "seed": 11,
    }
)
TRIAL = {**RUN.flat(), DATA_SEED: 3, SEARCH: "one"}


@pytest.fixture
def node(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["age", "dose"])
    frame["patient"], frame["y"] = np.arange(60) // 4, np.where(frame["dose"] > 0, "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    start_run.cache_clear()
    personal = tmp_path / "personal.safetensors"
    return {"data": f"csv:{tmp_path}/t.csv?label=y", "client-id": "a", "personal-model": str(personal)}


def ask(node, kind, run=TRIAL, *, part=None, params=None, final=False):
    """Return the client's reply; what it raises comes out."""
    content = RecordDict({CONFIG: ConfigRecord()})
    if kind == MessageType.TRAIN:
        content = TrainRequest(params, 1).to_records()
    elif kind == MessageType.EVALUATE:
        content = EvaluateRequest(params, 1, final).to_records()
    if part:
        content[CONFIG][HELD_OUT] = list(part)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    message = Message(content, 7, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message=message, context=Context(5, 7, dict(node), RecordDict(), dict(run)))


def described(node, **more):
    return ClientDescription.from_records(ask(node, MessageType.QUERY, **more).content)


def params_of(node):
    return model_params(workplace(TRIAL, node, process_settings()).model)


def test_all_trials_divide_examples_by_the_searchs_seed_and_parts_are_new_clients(node):
    own = workplace(RUN.updated({"seed": 3}).flat(), node, process_settings()).data
    other = workplace(RUN.flat(), node, process_settings()).data

    in_trial = workplace(TRIAL, node, process_settings())
    whole, part = described(node), described(node, part=(2, 3))

    assert in_trial.data.test.inputs.tolist() == own.test.inputs.tolist() != other.test.inputs.tolist()
    assert in_trial.config.seed == 11
    assert (whole.client_id, whole.group, whole.num_support) == ("a", "participating", len(own.support))
    assert (part.client_id, part.group, part.num_validation) == ("a (2 of 3)", "new", len(own.validation))
    assert (part.num_support, part.num_test) == (whole.num_support, whole.num_test)
    assert not whole.is_grouped
    grouped = {**node, "data": node["data"] + "&group=patient"}
    assert described(grouped).is_grouped


@pytest.mark.parametrize("part", [(0, 3), (4, 3), (1, 6), (1, 2, 3), ("1", "2")])
def test_a_part_that_there_is_not_is_refused(node, part):
    with pytest.raises(WireError, match="part"):
        described(node, part=part)


@pytest.mark.parametrize("run", [TRIAL, RUN.flat()])
def test_a_part_is_asked_about_in_trials_alone_and_never_trained_on(node, run):
    kind = MessageType.TRAIN if DATA_SEED in run else MessageType.EVALUATE

    with pytest.raises(WireError, match="part"):
        ask(node, kind, run, part=(1, 3), params=params_of(node))


def test_a_new_client_one_of_a_private_run_and_one_whose_examples_belong_together_have_no_parts(node):
    grouped = {**node, "data": node["data"] + "&group=patient"}

    assert described(grouped, part=(1, 1)).client_id == "a (1 of 1)"
    for other in ({**node, "group": "new"}, grouped):
        with pytest.raises(WireError, match="part"):
            described(other, part=(1, 2))
    private = {**RUN.updated({"privacy.dp": "client", "privacy.noise": 1.0}).flat(), DATA_SEED: 3}
    with pytest.raises(WireError, match="part"):
        described(node, run=private, part=(1, 2))


def test_data_are_read_once_for_all_trials_of_a_search_and_anew_for_any_other_run(node):
    described(node)
    Path(node["data"].removeprefix("csv:").partition("?")[0]).unlink()
    other = {**TRIAL, **RUN.updated({"seed": 12, "method.inner-lr": 0.3}).flat(), SEARCH: "one"}

    assert described(node, run=other, part=(2, 3)).client_id == "a (2 of 3)"
    for run in ({**TRIAL, SEARCH: "two"}, RUN.flat()):
        with pytest.raises((DataError, RunError)):
            described(node, run=run)


def test_no_personal_model_is_kept_of_a_trial_whatever_the_server_says(node):
    reply = ask(node, MessageType.EVALUATE, part=(1, 3), params=params_of(node), final=True)
    ask(node, MessageType.EVALUATE, params=params_of(node), final=True)
    path = Path(node["personal-model"])

    assert reply.content.metric_records
    assert not path.exists()
    start_run.cache_clear()
    ask(node, MessageType.EVALUATE, RUN.flat(), params=params_of(node), final=True)
    assert load_personal_model(path)


def test_a_trial_of_a_method_with_client_state_needs_a_file_for_it(node):
    ditto = {**RUN.updated(find_method("ditto").options()).flat(), DATA_SEED: 3}
    bare = {name: value for name, value in node.items() if name != "personal-model"}

    with pytest.raises(ConfigError, match="--state FILE"):
        described(bare, run=ditto)
    assert described(node, run=ditto).client_id == "a"
