"""A ledger is read back as it was written, or refused; nothing of it can be lost without being seen."""

import random

import pytest

from nufed.common.errors import BudgetSpentError, RunError
from nufed.common.privacy.accounting import SampledGaussian
from nufed.common.privacy.ledger import Charge, PrivacyLedger
from nufed.common.privacy.terms import ClientTerms

TERMS = ClientTerms(clip=1.0, noise=1.0, rate=0.25, num_clients=40, cohort_cap=20, delta=1e-2)
STEP = TERMS.step(40)


@pytest.fixture
def path(tmp_path):
    """A ledger of three rounds, of which the last was charged twice."""
    ledger = PrivacyLedger.create(tmp_path / "privacy.jsonl", TERMS, 2.0)
    for number, model in ((1, "aa"), (2, "bb"), (2, "cc")):
        ledger.charge(Charge(number, STEP, model))
    return tmp_path / "privacy.jsonl"


def test_a_ledger_comes_back_as_it_was_and_goes_on(path):
    ledger = PrivacyLedger.open_existing(path)
    mark, spent = ledger.mark, ledger.epsilon
    ledger.set_budget(3.0)
    ledger.charge(Charge(3, STEP, "dd", is_private=False))

    again = PrivacyLedger.open_existing(path, to_go_on=False)
    assert SampledGaussian(1.0, 0.25, 40, 20) == STEP
    assert (again.terms, again.budget) == (TERMS, 3.0)
    assert [(charge.round, charge.model) for charge in again.charges] == [(1, "aa"), (2, "bb"), (2, "cc"), (3, "dd")]
    assert again.epsilon > spent > 0
    assert (again.model_of(2), again.model_of(9)) == ("cc", "")
    assert again.has(mark)
    assert again.has(again.mark)
    assert not PrivacyLedger(TERMS).has(mark)
    assert not again.is_private
    assert again.to_json()["rounds_charged"] == 4


def test_every_flipped_or_lacking_byte_is_refused_or_costs_a_round(path):
    draw, whole = random.Random(0), path.read_bytes()
    full = PrivacyLedger.open_existing(path)
    cut = 0
    for number in range(400):
        spoilt, place = bytearray(whole), draw.randrange(len(whole))
        if number % 2:
            spoilt[place] ^= 1 << draw.randrange(8)
        else:
            del spoilt[place : place + draw.choice([1, len(whole)])]
        path.write_bytes(spoilt)
        try:
            found = PrivacyLedger.open_existing(path, to_go_on=False)
        except RunError as error:
            assert "privacy.jsonl" in str(error)  # noqa: PT017 - most are refused, not all
            continue
        cut += 1
        assert whole.startswith(bytes(spoilt)) or found.charges[:2] == full.charges[:2]
        assert not found.has(full.mark)  # so a checkpoint that knows of what is missing refuses it
    assert cut < 250


def test_a_last_line_that_was_cut_short_counts_as_a_round(path):
    whole = path.read_bytes()
    for cut in (1, 5, 100):
        path.write_bytes(whole[:-cut])
        assert PrivacyLedger.open_existing(path, to_go_on=False).charges
        assert path.read_bytes() == whole[:-cut]

        ledger = PrivacyLedger.open_existing(path)

        assert [charge.round for charge in ledger.charges] == [1, 2, 3]
        assert [charge.model for charge in ledger.charges] == ["aa", "bb", ""]
        assert PrivacyLedger.open_existing(path).charges == ledger.charges  # it is written down


@pytest.mark.parametrize("content", [None, b"", b"{}", b"{}\n", b'{"format": "x"}\n'])
def test_a_file_that_is_no_ledger_is_refused(path, content):
    path.unlink() if content is None else path.write_bytes(content)

    with pytest.raises(RunError, match=r"privacy\.jsonl"):
        PrivacyLedger.open_existing(path)


def test_no_ledger_is_written_over(path):
    with pytest.raises(RunError, match="refused"):
        PrivacyLedger.create(path, TERMS)


def test_rounds_beyond_the_budget_are_refused_with_what_they_would_cost(path):
    ledger = PrivacyLedger.open_existing(path)

    ledger.check_affordable(STEP)
    with pytest.raises(BudgetSpentError, match=r"within 2 .*50 more rounds would take it from"):
        ledger.check_affordable(STEP, 50)
    ledger.set_budget(0.0)
    ledger.check_affordable(STEP, 50)


def test_what_the_disk_refuses_is_not_charged(path, monkeypatch):
    ledger = PrivacyLedger.open_existing(path)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        ledger.charge(Charge(3, STEP, "dd"))
    monkeypatch.undo()

    assert len(ledger.charges) == 3
    ledger.charge(Charge(3, STEP, "ee"))
    assert [charge.model for charge in PrivacyLedger.open_existing(path).charges] == ["aa", "bb", "cc", "ee"]
