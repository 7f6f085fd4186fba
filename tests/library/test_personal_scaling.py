"""What a run scaled is scaled for a newcomer too, and undone in what the newcomer is told."""

import numpy as np
import pytest

import nufed
from nufed.common.config import RunConfig
from tests.common.data.parkinson import parkinson

PATIENTS = parkinson(12, 30)


@pytest.fixture(scope="module", params=["run", "local"])
def run(request):
    options = {"num_clients": 9, "num_new_clients": 3, "num_rounds": 4, "engine": "cohort", "progress": False}
    return nufed.simulate(PATIENTS, "mlp", data__target_scale=request.param, **options)


def test_predictions_and_errors_of_a_personal_model_are_in_the_unit_of_the_targets(run):
    """Scores of 5 to 55 from measures of 1e-5 to 1e4: nothing but raw numbers goes in or comes out."""
    measures, scores = PATIENTS["patient-03"]

    personal = nufed.personalize(run.model, measures[:20], scores[:20], steps=10)

    predicted = nufed.predict(personal, measures[20:])
    errors = np.abs(predicted - scores[20:])
    judged = nufed.evaluate(personal, measures[20:], scores[20:])
    level = np.abs(scores[:20].mean(0) - scores[20:]).mean()
    assert predicted.shape == (10, 2)
    assert errors.mean() < max(level, 5.0)
    assert judged.metrics["mae"] == pytest.approx(errors.mean(), rel=1e-5)
    assert judged.loss < 1.0  # of scaled values, as they were trained on


def test_a_model_that_knows_no_scale_yet_says_so(run):
    measures, scores = PATIENTS["patient-03"]

    if run.config.data.target_scale == "run":
        assert nufed.predict(run.model, measures).shape == (30, 2)
        return
    with pytest.raises(nufed.ConfigError, match="seen none"):
        nufed.predict(run.model, measures)
    unchanged = nufed.personalize(run.model, measures, scores, steps=0)
    assert np.isfinite(nufed.predict(unchanged, measures)).all()


@pytest.mark.parametrize(("keep", "is_shared"), [("best", True), ("always", False)])
def test_a_copy_that_fine_tuning_has_made_worse_is_not_returned_silently(run, keep, is_shared):
    measures, scores = PATIENTS["patient-03"]
    few, held_out = (measures[:20], scores[:20]), (measures[20:], scores[20:])
    start = nufed.personalize(run.model, *few, steps=0)

    with pytest.warns(UserWarning, match="worse than the shared one on 10 validation examples"):
        copy = nufed.personalize(run.model, *few, steps=3, lr=1.7, validation=held_out, keep=keep)

    assert np.array_equal(nufed.predict(copy, measures), nufed.predict(start, measures)) is is_shared
    with pytest.raises(nufed.ConfigError, match="best or always"):
        nufed.personalize(run.model, *few, keep="never")


def test_classes_are_predicted_as_probabilities():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(4, 20, 3))
    clients = {f"c{number}": (own, (own[:, 0] > 0).astype(int)) for number, own in enumerate(inputs)}
    run = nufed.simulate(clients, "linear", num_clients=4, num_rounds=1, progress=False)

    probabilities = nufed.predict(run.model, inputs[0])

    assert probabilities.sum(1) == pytest.approx(np.ones(20))
    accuracy = (probabilities.argmax(1) == clients["c0"][1]).mean()
    assert nufed.evaluate(run.model, *clients["c0"]).accuracy == pytest.approx(accuracy)


def test_a_complete_configuration_of_an_earlier_version_scales_nothing():
    """Its run folders, models and servers know no scaling; what a user writes is no complete configuration."""
    stored = RunConfig().model_dump(by_alias=True)
    for key in ("target-scale", "input-scale", "target-means", "target-scales", "support-examples"):
        del stored["data"][key]

    data = RunConfig.parse(stored).data

    assert (data.target_scale, data.input_scale) == ("none", "none")
    assert RunConfig.parse({"data.source": "npz:a.npz"}).data.target_scale == "auto"
