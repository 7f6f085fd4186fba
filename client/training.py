"""A client's training in one round, from the server's model to the reply."""

import time
from collections.abc import Mapping

from nufed.client.client_state import ClientState
from nufed.client.record_privacy import train_privately
from nufed.client.train_reply import train_reply
from nufed.client.workplace import Workplace
from nufed.common.config import Scalar
from nufed.common.meta.client_state import personal_steps, update_with_state
from nufed.common.meta.local_update import Stream, local_update
from nufed.common.params import Params
from nufed.common.settings import process_settings
from nufed.common.wire import TrainReply, TrainRequest


def trained(
    place: Workplace, request: TrainRequest, node_config: Mapping[str, Scalar], state: ClientState
) -> TrainReply:
    """Return a client's reply after its τ meta steps; record-level privacy is accounted for before they are made.

    What the client keeps for its next round is written down first.
    """
    started = time.perf_counter()
    stream = Stream(place.config.seed, place.data.client_id, request.round, place.masks)
    params, method, cost = on_device(request.params), place.config.method, None
    before, own = state.before(request.round), None
    if place.config.privacy.dp == "record":
        update, cost = train_privately(place, params, stream, node_config)
        if method.client_state == "model":  # which is never sent, so that it needs no noise
            own, _ = personal_steps(place.training_loss, params, place.data.support, method, stream, kept=before)
    elif method.client_state == "none":
        update = local_update(place.training_loss, params, place.data.support, method, stream)
    else:
        update, own = update_with_state(place.training_loss, params, place.data.support, method, stream, kept=before)
    if own is not None:
        state.keep(request.round, own)
    if place.own:
        place.own.remember()
    return train_reply(update, place.config, len(place.data.support), time.perf_counter() - started, cost)


def on_device(params: Params) -> Params:
    """Return parameters on this process's device."""
    device = process_settings().device
    return {name: tensor.to(device) for name, tensor in params.items()}
