"""A personal model is the run's model after plain steps on the support split, and its file is enough to use it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import nufed.common.durable_file
from nufed.client.model_export import FORMATS, Exportable, export_model
from nufed.client.personal_model import (
    hash_params,
    load_personal_model,
    personal_path,
    personalize,
    personalize_after_run,
    predict,
    save_personal_model,
)
from nufed.client.verdict import judged_in_units
from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.data.private.preparation import Preparation
from nufed.common.durable_file import write_tensors
from nufed.common.errors import ConfigError, DataError, ModelError, RunError
from nufed.common.meta.adapt import adapt
from nufed.common.meta.meta_sgd import STEP_SIZE
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from tests.client.deployed import ask

RUN = RunConfig().updated({"data.num-clients": 4, "data.num-new-clients": 1, "evaluation.num-adapt-steps": 5})
NODE = {"data": "digits#1/4", "client-id": "x"}
TABLE = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "age,sex",
        "data.categories": "sex:f|m",
        "data.class-names": "no,yes",
        "model.hidden-sizes": "5",
    }
)


@pytest.fixture(scope="module")
def place():
    return workplace(RUN.flat(), NODE, Settings())


@pytest.fixture(scope="module")
def params(place):
    return model_params(build_model(RUN.model, place.task, seed=3))


def table(tmp_path):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(60, 9, 40), "sex": rng.choice(["f", "m"], 40)})
    frame.loc[3, "age"] = None
    frame["y"] = rng.choice(["no", "yes"], 40)
    frame.to_csv(tmp_path / "t.csv", index=False)
    return {"data": f"csv:{tmp_path}/t.csv?label=y&missing=mean&scale=local", "client-id": "a"}


def test_it_is_the_end_of_the_adaptation_curve(place, params):
    """S plain steps on the support split; before and after are judged on the test split."""
    personal = personalize(place, params)

    batch, test = place.data.support.as_batch(), place.data.test
    by_hand = list(adapt(place.adaptation_loss, params, [batch] * 5, RUN.method.inner_lr))[-1]
    assert all(torch.equal(personal.params[name], by_hand[name]) for name in by_hand)
    for judged, point in ((personal.before, params), (personal.after, by_hand)):
        found = judged_in_units(place.model, place.task, point, test, None)
        assert (judged.loss, judged.accuracy) == (found["loss"], found["accuracy"])
    assert personal.after.loss < personal.before.loss
    assert (personal.client_id, personal.num_steps, personal.step_size) == ("client-001", 5, 0.05)


def test_learned_step_sizes_adapt_it_and_are_not_part_of_it():
    """A run of Meta-SGD sends them beside its model; the personal model has the architecture's parameters alone."""
    run = RUN.updated({"method.step-sizes": "learned"})
    place = workplace(run.flat(), NODE, Settings())
    plain = model_params(build_model(run.model, place.task, seed=3))

    sizes, doubled = (
        personalize(place, {**plain, **{STEP_SIZE + name: torch.full_like(t, size) for name, t in plain.items()}})
        for size in (0.05, 0.1)
    )

    assert list(sizes.params) == list(plain)
    assert sizes.before == doubled.before
    assert sizes.after != doubled.after
    with pytest.raises(ModelError, match=STEP_SIZE):
        personalize(place, plain)


def test_the_test_split_does_not_touch_it(place, params):
    """Another test split gives the same model."""
    other = replace(place, data=replace(place.data, test=place.data.support))

    same, changed = personalize(place, params), personalize(other, params)

    assert hash_params(same.params) == hash_params(changed.params)
    assert same.after != changed.after


def test_the_file_gives_back_all_of_it(tmp_path):
    """Parameters bit for bit, options, numbers and preparation."""
    config = TABLE.updated({"evaluation.num-adapt-steps": 7, "evaluation.adapt-lr": 0.3})
    place = workplace(config.flat(), table(tmp_path), Settings())
    initial = model_params(build_model(config.model, place.task, seed=0))
    personal = personalize(place, initial)

    save_personal_model(tmp_path / "p.safetensors", personal)
    read = load_personal_model(tmp_path / "p.safetensors")

    assert hash_params(read.params) == hash_params(personal.params)
    assert replace(read, params={}) == replace(personal, params={})
    assert read.base_hash == hash_params(initial)
    assert read.preparation is not None


