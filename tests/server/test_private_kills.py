"""Killed at any moment, a private run has published nothing that its ledger lacks, and goes on with both in agreement.

What a killed process leaves is what it has written by then. So one run is copied, folder and all, before and after each
of its writes and before each of its messages; each copy is what `kill -9` at that moment leaves.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open

from nufed.common.model_arrays import arrays_to_params
from nufed.common.models.frozen import hash_of
from nufed.common.privacy.accounting import SampledGaussian, epsilon
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.server.checkpoint import load_checkpoint
from nufed.server.run_folder import load_model
from nufed.strategy.phase import Outgoing
from tests.server.test_run import lines, run, summary

ROUNDS = 3
PRIVATE = {
    "data__num_clients": 4,
    "data__num_new_clients": 1,
    "federation__num_rounds": ROUNDS,
    "evaluation__interval": 1,
    "evaluation__num_adapt_steps": 2,
    "evaluation__primary_step": 1,
    "method__num_local_steps": 1,
    "privacy__dp": "client",
    "privacy__clip": 1.0,
    "privacy__noise": 3.0,
    "privacy__publish": "evaluation",
}


@dataclass(frozen=True)
class Moment:
    """What a process that is killed leaves: the run's folder, and hashes of the models that it has sent by then."""

    what: str
    folder: Path
    sent: frozenset[str]


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """A whole run, and copies of its folder at every moment at which something was written or sent."""
    out, copies = tmp_path_factory.mktemp("private"), tmp_path_factory.mktemp("moments")
    found, sent = [], set()

    def copy(what):
        for folder in out.glob("*-run"):
            number = f"{len(found):03d}"
            found.append(Moment(what, shutil.copytree(folder, copies / number / folder.name), frozenset(sent)))

    def around(name, original):
        def wrapped(*args, **kwargs):
            copy(f"before {name}")
            result = original(*args, **kwargs)
            copy(f"after {name}")
            return result

        return wrapped

    def messages(self, asked):
        sent.add(hash_of(arrays_to_params(self.arrays)))
        copy(f"sending a message to {self.message_type}")
        return make(self, asked)

    make = Outgoing.messages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", around("fsync", os.fsync))
        patch.setattr(Path, "replace", around("replace", Path.replace))
        patch.setattr(Outgoing, "messages", messages)
        run(out, **PRIVATE)
    return found


def models_in(folder):
    """Return hashes of all models that are in a folder, in files that were not finished too."""
    for path in folder.iterdir():
        if ".safetensors" in path.name:
            try:
                with safe_open(path, framework="pt") as file:
                    yield hash_of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dict
            except SafetensorError:
                pass  # empty so far


def test_nothing_is_published_at_any_moment_that_is_not_in_the_ledger(moments):
    started = hash_of(initial_params())

    for moment in moments:
        published = {*moment.sent, *models_in(moment.folder)} - {started}
        if not (moment.folder / LEDGER).exists():
            assert not published
            continue
        charged = (
            {charge.model for charge in read(moment.folder).charges} if (moment.folder / LEDGER).read_bytes() else set()
        )
        assert published <= charged, moment.what
    assert len(moments) > 60
    assert len(moments[-1].sent) == ROUNDS + 1
    assert len({moment.what for moment in moments}) == 6


def test_a_run_that_was_killed_goes_on_and_ledger_and_model_agree(moments):
    """At 25 moments of all rounds; each goes on in a folder of its own."""
    able = [moment for moment in moments if (moment.folder / "config.json").exists()]
    chosen = able[:: max(1, len(able) // 25)][:25]
    lost, again = 0, 0

    for moment in chosen:
        before = read(moment.folder).charges
        point = load_checkpoint(moment.folder)
        done = point.round if point else 0
        if not (moment.folder / "summary.json").exists():
            run(moment.folder.parent, resume=moment.folder, **PRIVATE)

        ledger = read(moment.folder)
        assert ledger.charges[: len(before)] == before  # nothing is taken back
        assert [charge.round for charge in ledger.charges[len(before) :]] == list(range(done + 1, ROUNDS + 1))
        assert ledger.model_of(ROUNDS) == hash_of(load_model(moment.folder)[0])
        step = SampledGaussian(3.0, 0.5)
        assert summary(moment.folder)["privacy"]["epsilon"] == pytest.approx(
            epsilon({step: len(ledger.charges)}, ledger.terms.delta)
        )
        assert [line["round"] for line in lines(moment.folder)] == [1, 2, 3]
        redone = [charge for charge in before if charge.round == done + 1]
        again += len(redone)
        for charge in redone:  # with fresh noise
            assert charge.model not in {each.model for each in ledger.charges if each is not charge} - {charge.model}
            assert ledger.model_of(done + 1) != charge.model
        lost += done == 0

    assert len(chosen) >= 20
    assert again >= 3
    assert lost >= 3


def read(folder):
    return PrivacyLedger.open_existing(folder / LEDGER, to_go_on=False)


def initial_params():
    from nufed.common.config import RunConfig
    from nufed.common.data import task_of_run
    from nufed.common.models import build_model
    from nufed.common.params import model_params
    from nufed.common.settings import process_settings

    config = RunConfig()
    with torch.random.fork_rng():
        return model_params(build_model(config.model, task_of_run(config, process_settings()), seed=config.seed))
