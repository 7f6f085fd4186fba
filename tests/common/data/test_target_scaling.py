"""A regression in raw units trains with the defaults: values to predict and inputs are scaled, and undone again."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import nufed
from nufed.common.config import RunConfig
from nufed.common.data import describe_task, load_federation
from nufed.common.data.pool import DealtFederation
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.target_scaling import TargetScaling, fit_target_scaling, rescaled, scale_targets, target_scale
from nufed.common.errors import ConfigError, NothingTrainedError
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.settings import Settings
from tests.common.data.parkinson import parkinson

SIZES = {"num_clients": 32, "num_new_clients": 10, "num_rounds": 6, "engine": "cohort", "progress": False}
VALUES = {"data.source": "private", "data.task": "regression", "data.feature-names": "a", "data.num-outputs": 2}


@pytest.mark.filterwarnings("ignore")
def test_scores_in_raw_units_train_with_the_defaults_and_diverge_without_scaling():
    """42 patients, eight measures from 1e-5 to 1e4, two scores of 5 to 55: what arrays of a study look like."""
    patients = parkinson()

    with pytest.raises(NothingTrainedError, match="NaN or infinite"):
        nufed.simulate(patients, "mlp", data__target_scale="none", data__input_scale="none", **SIZES)
    run = nufed.simulate(patients, "mlp", **SIZES)

    # Half the squared error of two scaled scores: 1 is what their means over all patients leave.
    assert run.summary["new"]["loss"][10] < 0.1
    assert run.summary["new"]["loss"][0] > 0.5


def test_values_that_each_client_scales_by_its_own_train_too():
    """The shared model then knows each client's level before any step."""
    run = nufed.simulate(parkinson(), "mlp", data__target_scale="local", **{**SIZES, "num_rounds": 2})

    assert run.summary["new"]["loss"][10] < 0.5


@pytest.mark.parametrize(
    "values",
    [
        [[5.0, 1e9], [55.0, 1e9 + 1], [30.0, 1e9 + 2]],
        [[7.25]],
        [[0.1]] * 3,
        [[0.0]] * 2,
        [[1e300], [-1e300], [5e299]],
        [[1e-300], [2e-300]],
        [[float(np.float32(1.1))], [float(np.float32(1.1))]],
    ],
    ids=["mixed", "one example", "constant", "zero", "huge", "tiny", "constant in float32"],
)
def test_scaled_values_are_of_size_one_and_come_back(values):
    targets = torch.tensor(values, dtype=torch.float64)
    scaling = fit_target_scaling(targets.numpy())

    scaled = scaling.apply(targets)

    assert bool(torch.isfinite(scaled).all())
    assert float(scaled.abs().max()) <= math.sqrt(2) + 1e-6
    torch.testing.assert_close(scaling.undo(scaled), targets, rtol=1e-12, atol=0)
    assert TargetScaling.from_json(scaling.to_json()) == scaling


def dealt(scale=1.0):
    """Two participating clients and a new one, whose support, validation and test values differ."""

    def make_client(index, dtype):
        def part(number, factor):
            values = (np.arange(number, dtype=np.float64) + 10 * index)[:, None] * factor
            return Examples(torch.zeros(number, 1, dtype=dtype), torch.from_numpy(values).to(dtype))

        return ClientData(
            f"c{index}", "new" if index == 2 else "participating", part(4, 1), part(2, scale), part(3, scale)
        )

    return DealtFederation(TaskInfo("regression", (1,), 1, target_shape=(1,)), 3, make_client)


def test_the_run_wide_scaling_is_of_the_participating_clients_support_splits_alone():
    """What is judged on, and new clients, have no part in it; and it is the pooled mean and deviation."""
    config = RunConfig().updated({"data.num-clients": 2, "data.num-new-clients": 1, "data.target-scale": "run"}).data
    pooled = np.array([0.0, 1, 2, 3, 10, 11, 12, 13])

    here, elsewhere = (scale_targets(dealt(scale), config).make_client(2, torch.float32) for scale in (1.0, 77.0))

    assert here.target_scaling == elsewhere.target_scaling
    assert here.target_scaling.means == pytest.approx((pooled.mean(),))
    assert here.target_scaling.scales == pytest.approx((pooled.std(),))
    expected = (np.arange(4) + 20 - pooled.mean()) / pooled.std()
    assert here.support.targets.flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert here.support.targets.dtype == torch.float32


