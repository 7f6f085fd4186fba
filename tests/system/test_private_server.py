"""A private run over gRPC whose server is killed with SIGKILL and started again; its clients stay.

`make kills` kills it twenty times (NUFED_KILLS).
"""

import os
import random
import time

import pytest

from nufed.common.models.frozen import hash_of
from nufed.common.privacy.accounting import epsilon
from nufed.common.privacy.ledger import LEDGER, PrivacyLedger
from nufed.server.checkpoint import load_checkpoint
from nufed.server.run_folder import load_model
from tests.system.processes import SMALL_RUN, faulty_clients, free_address, nufed, processes, run_folder

KILLS = int(os.environ.get("NUFED_KILLS", "1"))

pytestmark = [pytest.mark.system, pytest.mark.timeout(240 + 60 * KILLS)]


def ledger_of(folder):
    return PrivacyLedger.open_existing(folder / LEDGER, to_go_on=False)


def test_a_server_killed_again_and_again_accounts_for_every_model_and_ends(tmp_path):
    rounds, out, address, draw = 20 * KILLS, tmp_path / "out", free_address(), random.Random(KILLS)
    private = ["--dp", "client", "--dp-clip", 1, "--dp-noise", 2, *SMALL_RUN[:-2], "--local-steps", 1]
    options = ["--clients", 3, "--rounds", rounds, *private, "--out", out, "--insecure", "--listen", address]
    command = nufed("server", *options, "--resume-or-start")
    with processes(tmp_path) as start:
        server = start("server-0", *command)
        server.wait_for("listening on ")
        start("clients", *faulty_clients(address, "0", "1", "2"))
        for number in range(KILLS):
            before = len(ledger_of(run_folder(out)).charges) if out.exists() else 0
            deadline = time.monotonic() + 90
            while not (out.exists() and any(out.iterdir()) and (run_folder(out) / "metrics.jsonl").exists()) or (
                len(ledger_of(run_folder(out)).charges) < before + 2
            ):
                assert time.monotonic() < deadline, server.output
                time.sleep(draw.uniform(0.01, 0.05))
            server.kill()
            folder = run_folder(out)
            ledger, checkpoint = ledger_of(folder), load_checkpoint(folder)
            done = checkpoint.round if checkpoint else 0
            assert not done or ledger.model_of(done) == hash_of(checkpoint.params)
            assert {charge.round for charge in ledger.charges} <= set(range(1, done + 2))
            server = start(f"server-{number + 1}", *command)
        assert server.wait(60 + 30 * KILLS) == 0

    folder = run_folder(out)
    ledger = ledger_of(folder)
    assert {charge.round for charge in ledger.charges} == set(range(1, rounds + 1))
    assert rounds <= len(ledger.charges) <= rounds + KILLS
    assert ledger.model_of(rounds) == hash_of(load_model(folder)[0])
    assert ledger.epsilon == pytest.approx(epsilon({ledger.terms.step(3): len(ledger.charges)}, ledger.terms.delta))
    assert "client-level ε = " in server.output
