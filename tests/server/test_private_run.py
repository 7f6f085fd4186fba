"""Whole runs with client-level differential privacy: what is spent, when a run stops, and whether it may go on."""

import json

import pytest

from nufed.common.errors import BudgetSpentError, NufedError, RunError
from nufed.common.events import EventStream, Note, RoundClosed
from nufed.common.models.frozen import hash_of
from nufed.common.privacy.accounting import SampledGaussian, epsilon
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.common.privacy.noise import TEST_KEY_WARNING
from nufed.deploy.commands.cli import main
from nufed.server.resuming import resume_point
from nufed.server.run_folder import load_model
from tests.server.test_run import StopAfter, lines, model_bytes, run, summary

PRIVATE = {
    "privacy__dp": "client",
    "privacy__clip": 1.0,
    "privacy__noise": 2.0,
    "privacy__publish": "participants,examples,training-loss",
    "evaluation__interval": 0,
}
STEP = SampledGaussian(2.0, 0.5)
DELTA = 6**-1.1


def ledger_of(folder):
    return PrivacyLedger.open_existing(folder / LEDGER, to_go_on=False)


def test_each_round_says_what_is_spent_and_so_do_the_summary_the_page_and_the_terminal(tmp_path, capsys):
    told, notes = [], []
    events = EventStream()
    events.listen(lambda event: told.append(event) if isinstance(event, RoundClosed) else None)
    events.listen(lambda event: notes.append(event.text) if isinstance(event, Note) else None)

    folder = run(tmp_path, **PRIVATE, events=events, privacy__epsilon=20.0)

    expected = [epsilon({STEP: count}, DELTA) for count in (1, 2, 3, 4)]
    assert [line["epsilon"] for line in lines(folder)] == pytest.approx(expected)
    assert [event.epsilon for event in told] == pytest.approx(expected)
    assert {line["delta"] for line in lines(folder)} == {DELTA}
    found = summary(folder)["privacy"]
    assert found["epsilon"] == pytest.approx(expected[-1])
    assert (found["noise"], found["rounds_charged"], found["is_private"]) == (2.0, 4, True)
    assert any("noise z = 2" in note and "q = 0.5" in note for note in notes)
    assert any("stops before ε passes 20" in note for note in notes)
    assert ledger_of(folder).model_of(4) == hash_of(load_model(folder)[0])
    assert main(["simulate", "--resume", str(folder), "--rounds", "5"]) == 0
    shown = capsys.readouterr()
    assert f"ε = {epsilon({STEP: 5}, DELTA):.4g} of 20 at δ = 0.139, of 5 rounds" in shown.out + shown.err


def test_a_run_without_privacy_has_no_ledger_and_says_nothing_of_epsilon(tmp_path):
    folder = run(tmp_path)

    assert not (folder / LEDGER).exists()
    assert "privacy" not in summary(folder)
    assert not any("epsilon" in line for line in lines(folder))


def test_two_runs_of_one_seed_differ_and_under_a_test_key_they_say_that_they_are_not_private(tmp_path, monkeypatch):
    first, second = run(tmp_path, **PRIVATE), run(tmp_path, **PRIVATE)
    assert model_bytes(first) != model_bytes(second)
    assert [line["sampled"] for line in lines(first)] != [3, 3, 3, 3] != [line["sampled"] for line in lines(second)]
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "known")

    third, fourth = run(tmp_path, **PRIVATE), run(tmp_path, **PRIVATE)

    assert model_bytes(third) == model_bytes(fourth)
    assert summary(third)["privacy"]["warning"] == TEST_KEY_WARNING
    assert json.loads((third / "environment.json").read_text())["warning"] == TEST_KEY_WARNING
    assert not ledger_of(third).is_private
    assert "warning" not in summary(first)["privacy"]
    assert "warning" not in json.loads((first / "environment.json").read_text())


def test_noise_is_found_for_the_epsilon_of_the_planned_rounds(tmp_path):
    folder = run(tmp_path, **{**PRIVATE, "privacy__noise": 0.0, "privacy__epsilon": 3.0})

    found = summary(folder)["privacy"]
    assert summary(folder)["status"] == "complete"
    assert 2.98 < found["epsilon"] <= 3.0
    assert ledger_of(folder).terms.noise == found["noise"] > 0.5


