"""Nothing but model arrays and aggregate metrics leaves a client, whatever it is asked and whatever goes wrong."""

import re

import numpy as np
import pandas as pd
import pytest
from flwr.common.serde import recorddict_to_proto
from PIL import Image

import nufed.client.app
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError, RunError
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from tests.client.deployed import ask

TABLE = {
    "data.source": "private",
    "data.feature-names": "a,b,c,d,e",
    "data.class-names": "no,yes",
    "model.hidden-sizes": "7",
    "evaluation.num-adapt-steps": 5,
    "method.num-local-steps": 2,
}
ENCODINGS = (np.float16, np.float32, np.float64, np.uint8, np.int32, np.int64)


def csv(tmp_path):
    """Values that nothing but an example would hold."""
    rng = np.random.default_rng(7)
    frame = pd.DataFrame(rng.normal(100, 40, (100, 5)), columns=list("abcde"))
    frame["y"] = rng.choice(["no", "yes"], 100)
    frame.to_csv(tmp_path / "t.csv", index=False)
    return RunConfig().updated(TABLE), f"csv:{tmp_path}/t.csv?label=y"


def scaled_csv(tmp_path):
    run, spec = csv(tmp_path)
    return run, f"{spec}&scale=local&missing=mean"


def archive(tmp_path):
    rng = np.random.default_rng(8)
    np.savez(tmp_path / "t.npz", x=rng.normal(size=(100, 5)).astype(np.float32), y=rng.normal(size=(100, 2)))
    run = RunConfig().updated(
        {**TABLE, "data.class-names": "", "data.task": "regression", "data.num-outputs": 2, "method.inner-lr": 0.01}
    )
    return run, f"npz:{tmp_path}/t.npz"


def images(tmp_path):
    rng = np.random.default_rng(9)
    for name in ("no", "yes"):
        (tmp_path / name).mkdir()
        for index in range(50):
            Image.fromarray(rng.integers(0, 256, (6, 6), np.uint8)).save(tmp_path / name / f"{index:02d}.png")
    run = RunConfig().updated({**TABLE, "data.feature-names": "", "data.input-shape": "1,6,6"})
    return run, f"images:{tmp_path}"


@pytest.fixture(params=[csv, scaled_csv, archive, images], ids=lambda made: made.__name__)
def deployed(request, tmp_path):
    """A run's options and a node's configuration."""
    run, spec = request.param(tmp_path)
    return run, {"data": spec, "client-id": "site-a", "personal-model": str(tmp_path / "personal.safetensors")}


def initial_model(run, node_config):
    """Return the model that the server sends first."""
    place = workplace(run.flat(), node_config, Settings())
    return model_params(build_model(run.model, place.task, seed=run.seed))


def everything_that_leaves(run, node_config):
    """Return the bytes of all replies, as they go over the wire."""
    params = initial_model(run, node_config)
    replies = [
        ask("query", run, node_config),
        ask("train", run, node_config, params),
        ask("evaluate", run, node_config, params),
        ask("evaluate", run, node_config, params, final=True),
    ]
    assert not any(reply.has_error() for reply in replies)
    return b"".join(recorddict_to_proto(reply.content).SerializeToString() for reply in replies)


def encodings(values):
    """Return the bytes of an array in all number types that hold it, both byte orders."""
    for dtype in map(np.dtype, ENCODINGS):
        with np.errstate(all="ignore"):
            cast = values.astype(dtype)
        if np.allclose(cast.astype(np.float64), values, rtol=1e-2, atol=1e-2):
            yield cast.tobytes()
            yield cast.astype(dtype.newbyteorder()).tobytes()


