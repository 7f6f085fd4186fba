"""From a run's model to a personal one, its predictions and its export, offline, by commands."""

import csv
import io

import numpy as np
import pandas as pd
import pytest

from nufed.client.personal_model import load_personal_model
from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.durable_file import write_tensors
from nufed.common.errors import ConfigError, DataError, RunError
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import MODEL_FORMAT

DIGITS = RunConfig().updated({"data.num-clients": 4, "data.num-new-clients": 1, "data.partition": "iid"})
TABLE = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "age,sex",
        "data.categories": "sex:f|m",
        "data.class-names": "no,yes",
        "model.hidden-sizes": "",
        "method.inner-lr": 0.5,
    }
)
CODES = {error: error.exit_code for error in (ConfigError, DataError, RunError)}


def save_run_model(path, config):
    """What a run leaves, untrained."""
    model = build_model(config.model, describe_task(config.data, Settings()), seed=config.seed)
    metadata = {"format": MODEL_FORMAT, "round": 0, "config": config.model_dump(by_alias=True)}
    write_tensors(path, model_params(model), metadata)


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """A run's model of each kind, and a table in which the label follows from the age."""
    monkeypatch.chdir(tmp_path)
    save_run_model(tmp_path / "digits.safetensors", DIGITS)
    save_run_model(tmp_path / "table.safetensors", TABLE)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(60, 9, 60).round(2), "sex": rng.choice(["f", "m"], 60)})
    frame["y"] = np.where(frame["age"] > 60, "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.drop(columns="y").to_csv(tmp_path / "unlabelled.csv", index=False)


def personalize_table(*more):
    return main(
        ["personalize", "--model", "table.safetensors", "--data", "csv:t.csv?label=y&scale=local", "--force", *more]
    )


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_personalize_shows_the_gain_on_held_out_examples_and_leaves_the_model(tmp_path, capsys):
    code = personalize_table("--steps", "40", "--lr", "0.8", "--name", "clinic", "--out", "mine.safetensors")

    personal = load_personal_model(tmp_path / "mine.safetensors")
    shown = capsys.readouterr().out
    assert code == 0
    assert (personal.client_id, personal.num_steps, personal.step_size) == ("clinic", 40, 0.8)
    assert personal.num_support + personal.num_test == 60
    assert 5 < personal.num_test < 25
    assert personal.after.accuracy > max(0.8, personal.before.accuracy)
    assert f"clinic: 40 steps of 0.8 on {personal.num_support} examples" in shown
    assert f"on {personal.num_test} held-out examples" in shown
    assert f"{personal.before.loss:.4f}" in shown
    assert f"{100 * personal.after.accuracy:.1f} %" in shown


def test_the_runs_own_adaptation_is_the_default(tmp_path):
    personalize_table()

    personal = load_personal_model(tmp_path / "personal.safetensors")

    assert (personal.num_steps, personal.step_size) == (10, 0.5)
    assert personal.config.evaluation.adapt_batch_size == 0


def test_seed_and_batch_size_decide_the_draws(tmp_path):
    contents = []
    for more in ((), (), ("--seed", "1"), ("--batch-size", "4")):
        personalize_table(*more)
        contents.append((tmp_path / "personal.safetensors").read_bytes())

    assert contents[0] == contents[1]
    assert len(set(contents)) == 3


def test_predictions_of_a_personal_model_are_of_rows_prepared_as_its_own_were(tmp_path, capsys):
    personalize_table("--steps", "200")
    capsys.readouterr()

    code = main(["predict", "--model", "personal.safetensors", "--data", "csv:unlabelled.csv", "--out", "p.csv"])

    predicted = rows((tmp_path / "p.csv").read_text())
    known = rows((tmp_path / "t.csv").read_text())
    assert code == 0
    assert list(predicted[0]) == ["row", "prediction", "probability_no", "probability_yes"]
    assert [int(row["row"]) for row in predicted] == list(range(1, 61))
    right = [ours["prediction"] == truth["y"] for ours, truth in zip(predicted, known, strict=True)]
    assert sum(right) / 60 > 0.85
    assert all(
        float(row["probability_no"]) + float(row["probability_yes"]) == pytest.approx(1, abs=1e-5) for row in predicted
    )
    assert capsys.readouterr().out == ""


def test_labels_are_compared_with_on_standard_error_beside_csv_on_standard_output(capsys):
    personalize_table("--steps", "200")
    capsys.readouterr()

    main(["predict", "--model", "personal.safetensors", "--data", "csv:t.csv?label=y"])

    printed = capsys.readouterr()
    lines = rows(printed.out)
    share = sum(row["prediction"] == row["label"] for row in lines) / 60
    assert "of 60 labelled examples: loss " in printed.err
    assert f"accuracy {100 * share:.1f} %" in printed.err


def test_a_runs_model_predicts_too(capsys):
    main(["predict", "--model", "digits.safetensors", "--data", "digits#4/4"])

    assert list(rows(capsys.readouterr().out)[0])[:4] == ["row", "prediction", "label", "probability_0"]


def test_values_are_predicted_by_number(tmp_path, capsys):
    config = TABLE.updated({"data.task": "regression", "data.class-names": "", "data.num-outputs": 2})
    config = config.updated({"data.target-scale": "none"})
    save_run_model(tmp_path / "r.safetensors", config)
    np.savez(tmp_path / "r.npz", x=np.ones((4, 3), np.float32), y=np.full((4, 2), 0.5))

    main(["predict", "--model", "r.safetensors", "--data", "npz:r.npz"])

    [first, *_] = rows(capsys.readouterr().out)
    assert list(first) == ["row", "prediction_1", "prediction_2", "target_1", "target_2"]
    assert float(first["target_2"]) == 0.5


@pytest.mark.parametrize("form", ["torch-export", "torchscript"])
def test_export_says_what_the_file_takes_and_returns(tmp_path, capsys, form):
    personalize_table()
    capsys.readouterr()

    code = main(["export", "--model", "personal.safetensors", "--format", form, "--out", "m.bin"])

    assert code == 0
    assert "takes [N, 3] float32, returns [N, 2] logits; differs from the model by at most" in capsys.readouterr().out
    assert (tmp_path / "m.bin").stat().st_size > 1000


@pytest.mark.parametrize(
    ("command", "error", "message"),
    [
        ("personalize --model absent.safetensors --data npz:x.npz", RunError, "absent.safetensors, but there is none"),
        ("personalize --model t.csv --data npz:x.npz", RunError, "Expected safetensors in t.csv"),
        ("personalize --model table.safetensors --data csv:t.csv", ConfigError, "names no label"),
        ("personalize --model table.safetensors --data t.csv", ConfigError, "Type it like one of"),
        ("personalize --model table.safetensors --data csv:none.csv?label=y", DataError, "no such file"),
        ("personalize --model table.safetensors --data csv:t.csv?label=y --lr 0", ConfigError, "--steps 0"),
        ("personalize --model digits.safetensors --data digits#5/4", DataError, "clients 0 to 4"),
        (
            "personalize --model table.safetensors --data csv:t.csv?label=y --out no/p",
            ConfigError,
            "in a folder that exists, got no/p",
        ),
        ("predict --model table.safetensors --data csv:t.csv?scale=local", ConfigError, "nufed personalize"),
        (
            "predict --model table.safetensors --data csv:t.csv --out no/p.csv",
            ConfigError,
            "that exists, got no/p.csv",
        ),
        ("export --model table.safetensors --format onxx --out m", ConfigError, "Known: onnx"),
    ],
)
def test_what_is_wrong_is_said_in_one_paragraph(capsys, command, error, message):
    code = main(command.split())

    printed = capsys.readouterr().err.splitlines()
    assert code == CODES[error]
    assert message in printed[-1]
    assert printed[-1].startswith("nufed: ")


def test_a_client_command_is_refused_before_it_dials(capsys):
    base = ["client", "--server", "127.0.0.1:1", "--name", "a", "--insecure"]

    codes = [
        main([*base, "--data", "t.csv"]),
        main([*base, "--data", "digits#0/4", "--personal-model", "absent/p.safetensors"]),
    ]

    shown = capsys.readouterr().err
    assert codes == [ConfigError.exit_code] * 2
    assert "Type it like one of" in shown
    assert "--personal-model" in shown