def test_a_run_stops_before_its_budget_is_passed_and_goes_on_with_a_larger_one(tmp_path, capsys):
    budget = epsilon({STEP: 2}, DELTA) + 0.01
    with pytest.raises(BudgetSpentError, match="another round would take it from"):
        run(tmp_path, **PRIVATE, privacy__epsilon=budget)
    [folder] = tmp_path.iterdir()

    found = summary(folder)
    assert (found["status"], found["rounds"], found["privacy"]["rounds_charged"]) == ("budget-spent", 2, 2)
    assert "would take it from" in found["reason"]
    assert found["final_evaluation"]["answered"] == 9
    assert (folder / "model.safetensors").exists()
    assert main(["simulate", "--resume", str(folder)]) == BudgetSpentError.exit_code == 10
    assert "Stopped after round 2, before ε passes its budget." in capsys.readouterr().out
    assert main(["simulate", "--resume", str(folder), "--dp-epsilon", "50"]) == 0
    after = summary(folder)
    assert (after["status"], after["rounds"], after["privacy"]["budget"]) == ("complete", 4, 50.0)
    assert after["privacy"]["epsilon"] == pytest.approx(epsilon({STEP: 4}, DELTA))
    assert ledger_of(folder).budget == 50.0


def test_more_rounds_than_the_budget_allows_are_refused_before_anybody_is_asked(tmp_path):
    folder = run(tmp_path, **PRIVATE, privacy__epsilon=epsilon({STEP: 5}, DELTA) + 0.01)

    code = main(["simulate", "--resume", str(folder), "--rounds", "9"])

    assert code == BudgetSpentError.exit_code
    assert len(lines(folder)) == 4
    assert main(["simulate", "--resume", str(folder), "--rounds", "5"]) == 0


def test_a_budget_that_allows_no_round_is_refused(tmp_path):
    with pytest.raises(BudgetSpentError, match="leave --dp-noise out"):  # there is no model, and nothing to resume
        run(tmp_path, **PRIVATE, privacy__epsilon=0.01, privacy__delta=1e-3)
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


def test_a_stopped_run_goes_on_with_its_ledger(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, listener=StopAfter(2), **PRIVATE)
    [folder] = tmp_path.iterdir()

    run(tmp_path, resume=folder, **PRIVATE)

    ledger = ledger_of(folder)
    assert [charge.round for charge in ledger.charges] == [1, 2, 3, 4]
    assert summary(folder)["privacy"]["epsilon"] == pytest.approx(epsilon({STEP: 4}, DELTA))


def _other_run(folder):
    (folder / LEDGER).write_bytes((folder.parent / "other" / LEDGER).read_bytes())


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / LEDGER).unlink(), "cannot be read"),
        (lambda folder: (folder / LEDGER).write_bytes((folder / LEDGER).read_bytes()[:-300]), "shorter or another"),
        (
            lambda folder: (folder / LEDGER).write_text(
                (folder / LEDGER).read_text().replace('"noise": 2', '"noise": 9')
            ),
            "was changed",
        ),
        (_other_run, "shorter or another"),
    ],
)
def test_a_ledger_that_is_missing_cut_changed_or_anothers_is_refused(tmp_path, spoil, reason):
    folder, other = run(tmp_path, **PRIVATE), run(tmp_path, **PRIVATE)
    other.rename(tmp_path / "other")

    spoil(folder)

    with pytest.raises(RunError, match=reason):
        resume_point(folder)
    with pytest.raises(NufedError):
        run(tmp_path, resume=folder, **PRIVATE, federation__num_rounds=5)
    assert len(lines(folder)) == 4


def test_the_engines_give_the_same_bytes_under_a_test_key(tmp_path, monkeypatch):
    """Clipping and noise are the server's; clients and engines know nothing of them."""
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "known")
    options = ["--clients", "4", "--new-clients", "0", "--rounds", "2", "--local-steps", "1", "--fraction", "0.5"]
    private = ["--dp", "client", "--dp-clip", "1", "--dp-noise", "1"]
    for engine in ("local", "cohort"):
        assert (
            main(["simulate", "--quiet", "--engine", engine, *options, *private, "--out", str(tmp_path / engine)]) == 0
        )

    local, cohort = (model_bytes(next((tmp_path / engine).iterdir())) for engine in ("local", "cohort"))
    assert local == cohort
