"""A personal model in use: scaled values come back, empty cells are met, a worse model is told, exports describe it."""

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors
import torch
from safetensors.torch import load_file

from nufed.client.keeping import Judged, Primary, choose
from nufed.client.model_description import description_path
from nufed.client.personal_model import load_personal_model
from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.durable_file import write_tensors
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import MODEL_FORMAT

SCORES = RunConfig().updated(
    {
        "data.source": "private",
        "data.task": "regression",
        "data.num-outputs": 2,
        "data.feature-names": "age,sex,jitter",
        "data.categories": "sex:f|m",
        "model.hidden-sizes": "8",
        "method.inner-lr": 0.1,
        "evaluation.num-adapt-steps": 60,
    }
)
SPEC = "csv:t.csv?label=motor,total&scale=local&missing=drop"


@pytest.fixture(autouse=True)
def _clinic(tmp_path, monkeypatch):
    """A run's model, and a table of scores in raw units of which one row in ten has an empty cell."""
    monkeypatch.chdir(tmp_path)
    model = build_model(SCORES.model, describe_task(SCORES.data, Settings()), seed=0)
    metadata = {"format": MODEL_FORMAT, "round": 0, "config": SCORES.model_dump(by_alias=True)}
    write_tensors(tmp_path / "run.safetensors", model_params(model), metadata)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(65, 8, 80).round(1), "sex": rng.choice(["f", "m"], 80)})
    frame["jitter"] = rng.uniform(1e-3, 9e-3, 80)
    frame["motor"] = (frame["age"] - 45 + 3 * (frame["sex"] == "m")).round(3)
    frame["total"] = (1.3 * frame["motor"] + 1000 * frame["jitter"]).round(3)
    frame.loc[::10, "age"] = None
    frame.to_csv("t.csv", index=False)


def personalize(*more):
    return main(["personalize", "--model", "run.safetensors", "--data", SPEC, "--force", *more])


def predicted(capsys, *more, model="personal.safetensors"):
    capsys.readouterr()
    code = main(["predict", "--model", model, "--data", "csv:t.csv?label=motor,total", *more])
    printed = capsys.readouterr()
    return code, list(csv.DictReader(io.StringIO(printed.out))), printed.err


def test_predictions_are_in_the_unit_of_the_file_and_empty_cells_are_no_dead_end(capsys):
    """The model was made with missing=drop: nothing filled a cell, and now a cell is empty."""
    assert personalize() == 0

    code, filled, told = predicted(capsys)
    dropped_code, dropped, told_of_dropped = predicted(capsys, "--missing", "drop")

    assert (code, dropped_code) == (0, 0)
    assert [int(row["row"]) for row in filled] == list(range(1, 81))
    assert [int(row["row"]) for row in dropped] == [number for number in range(1, 81) if number % 10 != 1]
    assert "8 of 80 rows have an empty cell that the model has no rule for" in told
    assert "8 of 80 rows have an empty cell and are left out" in told_of_dropped
    errors = [abs(float(row["prediction_1"]) - float(row["target_1"])) for row in dropped]
    assert float(np.mean(errors)) < 3.0  # of scores whose deviation is 8
    truth = pd.read_csv("t.csv")["motor"]
    assert [float(row["target_1"]) for row in filled] == pytest.approx(truth.to_list())


def test_a_row_whose_cell_is_filled_is_predicted_as_the_middle_of_what_was_adapted_to(capsys):
    personalize()
    preparation = load_personal_model("personal.safetensors").preparation
    frame = pd.read_csv("t.csv").iloc[[0]]
    frame.to_csv("t.csv", index=False)
    _, with_hole, _ = predicted(capsys)

    frame.fillna({"age": preparation.spare[0]}).to_csv("t.csv", index=False)
    _, whole, told = predicted(capsys)

    assert "empty" not in told
    assert with_hole[0]["prediction_1"] == whole[0]["prediction_1"]


def test_a_shared_model_whose_values_each_client_scales_cannot_predict_alone(capsys):
    assert predicted(capsys, model="run.safetensors")[0] == 2


@pytest.mark.parametrize(
    ("keep", "kept", "words"),
    [
        ("best", "shared", "the shared model is kept"),
        ("always", "personal", "it is kept all the same"),
    ],
)
def test_a_personal_model_that_is_worse_on_validation_examples_is_not_kept_silently(capsys, keep, kept, words):
    """Steps that are too long make it worse and leave it finite."""
    code = personalize("--keep", keep, "--validation", "0.3", "--lr", "1.7", "--steps", "3")

    shown, personal = capsys.readouterr().out, load_personal_model("personal.safetensors")
    assert code == 0
    assert "The personal model is worse than the shared one on " in shown
    assert words in shown
    assert personal.choice.kept == kept
    assert personal.choice.after.loss > personal.choice.before.loss
    assert f"{personal.choice.num_examples} validation examples" in shown
    assert personal.num_support + personal.choice.num_examples + personal.num_test == 72  # rows without an empty cell
    start = load_file("run.safetensors")
    assert all(torch.equal(personal.params[name], start[name]) for name in start) == (kept == "shared")


