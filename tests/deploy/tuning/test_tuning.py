"""`nufed tune`: who is held out, how a search goes on, what it spends and what it says."""

import csv
import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest

from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.data.as_new import client_of
from nufed.common.errors import ConfigError, RunError
from nufed.common.methods import find_method
from nufed.common.models import DTYPES
from nufed.common.settings import process_settings
from nufed.deploy.commands.cli import main
from nufed.deploy.tuning.finals import decide, finalists_of, sentence
from nufed.deploy.tuning.held_out import Folds, SimulatedClients
from nufed.deploy.tuning.judged_run import Judged, Runs
from nufed.deploy.tuning.result import toml_of
from nufed.deploy.tuning.search import Trial, best_of, halving, open_study
from nufed.deploy.tuning.space import Range, Space, parse_nus

pytest.importorskip("optuna")

SMALL = ["--clients", "6", "--new-clients", "2", "--rounds", "3", "--local-steps", "1"]
SEARCH = ["--nu", "0,1", "--budget", "9", "--seeds", "3", "--finalists", "2", "--held-out", "0.34"]


def trial(nu, value, rounds=9, state="complete", loss=1.0):
    judged = Judged("accuracy", value, 1.0, loss, {"a": value}, 100)
    return Trial(
        nu,
        0,
        RunConfig().updated({"method.num-inner-steps": nu}),
        {"method.inner-lr": 0.1, "method.local-lr": 0.1},
        rounds,
        state,
        judged,
        1.0,
    )


class KnownRuns:
    """Runs whose outcome is a formula of ν and the fold; holds nothing else."""

    def __init__(self, value):
        self.clients, self.value = Folds(RunConfig(), 0.25), value

    def judge(self, config, rounds, fold):
        by_client = {f"c{i}": self.value(config.method.num_inner_steps, fold, i) for i in range(5)}
        return Judged("accuracy", sum(by_client.values()) / 5, 1.0, 1.0, by_client, 1000)

    def forget(self, config, fold):
        pass


def decided(value, nus=(0, 1, 2)):
    return decide(RunConfig(), [trial(nu, 0.5) for nu in nus], 3, KnownRuns(value), lambda line: None)


def test_held_out_clients_are_new_in_their_run_and_judged_on_all_that_is_not_test_part_by_part():
    config = RunConfig().updated({"data.num-clients": 9, "data.num-new-clients": 3, "data.new-support-examples": 2})
    settings, dtype = process_settings(), DTYPES[config.model.dtype]
    whole = {c.client_id: c for c in load_federation(config.data, seed=0, dtype=dtype, settings=settings).clients}
    clients = SimulatedClients(config, 0.3)

    run = clients.without(1, config.updated({"seed": 77}))
    held = load_federation(run.data, seed=77, dtype=dtype, settings=settings).clients

    participating = [each for each in whole.values() if each.group == "participating"]
    trained, new = ([each for each in held if each.group == group] for group in ("participating", "new"))
    assert (run.data.num_clients, run.data.num_new_clients) == (6, len(new))
    names = [participating[i].client_id for i in clients.folds[1]]
    assert list(dict.fromkeys(client_of(each.client_id) for each in new)) == names
    assert {each.client_id for each in trained} == {each.client_id for each in participating} - {*names}
    for name in names:
        parts, original = [each for each in new if client_of(each.client_id) == name], whole[name]
        rows = {tuple(row) for each in parts for row in each.validation.inputs.flatten(1).tolist()}
        assert len(parts) == 5
        assert parts[0].validation.targets.tolist() == original.validation.targets.tolist()
        assert len(rows) == sum(len(each.validation) for each in parts) == 5 * len(original.validation)
        for each in parts:
            assert len(each.support) <= 2 * len(set(original.support.targets.tolist()))
            adapted = {tuple(row) for row in each.support.inputs.flatten(1).tolist()}
            judged_on = {tuple(row) for row in each.validation.inputs.flatten(1).tolist()}
            unseen = {tuple(row) for row in original.test.inputs.flatten(1).tolist()}
            assert not adapted & judged_on
            assert not (adapted | judged_on) & unseen
    assert sorted(i for fold in clients.folds for i in fold) == list(range(9))
    assert {clients.fold_of(seed) for seed in range(20)} == {1, 2}


