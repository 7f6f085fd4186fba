"""Record-level privacy on a client: what its records cost, what it refuses, and what it does not tell."""

import json
import logging
import math
from io import FileIO
from pathlib import Path

import dp_accounting
import pytest
import torch
from dp_accounting import pld

from nufed.client import record_ledger, record_privacy
from nufed.client.personal_model import load_personal_model
from nufed.client.record_ledger import Charge, RecordLedger
from nufed.client.record_privacy import check_budget, plan_of
from nufed.client.workplace import forget_workplaces, workplace
from nufed.common.config import RunConfig
from nufed.common.data.private.simulated import settle
from nufed.common.errors import ConfigError, ModelError, RunError
from nufed.common.params import model_params
from nufed.common.privacy.accounting import SampledGaussian
from nufed.common.settings import process_settings
from nufed.common.wire import TrainReply
from tests.client.deployed import ask

RECORD = RunConfig().updated(
    {
        "privacy.dp": "record",
        "privacy.clip": 0.5,
        "privacy.noise": 1.5,
        "model.name": "linear",
        "method.num-inner-steps": 1,
        "method.num-local-steps": 2,
        "federation.num-rounds": 10,
        "data.num-clients": 4,
        "data.num-new-clients": 1,
    }
)


@pytest.fixture
def node(tmp_path):
    """The configuration of a client with a ledger."""
    return {"data": "digits#0/4", "client-id": "ward-3", "privacy-ledger": str(tmp_path / "ward.privacy")}


@pytest.fixture(autouse=True)
def _restarted():
    restart()


def restart():
    forget_workplaces()
    record_privacy._ledger.cache_clear()


def place_of(node, run=RECORD):
    return workplace(run.flat(), node, process_settings())


def trained(node, run=RECORD):
    params = model_params(place_of(node, run).model)
    return TrainReply.from_records(ask("train", run, node, params).content)


def ledger(node):
    return [json.loads(line) for line in Path(node["privacy-ledger"]).read_text(encoding="utf-8").splitlines()]


def independent_epsilon(size, rounds, delta, noise=1.5, batch=20):
    """Return ε of that many rounds of two meta steps: an outer and an inner gradient, and a product, each by itself."""
    gaussian = dp_accounting.GaussianDpEvent(noise)
    event = dp_accounting.PoissonSampledDpEvent(batch / size, gaussian)
    accountant = pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds * 2 * 3))
    return accountant.get_epsilon(delta)


def test_each_round_is_in_the_ledger_and_costs_what_an_independent_account_says_also_after_a_restart(node):
    size = len(place_of(node).data.support)
    open_run = RECORD.updated({"privacy.publish": "examples"})

    replies = [trained(node, open_run) for _ in range(2)]
    restart()
    replies.append(trained(node, open_run))  # the server asks for the same round once more

    expected = [independent_epsilon(size, count, size**-1.1) for count in (1, 2, 3)]
    assert [reply.metrics["epsilon"] for reply in replies] == pytest.approx(expected, rel=5e-3)
    assert len(ledger(node)) == 3


def test_what_tells_of_the_records_or_of_their_number_stays_at_the_client_unless_it_is_published(node):
    closed = trained(node)
    published = trained(node, RECORD.updated({"privacy.publish": "training-loss"}))

    assert set(closed.metrics) == {"gradient-evaluations", "hvps"}
    assert closed.num_examples == 0
    assert math.isfinite(published.metrics["loss"])
    assert "epsilon" not in published.metrics


def test_beyond_its_own_budget_a_client_trains_no_more_for_any_run_and_is_still_evaluated(node, caplog):
    size = len(place_of(node).data.support)
    costs = [independent_epsilon(size, count, size**-1.1) for count in (2, 3)]
    node["max-epsilon"] = sum(costs) / 2
    params = model_params(place_of(node).model)
    other = RECORD.updated({"seed": 5, "privacy.delta": 0.4})

    for run in (RECORD, other):
        trained(node, run)
    for run in (RECORD, other):
        restart()
        with (
            caplog.at_level(logging.WARNING, "nufed.private"),
            pytest.raises(ConfigError, match="privacy budget is spent") as raised,
        ):
            trained(node, run)
        assert raised.value.sendable
        assert not any(character.isdigit() for character in str(raised.value))  # neither ε nor N

    assert "beyond --max-epsilon" in caplog.text
    assert len(ledger(node)) == 2
    assert ask("evaluate", RECORD, node, params).has_content()


def test_beyond_the_runs_budget_a_client_trains_no_more_for_that_run(node):
    size = len(place_of(node).data.support)
    budget = independent_epsilon(size, 1, size**-1.1) * 1.01
    run = RECORD.updated({"privacy.epsilon": budget})
    trained(node, run)

    with pytest.raises(ConfigError, match=r"privacy\.epsilon=.* is spent"):
        trained(node, run)

    trained(node, run.updated({"seed": 1}))


@pytest.mark.parametrize("consent", [{"max-epsilon": 1e9}, {"require-record-privacy": True}])
@pytest.mark.parametrize("dp", ["none", "client"])
def test_a_client_that_asks_for_it_takes_part_with_record_level_privacy_alone(node, consent, dp):
    run = RECORD.updated({"privacy.dp": dp})
    params = model_params(place_of(node, run).model)

    for kind in ("query", "train"):
        with pytest.raises(ConfigError, match="start the server with --dp record") as raised:
            ask(kind, run, {**node, **consent}, params)
        assert raised.value.sendable

    assert ask("query", run, {**node, **consent, "data": "digits#4/4"}).has_content()  # it never trains
    assert ask("query", RECORD, {**node, **consent}).has_content()