def test_the_file_holds_no_example(tmp_path):
    """Neither in its arrays nor in its metadata: arrays are the parameters, metadata has no row and no label."""
    place = workplace(TABLE.flat(), table(tmp_path), Settings())
    personal = personalize(place, model_params(build_model(TABLE.model, place.task, seed=0)))

    save_personal_model(tmp_path / "p.safetensors", personal)
    content = (tmp_path / "p.safetensors").read_bytes()

    rows = [*place.data.support.inputs, *place.data.test.inputs]
    assert not [row for row in rows if row.numpy().tobytes() in content]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert set(header) == {"__metadata__", *personal.params}
    assert set(json.loads(header["__metadata__"]["nufed"])) == {
        *("format", "version", "config", "task", "client", "steps", "step_size", "batch_size", "before", "after"),
        *("num_support", "num_test", "base_sha256", "preparation", "names"),
        *("target_scaling", "columns", "kept", "validation"),
    }


def test_a_deployed_client_keeps_its_copy_of_the_final_model_alone(tmp_path, place, params):
    """Other evaluations leave nothing; the answer to the server is the same either way."""
    node = {**NODE, "personal-model": str(tmp_path / "p.safetensors")}

    on_the_way = ask("evaluate", RUN, node, params)
    assert not list(tmp_path.iterdir())
    at_the_end = ask("evaluate", RUN, node, params, final=True)

    assert on_the_way.content == at_the_end.content == ask("evaluate", RUN, NODE, params, final=True).content
    kept = load_personal_model(tmp_path / "p.safetensors")
    assert hash_params(kept.params) == hash_params(personalize(place, params).params)
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path, place, params, monkeypatch):
    """Whole or not at all."""
    path = tmp_path / "p.safetensors"
    personalize_after_run(place, params, path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nufed.common.durable_file, "_sync", fail)

    with pytest.raises(RunError, match="No space left"):
        personalize_after_run(place, {name: 2 * tensor for name, tensor in params.items()}, path)

    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.safetensors"]


def test_a_path_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    """When the client says who it is."""
    for wrong in (tmp_path / "absent" / "p.safetensors", tmp_path):
        with pytest.raises(ConfigError, match="--personal-model"):
            personal_path({**NODE, "personal-model": str(wrong)})

    assert personal_path({}) is None


def test_what_a_killed_client_has_left_of_its_model_goes_when_it_starts_again(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left, being_written = (tmp_path / f".mine.{process}.part" for process in (ended.pid, os.getpid()))
    left.touch()
    being_written.touch()

    personal_path({**NODE, "personal-model": str(tmp_path / "mine")})

    assert list(tmp_path.iterdir()) == [being_written]


def test_a_model_of_another_run_is_refused(place, params):
    """With the first array that differs."""
    other = {**params, "1.weight": params["1.weight"][:, :3]}

    with pytest.raises(ModelError, match=r"'1\.weight' has shape"):
        personalize(place, other)


def test_adaptation_that_diverges_is_refused(params):
    """A file of NaN helps nobody."""
    place = workplace(
        RUN.updated({"evaluation.adapt-lr": 1000.0, "evaluation.num-adapt-steps": 60}).flat(), NODE, Settings()
    )

    with pytest.raises(ModelError, match=r"after 60 steps of size 1000 .*--lr"):
        personalize(place, {name: 1e6 * tensor for name, tensor in params.items()})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"format": "nufed-model-1"}, "format nufed-personal-1 .*found 'nufed-model-1'"),
        ({"format": "nufed-personal-1", "config": {}}, "incomplete"),
    ],
)
def test_a_file_that_is_no_personal_model_is_refused(tmp_path, params, metadata, message):
    """By format, then by content."""
    write_tensors(tmp_path / "p.safetensors", params, metadata)

    with pytest.raises(RunError, match=message):
        load_personal_model(tmp_path / "p.safetensors")


def test_predictions_are_probabilities_of_the_model_in_evaluation_mode(place, params):
    """In parts, for any number of examples."""
    inputs = place.data.test.inputs.repeat(40, 1, 1, 1)

    predicted = predict(place.model, place.task, params, inputs)

    assert len(inputs) > 2048
    assert torch.allclose(predicted.sum(1), torch.ones(len(inputs)))
    accuracy = (predicted[: len(place.data.test)].argmax(1) == place.data.test.targets).double().mean()
    assert float(accuracy) == judged_in_units(place.model, place.task, params, place.data.test, None)["accuracy"]


