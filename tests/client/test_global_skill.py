"""What fine-tuning costs on everybody's test examples, against models adapted and judged one by one."""

import numpy as np
import pytest
import torch

import nufed
from nufed.client.global_skill import everybodys_examples
from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.errors import ConfigError
from nufed.common.settings import process_settings
from nufed.deploy.commands.cli import main
from nufed.deploy.experiments.comparison import compare
from nufed.deploy.experiments.measures import global_table
from nufed.deploy.experiments.report_markdown import markdown_report
from nufed.deploy.experiments.story import read_story
from tests.deploy.experiments.made_runs import NUM_STEPS, OPTIONS, made_run

SMALL = {"dataset": "digits", "num_clients": 5, "num_new_clients": 2, "num_rounds": 3, "num_adapt_steps": 2}
STEPS = {"primary_step": 2, "interval": 0, "progress": False}


@pytest.mark.parametrize("engine", ["local", "cohort"])
def test_every_adapted_model_is_judged_on_the_same_examples_of_all_participating_clients(engine):
    run = nufed.simulate(**SMALL, **STEPS, global_examples=30, inner_lr=0.2, engine=engine)

    federation = load_federation(run.config.data, seed=0, dtype=torch.float32, settings=process_settings())
    shared = everybodys_examples(run.config.data, process_settings(), 0, torch.float32, 30)
    inputs, targets = shared.inputs.numpy(), shared.targets.numpy()
    tests = [client.test for client in federation.clients if client.group == "participating"]
    found = [[int((test.inputs == row).flatten(1).all(1).sum()) for test in tests] for row in shared.inputs]
    assert len(targets) == 30
    assert np.array(found).sum(0).tolist() == [6] * 5
    for group in ("participating", "new"):
        by_step = []
        for steps in (0, 2):
            values = []
            for client in (each for each in federation.clients if each.group == group):
                own = client.support.inputs.numpy(), client.support.targets.numpy()
                personal = nufed.personalize(run.model, *own, steps=steps) if steps else run.model
                values.append(nufed.evaluate(personal, inputs, targets).accuracy)
            by_step.append(float(np.mean(values)))
        told = run.summary[group]["metrics"]["test-global-accuracy"]
        assert [told[0], told[2]] == pytest.approx(by_step, abs=1e-9)
        assert told[0] != told[2]


def test_a_run_that_does_not_ask_says_nothing_of_it_and_trains_the_same_model():
    plain, asked = (nufed.simulate(**SMALL, **STEPS, global_examples=number) for number in (0, 10))

    assert "test-global-accuracy" not in plain.summary["new"]["metrics"]
    assert plain.summary["new"]["accuracy"] == asked.summary["new"]["accuracy"]
    for one, other in zip(plain.model.parameters(), asked.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_values_to_predict_are_judged_in_their_own_units_whatever_a_client_scales_them_by():
    random = np.random.default_rng(0)
    clients = {}
    for number in range(4):
        inputs = random.normal(size=(40, 2)).astype("float32")
        clients[f"c{number}"] = inputs, (100 * inputs[:, :1] + 50 * number).astype("float32")

    run = nufed.simulate(
        clients, num_rounds=2, num_adapt_steps=1, primary_step=1, interval=0, progress=False, task="regression",
        target_scale="local", metrics="mae", primary_metric="mae", global_examples=12,
    )  # fmt: skip

    shared = everybodys_examples(run.config.data, process_settings(), 0, torch.float32, 12)
    assert float(shared.targets.abs().max()) > 50
    assert 10 < run.summary["participating"]["metrics"]["test-global-mae"][1] < 1000


def test_where_others_examples_are_at_no_client_it_is_refused():
    with pytest.raises(ConfigError, match=r"evaluation\.global-examples=5 contradicts data\.source=private"):
        RunConfig.parse({"evaluation.global-examples": 5, "data.source": "private"})


def test_a_report_tells_what_fine_tuning_gives_and_costs(tmp_path):
    runs = [made_run("meta-2", seed, np.full(NUM_STEPS + 1, 0.8), config=OPTIONS["meta-2"]) for seed in range(3)]
    for run in runs:
        for table in run.groups.values():
            everybodys = np.linspace(0.7, 0.4, NUM_STEPS + 1)
            table.measures["global-accuracy"] = np.tile(everybodys, (len(table.client_ids), 1))
    comparison = compare(runs, {})

    table = global_table(comparison, "new")

    step = comparison.primary_step
    assert table.header[1:3] == ["own data, s = 0", f"own data, s = {step}"]
    assert table.rows[0][3].startswith("70.0")
    assert table.rows[0][5].startswith(f"-{100 * 0.3 * step / NUM_STEPS:.1f} points")

    options = ["--clients", "4", "--new-clients", "2", "--rounds", "2", "--set", "evaluation.global-examples=20"]
    assert main(["simulate", "--quiet", "--out", str(tmp_path), *options]) == 0
    folder = next(tmp_path.iterdir())
    told = markdown_report(read_story(folder))
    assert "What fine-tuning gives on one's own data and costs on everybody's" in told
    assert "| global-accuracy |" in told