def test_a_round_is_accounted_for_before_anything_is_computed(node, monkeypatch):
    def killed(*_args, **_kwargs):
        assert len(ledger(node)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(record_privacy, "private_update", killed)

    with pytest.raises(KeyboardInterrupt):
        trained(node)

    assert len(ledger(node)) == 1


def test_a_line_that_was_cut_short_counts_for_nothing_and_any_other_damage_is_refused(node, tmp_path):
    path = tmp_path / "ward.privacy"
    trained(node)
    whole = path.read_bytes()

    path.write_bytes(whole + whole[:-9])
    trained(node)
    assert path.read_bytes() == whole + whole

    for damaged in (whole[9:], b"{}\n" + whole, whole.replace(b'"count": 6', b'"count": "x"'), b"\xff\n"):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="this client's own log says more"):
            trained(node)
        with pytest.raises(ConfigError, match="Put back a copy that is whole"):
            check_budget(node)
        assert path.read_bytes() == damaged


def test_a_charge_is_on_the_disk_as_a_whole_also_where_the_disk_takes_it_in_parts(tmp_path):
    class Full(FileIO):
        """Takes ten bytes at a time."""

        def write(self, content):
            return super().write(bytes(content)[:10])

    path, charge = tmp_path / "ward.privacy", Charge("r", 1, {SampledGaussian(1.5, 0.25): 6})
    path.touch()
    with Full(path, "r+b") as file:
        for _ in range(2):
            record_ledger._append(file, charge)

    assert RecordLedger(path).charges() == [charge, charge]


def test_a_budget_needs_a_file_that_remembers_it(tmp_path):
    with pytest.raises(ConfigError, match="Give --privacy-ledger"):
        check_budget({"data": "digits#0/4", "max-epsilon": 1.0})
    check_budget({"data": "digits#0/4", "max-epsilon": 1.0, "personal-model": str(tmp_path / "own.safetensors")})
    assert (tmp_path / "own.privacy").read_bytes() == b""


def test_a_ledger_that_cannot_be_written_is_found_before_a_round(node, monkeypatch):
    def refused(*_arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(record_ledger.os, "open", refused)

    with pytest.raises(RunError, match=r"write .*ward\.privacy.*Permission denied"):
        check_budget(node)


def test_the_personal_model_says_what_the_records_have_cost(node, tmp_path):
    path = tmp_path / "own.safetensors"
    params = model_params(place_of(node).model)
    for run in (RECORD, RECORD.updated({"name": "other"}), RECORD):
        trained(node, run)

    ask("evaluate", RECORD, {**node, "personal-model": str(path)}, params, final=True)

    cost, size = load_personal_model(path).cost, len(place_of(node).data.support)
    costs = [independent_epsilon(size, count, size**-1.1) for count in (2, 3)]
    assert (cost.epsilon, cost.in_all) == pytest.approx(costs, rel=5e-3)
    assert cost.num_rounds == 2


def test_two_runs_with_one_seed_differ_and_under_a_test_key_they_do_not(node, monkeypatch, caplog):
    def params():
        return torch.cat([tensor.flatten() for tensor in trained(node).params.values()])

    assert not torch.equal(params(), params())
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "k")
    restart()
    first = params()
    assert torch.equal(first, params())
    assert "NOT PRIVATE" in caplog.text
    monkeypatch.setenv("NUFED_TEST_PRIVACY_KEY", "another")
    restart()
    assert not torch.equal(first, params())


def test_noise_is_found_for_the_epsilon_that_a_run_asks_for_at_each_clients_size(node):
    run = RECORD.updated({"privacy.noise": 0.0, "privacy.epsilon": 3.0})

    for count in (4, 40):
        place = place_of({**node, "data": f"digits#0/{count}"}, run.updated({"data.num-clients": count}))
        plan, size = plan_of(place), len(place.data.support)
        spent = independent_epsilon(size, 10, size**-1.1, noise=plan.noise, batch=min(20, size))
        assert 3.0 * 0.98 <= spent <= 3.0 * 1.002


def test_a_model_that_draws_random_numbers_is_refused(node):
    run = RECORD.updated({"model.name": "mlp", "model.dropout": 0.5})

    with pytest.raises(ModelError, match=r"model\.dropout=0"):
        trained(node, run)


@pytest.mark.parametrize("spec", ["scale=local", "missing=mean", "missing=zero,age:median"])
def test_what_a_client_computes_of_all_its_records_is_refused(tmp_path, spec):
    path = tmp_path / "ward.csv"
    path.write_text("age,score,sick\n" + "".join(f"{20 + row},{row % 7},{row % 2}\n" for row in range(60)))
    columns = {"data.source": "private", "data.feature-names": "age,score", "data.class-names": "0,1"}
    run = RECORD.updated({**columns, "model.name": "linear"})
    node = {"data": f"csv:{path}?label=sick", "client-id": "ward-3"}

    assert ask("query", run, node).has_content()
    restart()
    with pytest.raises(ConfigError, match="one of them changes the inputs of all others"):
        ask("query", run, {**node, "data": f"{node['data']}&{spec}"})
    restart()
    assert ask("query", run, {**node, "data": f"{node['data']}&{spec}", "group": "new"}).has_content()
    with pytest.raises(ConfigError, match="one of them changes the inputs of all others"):
        settle(run.updated({"data.source": f"csv:{path}?label=sick&user=score&{spec}"}))