def exported(tmp_path, form):
    """A table's personal model, written as another format, and what it would compute itself."""
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    place = workplace(TABLE.flat(), table(tmp_path), Settings())
    personal = personalize(place, model_params(build_model(TABLE.model, place.task, seed=0)))
    model = build_model(TABLE.model, place.task, seed=9)
    what = Exportable(model, personal.params, place.task, personal.preparation)
    return what, export_model(what, form, tmp_path / "model"), tmp_path / "model"


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "state-dict"])
def test_an_exported_model_takes_the_tables_columns_and_gives_the_same_outputs(tmp_path, form):
    """The preparation is in the file: an empty cell and unscaled numbers are understood; any number of rows."""
    what, difference, path = exported(tmp_path, form)
    rows = torch.tensor([[61.0, 1, 0], [float("nan"), 0, 1], [40.0, 0, 1], [70.0, 1, 0], [55.5, 1, 0]])
    prepared = torch.from_numpy(what.preparation.apply(rows.double().numpy())).float()
    expected = predict(what.model.eval(), what.task, what.params, prepared)

    if form == "onnx":
        from onnx import load
        from onnx.reference import ReferenceEvaluator

        [outputs] = ReferenceEvaluator(load(str(path))).run(None, {"inputs": rows.numpy()})
        logits = torch.from_numpy(outputs)
    elif form == "torchscript":
        with pytest.warns(FutureWarning):
            logits = torch.jit.load(str(path))(rows)
    else:
        with path.open("rb") as file:
            logits = torch.export.load(file).module()(rows)

    assert difference < 1e-5
    assert torch.allclose(logits.softmax(1), expected, atol=1e-6)


def test_a_file_that_gives_other_outputs_is_not_left(tmp_path, monkeypatch):
    """Exporters have bugs; a wrong file is worse than none."""
    monkeypatch.setitem(FORMATS, "torch-export", lambda module, example, text: (b"file", lambda x: module(x) + 1))

    with pytest.raises(ModelError, match="differ by"):
        exported(tmp_path, "torch-export")

    assert not (tmp_path / "model").exists()


def test_a_model_that_cannot_be_exported_is_named(tmp_path, monkeypatch):
    """What the exporter said is kept."""

    def fail(*_):
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setitem(FORMATS, "torch-export", fail)

    with pytest.raises(ModelError, match=r"exportable as torch-export.*control flow"):
        exported(tmp_path, "torch-export")

    assert not (tmp_path / "model").exists()


def test_a_format_that_needs_a_package_says_which(tmp_path, monkeypatch):
    """And what to type; unknown ones list the known."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    what, _, _ = exported(tmp_path, "torch-export")

    with pytest.raises(ConfigError, match=r"needs onnx and onnxscript.*nufed\[onnx\]"):
        export_model(what, "onnx", tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="Known: onnx, state-dict, torch-export, torchscript"):
        export_model(what, "onxx", tmp_path / "m.onnx")

    assert not (tmp_path / "m.onnx").exists()


def test_a_preparation_survives_its_file():
    """NaN, which leaves a cell empty, too."""
    preparation = Preparation((1.0, float("nan")), (0.0, 2.0), (1.0, 3.0))

    read = Preparation.from_json(json.loads(json.dumps(preparation.to_json(), allow_nan=False)))

    assert repr(read) == repr(preparation)
    for wrong in ({}, {"fill": [1], "shift": [1], "scale": []}, {"fill": 1, "shift": [1], "scale": [1]}):
        with pytest.raises(ValueError, match="no preparation"):
            Preparation.from_json(wrong)


def test_a_client_says_which_group_it_belongs_to(tmp_path):
    """By its node's configuration; participating unless said otherwise."""
    node = table(tmp_path)

    groups = [ask("query", TABLE, {**node, **more}).content["config"]["group"] for more in ({}, {"group": "new"})]

    assert groups == ["participating", "new"]
    with pytest.raises(ConfigError, match="group=participating or group=new"):
        ask("query", TABLE, {**node, "group": "old"})


def test_nothing_trains_on_data_that_the_run_does_not_expect(tmp_path, params):
    """Every message is refused, not only the first."""
    node = table(tmp_path)
    run = TABLE.updated({"data.class-names": "no,maybe"})

    for kind in ("query", "train", "evaluate"):
        with pytest.raises(
            DataError, match=r"client 'a': expected the run's classes in the label column \(no, maybe\)"
        ):
            ask(kind, run, node, params)
