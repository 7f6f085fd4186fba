"""The ClientApp: answers who it is, trains τ meta steps, and reports adaptation curves.

Nothing but model arrays and aggregate metrics leaves a client, and statistics of its columns where it allows that. Of
the model that a run ends with, a client may keep its adapted copy (node configuration `personal-model`).
"""

from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from nufed.client.attending import attend, expected_params
from nufed.client.client_state import ClientState, check_state_file
from nufed.client.error_replies import without_data
from nufed.client.global_skill import global_curves
from nufed.client.own_gain import tell_own_gain
from nufed.client.personal_model import keep_after_run, personal_path
from nufed.client.personalize import adaptation_curves
from nufed.client.record_privacy import check_consent
from nufed.client.secure_aggregation import STAGES, check_train_message, masked, refuse_in_the_clear
from nufed.client.shots import shot_curves
from nufed.client.told_statistics import told_statistics
from nufed.client.training import on_device, trained
from nufed.common.secure_wire import is_secure
from nufed.common.settings import process_settings
from nufed.common.wire import (
    STATISTICS,
    ClientDescription,
    EvaluateReply,
    EvaluateRequest,
    TrainRequest,
    statistics_records,
)

app = ClientApp()


@app.query()
@without_data
def describe(message: Message, context: Context) -> Message:
    """Answer who this client is and how much data it has."""
    place = attend(message, context)
    data = place.data
    refuse_in_the_clear(place.config, context.node_config)
    personal_path(context.node_config)
    if data.group == "participating":
        check_consent(place.config, context.node_config)
        check_state_file(place, context.node_config)
    sizes = len(data.support), len(data.validation), len(data.test)
    if "data" in context.node_config and not place.shown.examples:
        sizes = 0, 0, 0
    is_grouped = place.is_trial and data.support.groups is not None
    return Message(ClientDescription(data.client_id, data.group, *sizes, is_grouped).to_records(), reply_to=message)


@app.query(STATISTICS)
@without_data
def statistics(message: Message, context: Context) -> Message:
    """Answer with statistics of this client's columns, if whoever runs it allows that."""
    told = told_statistics(context.run_config, context.node_config, process_settings())
    return Message(statistics_records(told), reply_to=message)


@app.train()
@without_data
def train(message: Message, context: Context) -> Message:
    """Answer with the client's model after τ meta steps, under masks where only the sum is to be known."""
    place = attend(message, context)
    check_train_message(message, place, context.node_config)
    check_consent(place.config, context.node_config)
    request = TrainRequest.from_records(message.content, expected_params(place))
    state = ClientState(place, message, context)
    if is_secure(message.content):
        return masked(message, context, request.params, lambda: trained(place, request, context.node_config, state))
    return Message(trained(place, request, context.node_config, state).to_records(), reply_to=message)


for _name, _answer in STAGES.items():
    app.query(_name)(without_data(_answer))


@app.evaluate()
@without_data
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the adaptation curves of the server's model on this client's held-out data."""
    place = attend(message, context)
    request = EvaluateRequest.from_records(message.content, expected_params(place))
    params = on_device(request.params)
    place = replace(place, kept=ClientState(place, message, context).before(request.round + 1))
    reply = EvaluateReply(0)
    if place.shown.evaluation:
        curves = adaptation_curves(place, params, all_metrics=request.all_metrics)
        curves |= shot_curves(place, params, request.shots)
        curves |= global_curves(place, params) if request.all_metrics else {}
        reply = EvaluateReply(len(place.data.test), curves)
    elif request.final and "data" in context.node_config:
        tell_own_gain(place, params)
    if request.final and not place.is_trial and (path := personal_path(context.node_config)):
        keep_after_run(place, params, path, context.node_config)
    return Message(reply.to_records(), reply_to=message)
