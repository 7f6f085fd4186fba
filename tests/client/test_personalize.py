"""Adaptation curves: from the server's model, on support, judged on test."""

from dataclasses import replace

import pytest
import torch

from nufed.client.personalize import adaptation_curves
from nufed.client.verdict import judged_in_units
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.examples import Examples
from nufed.common.meta.adapt import adapt
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings

CONFIG = RunConfig().updated({"data.num-clients": 4, "data.num-new-clients": 2, "evaluation.num-adapt-steps": 5})


def place_of(partition, config=CONFIG):
    return workplace(config.flat(), {"partition-id": partition, "num-partitions": 6}, Settings())


def initial(place):
    return model_params(build_model(place.config.model, place.task, seed=place.config.seed))


def test_the_curve_equals_manual_steps():
    place = place_of(0)

    curves = adaptation_curves(place, initial(place))

    batch = place.data.support.as_batch()
    points = adapt(place.adaptation_loss, initial(place), [batch] * 5, CONFIG.method.inner_lr)
    by_hand = [judged_in_units(place.model, place.task, point, place.data.test, None) for point in points]
    assert curves["test-loss"] == [judged["loss"] for judged in by_hand]
    assert curves["test-accuracy"] == [judged["accuracy"] for judged in by_hand]
    assert len(by_hand) == 6


def test_before_adaptation_the_step_size_does_not_matter():
    small, large = (
        adaptation_curves(place, initial(place))
        for place in (place_of(1, CONFIG.updated({"evaluation.adapt-lr": rate})) for rate in (0.01, 0.5))
    )

    assert small["test-loss"][0] == large["test-loss"][0]
    assert small["test-loss"][1] != large["test-loss"][1]


def test_mini_batch_adaptation_draws_from_the_clients_own_stream():
    config = CONFIG.updated({"evaluation.adapt-batch-size": 8})

    first, second, full = (
        adaptation_curves(place, initial(place)) for place in (place_of(2, config), place_of(2, config), place_of(2))
    )

    assert first == second
    assert first["test-loss"][1] != full["test-loss"][1]


def test_adaptation_never_reads_the_test_split():
    place = place_of(3)
    before = adaptation_curves(place, initial(place))["validation-loss"]

    spoiled = Examples(torch.full_like(place.data.test.inputs, float("nan")), place.data.test.targets)
    after = adaptation_curves(replace(place, data=replace(place.data, test=spoiled)), initial(place))

    assert after["validation-loss"] == before
    assert all(loss != loss for loss in after["test-loss"])


def test_clients_of_one_process_share_a_model_and_keep_their_data():
    first, again, other = place_of(0), place_of(0), place_of(1)

    assert first is again
    assert first.model is other.model
    assert first.data.client_id != other.data.client_id


@pytest.mark.parametrize("partition", [-1, 6, None])
def test_a_node_beyond_the_federation_is_told_how_many_there_are(partition):
    with pytest.raises(ConfigError, match="num-supernodes=6"):
        place_of(partition)


def test_dropout_is_on_in_training_and_off_in_adaptation():
    place = place_of(0, CONFIG.updated({"model.dropout": 0.5}))
    params, batch = initial(place), place.data.support.as_batch()

    losses = {float(place.adaptation_loss(params, batch)) for _ in range(3)}

    assert place.masks
    assert len(losses) == 1
    masked = type(batch)(batch.inputs, batch.targets, 1)
    assert float(place.training_loss(params, masked)) not in losses
    assert torch.isfinite(place.training_loss(params, masked))