@pytest.mark.parametrize(("num_clients", "num_judged"), [(4, 2 * 5), (100, 50 * 3), (400, 200)])
def test_clients_with_examples_enough_are_judged_once(num_clients, num_judged):
    config = RunConfig().updated({"data.source": "sinusoid", "data.num-clients": num_clients})

    run = SimulatedClients(config, 0.5).without(0, config)

    assert run.data.num_new_clients == num_judged  # they have four validation examples each


def test_a_lead_is_told_with_its_interval_and_no_lead_as_not_distinguishable():
    verdict = decided(lambda nu, fold, i: 0.5 + {0: 0.0, 1: 0.002 * (fold - 2), 2: 0.1 + 0.001 * fold}[nu])

    said = sentence(verdict)

    assert verdict.chosen.trial.nu == 2
    assert verdict.leads[2].interval.mean == pytest.approx(0.102)
    assert verdict.leads[2].interval.low > 0.09
    assert "ν = 2 is ahead of FedAvg + fine-tuning (+10.2 points [" in said
    assert "ν = 1 is not distinguishable from FedAvg + fine-tuning (+0.0 points [" in said


def test_a_lead_by_chance_is_said_to_be_one_and_fedavg_is_chosen_where_it_is_best():
    lucky = decided(lambda nu, fold, i: 0.5 + nu * (0.1 if fold == 1 else 0.0))
    plain = decided(lambda nu, fold, i: 0.9 - nu * (0.2 + 0.01 * fold))

    assert "by no more than chance may give" in sentence(lucky)
    assert "is ahead of" not in sentence(lucky)
    assert plain.chosen.trial.nu == 0
    assert "ν = 2 is behind FedAvg + fine-tuning" in sentence(plain)


def test_a_finalist_that_diverges_with_a_seed_is_not_chosen_and_gives_no_interval():
    verdict = decided(lambda nu, fold, i: math.nan if nu == 0 and fold == 2 else 0.9 - 0.1 * nu)

    said = sentence(verdict)

    assert (
        "ν = 1 has no interval against FedAvg + fine-tuning, as FedAvg + fine-tuning diverged with 1 of 3 seeds" in said
    )
    assert verdict.chosen.trial.nu == 1
    assert "not distinguishable" not in said


def test_trials_that_came_further_are_better_and_equal_ones_are_told_apart_by_loss():
    whole, lucky, calm = trial(1, 0.5), trial(1, 0.9, rounds=1, state="pruned"), trial(1, 0.5, loss=0.2)

    assert best_of([whole, lucky, calm]) is calm
    assert best_of([trial(1, math.nan, state="diverged")]) is None
    assert [each.nu for each in finalists_of({0: [trial(0, 0.1)], 1: [whole], 2: [trial(2, 0.8)]}, 2)] == [0, 2]
    with pytest.raises(RunError, match="--beta"):
        finalists_of({0: [trial(0, math.nan, state="diverged")], 1: [whole]}, 2)