def test_whether_a_better_model_was_judged_is_said(capsys):
    personalize("--keep", "best")
    judged = capsys.readouterr().out
    personalize()
    unjudged = capsys.readouterr().out

    assert "worse" not in judged
    assert "cannot be judged" not in judged
    assert "There are no validation examples, so that it cannot be judged" in unjudged


@pytest.mark.parametrize(
    ("primary", "before", "after", "is_worse"),
    [
        (Primary("auroc", lower_is_better=False), 0.8, 0.7, True),
        (Primary("auroc", lower_is_better=False), 0.8, 0.8, False),
        (Primary("mae"), 3.0, 2.0, False),
        (Primary("mae"), 3.0, 4.0, True),
        (Primary("mae"), math.nan, 4.0, True),  # by the loss, which is higher
    ],
)
def test_models_are_compared_by_the_primary_metric_and_by_the_loss_where_it_is_undefined(
    primary, before, after, is_worse
):
    models = Judged(1.0, {primary.name: before}), Judged(1.5, {primary.name: after})

    assert choose(*models, 9, primary, "best").kept == ("shared" if is_worse else "personal")
    assert bool(choose(*models, 9, primary, "always").told) is is_worse


def table_by(description, path):
    """Raw rows of a file as a description says, by it alone: [N, D], NaN for an empty cell."""
    lines = list(csv.DictReader(io.StringIO(Path(path).read_text(encoding="utf-8"))))
    columns = []
    for entry in sorted(description["inputs"], key=lambda entry: entry["position"]):
        cells = [line[entry["column"]] for line in lines]
        known = entry["category"]
        columns.append([math.nan if cell == "" else float(cell if known is None else cell == known) for cell in cells])
    return np.array(columns).T


@pytest.mark.parametrize("form", ["torch-export", "torchscript", "onnx", "state-dict"])
def test_an_exported_model_fed_by_its_description_alone_gives_the_predictions(capsys, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxscript")
    personalize()
    _, expected, _ = predicted(capsys)

    code = main(["export", "--model", "personal.safetensors", "--format", form, "--out", "model.bin"])

    description = json.loads(description_path(tmp_path / "model.bin").read_text())
    rows = table_by(description, "t.csv")
    outputs = run(form, tmp_path / "model.bin", description, rows)
    assert code == 0
    assert description["in_model"] == (form != "state-dict")
    wanted = [[float(row["prediction_1"]), float(row["prediction_2"])] for row in expected]
    np.testing.assert_allclose(outputs, wanted, rtol=2e-5)


def run(form, path, description, rows):
    """What whoever has the file and its description does."""
    inputs = torch.from_numpy(rows).to(getattr(torch, description["dtype"]))
    if form == "torch-export":
        extra = {"nufed.json": ""}
        with path.open("rb") as file:
            outputs = torch.export.load(file, extra_files=extra).module()(inputs)
        assert json.loads(extra["nufed.json"]) == description
        return outputs.detach().numpy()
    if form == "torchscript":
        extra = {"nufed.json": ""}
        with pytest.warns(FutureWarning):
            outputs = torch.jit.load(str(path), _extra_files=extra)(inputs)
        assert json.loads(extra["nufed.json"]) == description
        return outputs.detach().numpy()
    if form == "onnx":
        from onnx import load
        from onnx.reference import ReferenceEvaluator

        loaded = load(str(path))
        assert json.loads(loaded.metadata_props[0].value) == description
        return ReferenceEvaluator(loaded).run(None, {"inputs": inputs.numpy()})[0]
    fill, shift, scale = (
        np.array([entry[key] for entry in description["inputs"]]) for key in ("fill", "shift", "scale")
    )
    prepared = (np.where(np.isnan(rows), fill, rows) - shift) / scale
    with safetensors.safe_open(str(path), "pt") as file:
        assert json.loads(file.metadata()["nufed"]) == description
    network = build_model(SCORES.model, describe_task(SCORES.data, Settings()), seed=1).eval()
    network.load_state_dict(load_file(path))
    scaling = description["target_scaling"]
    with torch.no_grad():
        outputs = network(torch.from_numpy(prepared).float()).double().numpy()
    return outputs * np.array(scaling["scales"]) + np.array(scaling["means"])
