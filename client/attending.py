"""What a client does before it answers a message: it is at its workplace, and the server's frozen part is its own."""

import torch
from flwr.app import Context, Message, MessageType

from nufed.client.workplace import Workplace, start_run, workplace
from nufed.common.errors import WireError
from nufed.common.meta.objective import initial_params
from nufed.common.models.frozen import check_frozen
from nufed.common.params import Params, trained_parameters
from nufed.common.settings import process_settings
from nufed.common.wire import frozen_of, held_out_part


def attend(message: Message, context: Context) -> Workplace:
    """Return this client's workplace.

    A client that is held out of a trial has one for each part of its examples that it is asked about, to train at none.

    Raises:
        NufedError: it cannot be had, or the server's frozen part is another one; servers of other apps do not say.
    """
    settings = process_settings()
    if "data" in context.node_config:
        start_run(context.run_id)
    if torch.get_num_threads() != settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    part = held_out_part(message.content)
    place = workplace(context.run_config, context.node_config, settings, part)
    if part and (message.metadata.message_type == MessageType.TRAIN or not place.is_trial):
        raise WireError("a part of this client's examples is refused: only a trial judges models on parts")
    if (theirs := frozen_of(message.content)) is not None:
        check_frozen(place.frozen, theirs, "the server's model")
    return place


def expected_params(place: Workplace) -> Params:
    """Return a model of the names, shapes and types that the server's must have; only these are read."""
    return initial_params(dict(trained_parameters(place.model)), place.config.method)