def test_pruning_keeps_the_better_third_of_a_rung_and_a_killed_trial_does_not_count(tmp_path):
    import optuna

    study = open_study(tmp_path / "t", "one")
    pruned = []
    for value in (5.0, 4.0, 3.0, 6.0, 5.5):
        asked = study.ask()
        asked.report(value, 1)
        pruned.append(asked.should_prune())
        study.tell(asked, state=optuna.trial.TrialState.PRUNED)
    asked = study.ask()
    asked.report(9.0, 1)  # and the process is killed here, in the middle of a line
    with (tmp_path / "t").open("ab") as file:
        file.write(b'{"op_code": 5, "wor')
    (tmp_path / "t.lock").symlink_to(tmp_path / "t")  # for which Optuna would wait half a minute
    begun = time.monotonic()
    again = open_study(tmp_path / "t", "one")
    asked = again.ask()
    asked.report(8.0, 1)

    assert time.monotonic() - begun < 10
    assert pruned == [False, True, True, False, True]
    assert not asked.should_prune()
    assert type(again.pruner).__name__ == type(halving()).__name__


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("tune") / "whole"
    assert main(["tune", *SMALL, *SEARCH, "--quiet", "--out", str(out)]) == 0
    return out


def test_a_search_spends_its_budget_and_no_more_and_leaves_a_configuration_that_runs(searched, tmp_path, capsys):
    rows = list(csv.DictReader((searched / "trials.csv").read_text(encoding="utf-8").splitlines()))
    result = json.loads((searched / "result.json").read_text(encoding="utf-8"))
    best = RunConfig.load(searched / "best.toml")
    page = (searched / "report.html").read_text(encoding="utf-8")

    spent = sum(int(row["rounds"]) for row in rows)
    assert 6 * 3 + 2 <= spent <= 9 * 3
    assert result["cost"]["runs"] == pytest.approx(spent / 3)
    assert len([row for row in rows if row["phase"] == "final"]) == 6
    assert best.method.num_inner_steps == result["chosen"]["num_inner_steps"]
    assert best.method.local_lr == result["chosen"]["method.local-lr"]
    assert (best.data.num_clients, best.data.num_new_clients, best.federation.num_rounds) == (6, 2, 3)
    assert result["sentence"].split(" (")[0] in page
    assert main(["simulate", "--config", str(searched / "best.toml"), "--quiet", "--out", str(tmp_path)]) == 0