def test_a_difference_that_float32_would_lose_is_kept():
    """float32 knows every eighth number only, where values are around a hundred million."""
    config = RunConfig().updated({"data.target-scale": "local"}).data

    def make_client(_index, dtype):
        part = Examples(
            torch.zeros(3, 1), torch.tensor([[1e8], [1e8 + 100], [1e8 + 200]], dtype=torch.float64).to(dtype)
        )
        return ClientData("a", "participating", part, part, part)

    client = scale_targets(DealtFederation(TaskInfo("regression", (1,), 1), 1, make_client), config).make_client(
        0, torch.float32
    )

    assert client.support.targets.flatten().tolist() == pytest.approx([-math.sqrt(1.5), 0, math.sqrt(1.5)])


@pytest.mark.parametrize(
    ("options", "kind", "way"),
    [
        ({"data.source": "sinusoid"}, "regression", "none"),
        ({"data.source": "quadratic"}, "regression", "none"),
        ({"data.source": "npz:a.npz"}, "regression", "run"),
        ({"data.source": "python:a:b"}, "regression", "run"),
        ({"data.source": "private"}, "regression", "local"),
        ({"data.source": "private", "data.target-means": "1,2", "data.target-scales": "1,2"}, "regression", "run"),
        ({"data.source": "sinusoid", "data.target-scale": "local"}, "regression", "local"),
        ({}, "classification", "none"),
    ],
)
def test_what_is_scaled_by_default(options, kind, way):
    task = TaskInfo(kind, (1,), 2)

    assert target_scale(RunConfig().updated(options).data, task) == way


def prepare(config):
    """What the server does at the start of a run, and a simulation after it."""
    describe_task(config.data, Settings())
    load_federation(config.data, seed=0, dtype=torch.float32, settings=Settings())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data.target-scale": "run"}, "for values to predict, but the task is classification"),
        ({**VALUES, "data.target-scale": "run"}, "needs data.target-means"),
        ({**VALUES, "data.target-means": "1", "data.target-scales": "1"}, "each of the 2 values to predict, but got 1"),
        ({**VALUES, "data.target-means": "1,2"}, "got 2 and 0"),
        ({**VALUES, "data.target-means": "1,2", "data.target-scales": "1,0"}, "above 0"),
        ({**VALUES, "data.target-means": "1,x", "data.target-scales": "1,1"}, "comma-separated numbers"),
        ({**VALUES, "data.target-means": "1,inf", "data.target-scales": "1,1"}, "finite"),
        (
            {**VALUES, "data.target-scale": "none", "data.target-means": "1,2", "data.target-scales": "1,1"},
            "contradicts data.target-means",
        ),
        ({"data.input-scale": "run"}, "row of numbers"),
    ],
)
def test_what_cannot_be_scaled_is_refused_by_name(options, words):
    with pytest.raises(ConfigError, match=words):
        prepare(RunConfig().updated(options))


def test_a_client_of_its_own_scales_by_what_the_run_gives_or_by_its_own_support_split(tmp_path):
    """Named columns and two values to predict, in a file that nobody else sees."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=30), "motor": rng.normal(20, 5, 30), "total": rng.normal(30, 9, 30)})
    frame.to_csv(tmp_path / "mine.csv", index=False)
    member = Membership(f"csv:{tmp_path}/mine.csv?label=motor,total", "clinic")
    given = {"data.target-means": "20,30", "data.target-scales": "5,9"}

    own = load_private(member, RunConfig().updated(VALUES), Settings()).data
    run = load_private(member, RunConfig().updated({**VALUES, **given}), Settings()).data

    assert float(own.support.targets.mean(0).abs().max()) < 1e-6
    assert float((own.support.targets.std(0, correction=0) - 1).abs().max()) < 1e-6
    assert run.target_scaling == TargetScaling((20.0, 30.0), (5.0, 9.0))
    torch.testing.assert_close(
        own.target_scaling.undo(own.test.targets), run.target_scaling.undo(run.test.targets), rtol=1e-6, atol=1e-4
    )
    again = rescaled(own, run.target_scaling)
    torch.testing.assert_close(again.test.targets, run.test.targets, rtol=1e-5, atol=1e-5)