def traces(run, node_config):
    """Return (what, bytes): rows, halves of rows, columns and labels of each split, prepared and as in the file."""
    place = workplace(run.flat(), node_config, Settings())
    for name in ("support", "validation", "test"):
        part = getattr(place.data, name)
        inputs, targets = part.inputs.double().flatten(1).numpy(), part.targets.double().numpy()
        versions = {"prepared": inputs}
        if place.preparation:
            versions["raw"] = inputs * np.array(place.preparation.scale) + np.array(place.preparation.shift)
        if len(place.task.input_shape) == 3:
            versions["pixels"] = (inputs * 255).round()
        for version, rows in versions.items():
            for index, row in enumerate(rows):
                for piece in (row, row[: len(row) // 2 + 1], row[len(row) // 2 :]):
                    yield from ((f"{version} row {index} of {name}", code) for code in encodings(piece))
            yield from ((f"{version} column of {name}", code) for column in rows.T for code in encodings(column))
        yield from ((f"labels of {name}", code) for code in encodings(targets))


def test_no_example_and_no_label_vector_leaves(deployed):
    """Not whole, not by halves, in no number type, from no message type."""
    run, node_config = deployed

    sent = everything_that_leaves(run, node_config)

    found = [what for what, code in traces(run, node_config) if code in sent]
    assert not found
    assert len(sent) > 1000


def test_the_search_would_find_them(deployed, monkeypatch):
    """A client that leaked a row, or its labels, among its metrics is caught."""
    run, node_config = deployed
    data = workplace(run.flat(), node_config, Settings()).data
    honest = nufed.client.app.adaptation_curves

    for leak in (data.test.inputs[3].flatten(), data.support.targets.flatten()):

        def leaky(place, params, leak=leak, **options):
            return {**honest(place, params, **options), "extra": leak.double().tolist()}

        monkeypatch.setattr(nufed.client.app, "adaptation_curves", leaky)
        sent = everything_that_leaves(run, node_config)

        assert any(code in sent for _, code in traces(run, node_config))


def test_what_leaves_is_what_is_documented(deployed):
    """Names of every number and text that a server gets."""
    run, node_config = deployed
    place = workplace(run.flat(), node_config, Settings())
    params = model_params(build_model(run.model, place.task, seed=run.seed))

    description, trained, judged = (
        ask(kind, run, node_config, params).content for kind in ("query", "train", "evaluate")
    )

    assert dict(description["config"]) == {"client-id": "site-a", "group": "participating"}
    assert set(description["metrics"]) == {"num-support", "num-validation", "num-test"}
    assert set(trained) == {"arrays", "metrics"}
    assert set(trained["arrays"]) == set(params)
    assert set(trained["metrics"]) == {
        *("num-examples", "loss", "growth", "gradient-evaluations", "hvps", "with-replacement", "seconds"),
    }
    kinds = ("test-loss", "validation-loss", "test-accuracy", "validation-accuracy")
    assert set(judged["metrics"]) <= {"num-examples", *kinds}
    assert all(len(judged["metrics"][kind]) == 6 for kind in kinds if kind in judged["metrics"])


def numbers_in(text):
    return set(re.findall(r"\d+\.\d+", text))


@pytest.mark.parametrize(("column", "told"), [("a", "column 'a'"), ("y", "label column")])
def test_errors_do_not_quote_the_data(tmp_path, column, told):
    """What is wrong is said by the run's own names and counts."""
    run, spec = csv(tmp_path)
    frame = pd.read_csv(tmp_path / "t.csv")
    frame[column] = [f"Ann-Smith-{value}" for value in frame[column]]
    frame.to_csv(tmp_path / "t.csv", index=False)

    with pytest.raises(NufedError, match=told) as caught:
        ask("query", run, {"data": spec, "client-id": "site-a"})

    assert "Ann-Smith" not in str(caught.value)
    assert not numbers_in(str(caught.value)) & numbers_in((tmp_path / "t.csv").read_text())


def test_what_a_library_raises_is_told_without_its_words(tmp_path, monkeypatch, caplog):
    """Its words may quote what it failed on; they are in the client's own log."""
    run, spec = csv(tmp_path)

    def fail(*_, **__):
        raise ValueError("could not use Ann-Smith-77")

    monkeypatch.setattr(nufed.client.app, "adaptation_curves", fail)
    params = initial_model(run, {"data": spec, "client-id": "site-a"})

    with pytest.raises(RunError, match=r"ValueError was raised \(app.py, line \d+\)") as caught:
        ask("evaluate", run, {"data": spec, "client-id": "site-a"}, params)

    assert "Ann-Smith" not in str(caught.value)
    assert "Ann-Smith-77" in caplog.text


def test_a_simulated_client_says_all(monkeypatch):
    """It has no data of its own, and whoever simulates wants to know."""

    def fail(*_, **__):
        raise ValueError("in words")

    monkeypatch.setattr(nufed.client.app, "adaptation_curves", fail)

    with pytest.raises(ValueError, match="in words"):
        ask("evaluate", RunConfig(), {"partition-id": 0}, initial_model(RunConfig(), {"partition-id": 0}))