def test_a_search_that_is_given_again_runs_nothing_and_says_the_same(searched, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(searched, copy)
    monkeypatch.setattr("nufed.deploy.simulation.engines.simulate", lambda *a, **k: pytest.fail("ran again"))

    code = main(["tune", *SMALL, *SEARCH, "--quiet", "--out", str(copy)])

    assert code == 0
    assert (copy / "trials.csv").read_bytes() == (searched / "trials.csv").read_bytes()
    assert (copy / "best.toml").read_bytes() == (searched / "best.toml").read_bytes()


def test_a_killed_search_goes_on_to_what_it_would_have_been(searched, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "nufed.deploy.commands.start", "tune", *SMALL, *SEARCH, "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("runs/*/judged.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "result.json").exists()

    code = main(["tune", *SMALL, *SEARCH, "--quiet", "--out", str(out)])

    assert code == 0
    assert (out / "trials.csv").read_bytes() == (searched / "trials.csv").read_bytes()


def test_what_clients_keep_between_rounds_goes_on_with_the_run_from_judgement_to_judgement(tmp_path):
    changes = {"data.num-clients": 4, "data.num-new-clients": 0, "method.num-local-steps": 1}
    config = RunConfig().updated({**find_method("fedrep").options(), **changes})
    clients = SimulatedClients(config, 0.5, "local")

    at_once = Runs(clients, tmp_path / "at-once").judge(config, 3, 0)
    in_parts = Runs(clients, tmp_path / "in-parts")
    in_parts.judge(config, 1, 0)

    assert in_parts.judge(config, 3, 0).loss == at_once.loss


def test_another_search_does_not_go_on_in_its_folder(searched, capsys):
    code = main(["tune", *SMALL, *SEARCH, "--alpha", "0.01:1", "--quiet", "--out", str(searched)])

    assert code == ConfigError.exit_code
    assert "holds a search with inner_lr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget", "3"], "--budget=3"),
        (["--nu", "0"], "--nu='0'"),
        (["--nu", "1,x"], "whole numbers"),
        (["--alpha", "1:0.1"], "--alpha='1:0.1'"),
        (["--beta", "0:nan"], "--beta"),
        (["--search", "momentum"], "estimator, local-steps"),
        (["--inner-steps", "2"], "--nu"),
        (["--clients", "3"], "data.num-clients=3"),
        (["--set", "data.validation-fraction=0"], "validation-fraction"),
        (["--method", "local-only"], "federation.training=local"),
        (["--dp", "client", "--dp-noise", "1"], "privacy.publish"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_anything_runs(arguments, words, tmp_path, capsys):
    code = main(["tune", "--quiet", "--out", str(tmp_path / "x"), *arguments])

    assert code == ConfigError.exit_code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "x" / "runs").exists()


def test_without_optuna_it_is_said_how_to_install_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)

    code = main(["tune", "--quiet", "--out", str(tmp_path / "x")])

    assert code == ConfigError.exit_code
    assert 'pip install "nufed[tune]"' in capsys.readouterr().err


def test_chosen_options_are_written_so_that_they_read_back(tmp_path):
    config = RunConfig().updated(
        {"seed": 3, "data.source": 'csv:a "b".csv?label=y', "evaluation.report-counts": True, "method.local-lr": 1e-5}
    )
    path = tmp_path / "c.toml"
    path.write_text(toml_of(config), encoding="utf-8")

    assert RunConfig.load(path) == config


def test_choices_are_searched_on_request_and_alpha_only_where_it_acts():
    space = Space(parse_nus("2"), Range(0.1, 1.0), Range(0.01, 1.0), ("estimator", "local-steps"))
    fixed = RunConfig().updated({"evaluation.adapt-lr": 0.1})

    assert space.nus == (0, 2)
    assert set(space.choices(0)) == {"method.num-local-steps"}
    assert set(space.choices(2)) == {"method.num-local-steps", "method.estimator"}
    assert set(space.ranges(fixed, 0)) == {"method.local-lr"}
    assert space.grid_size() == 36 * (4 + 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "local"], "--engine=local"),
        (["--dp", "record", "--dp-noise", "1", "--set", "privacy.publish=evaluation,participants"], "--listen"),
        (["--secure-aggregation"], "difference of two sums"),
        (["--set", "federation.mode=buffered"], "mode=buffered"),
        (["--set", "federation.over-selection=0.5"], "over-selection"),
        (["--dataset", "csv:all.csv?label=y&user=site"], "data on this machine"),
        (["--clients", "3"], "data.num-clients=3"),
        (["--certificates", "there-are-none"], "--insecure contradicts"),
    ],
)
def test_what_cannot_be_tuned_over_the_network_is_refused_before_anybody_is_waited_for(
    arguments, words, tmp_path, capsys
):
    told = ["--listen", "127.0.0.1:0", "--insecure", "--quiet", "--out", str(tmp_path / "x")]

    code = main(["tune", *told, *arguments])

    assert code == ConfigError.exit_code
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x" / "runs").exists()


def test_a_search_says_which_clients_it_lacks_and_is_not_another_kind_of_search(tmp_path, capsys):
    out = ["--out", str(tmp_path / "x")]

    code = main(["tune", *SMALL, *SEARCH, *out, "--listen", "127.0.0.1:0", "--insecure", "--wait", "0", "--quiet"])
    said = " ".join(capsys.readouterr().err.split())

    assert code == RunError.exit_code
    assert "Expected 6 participating clients (here: 0) within 0 s. Start what is missing" in said
    assert main(["tune", *SMALL, *SEARCH, *out, "--quiet"]) == ConfigError.exit_code
    assert "holds a search with clients='connected', and this one has 'simulated'" in capsys.readouterr().err
    assert main(["tune", *SMALL, *SEARCH, "--insecure", "--quiet", "--out", str(tmp_path)]) == ConfigError.exit_code
    assert "Add --listen" in capsys.readouterr().err
