"""Attacks on a simulated federation, from Python: the same runs, checks and endings as the command line has."""

import pytest

import nufed
from tests.library.federations import build, same_model, sites

FEW = {"num_inner_steps": 0, "num_local_steps": 2, "num_adapt_steps": 1, "primary_step": 1, "interval": 0}
ROBUST = {"aggregation": "median", "num_attackers": 1, "participation_fraction": 1.0}


def simulated(num_rounds=1, **options):
    given = {**FEW, **ROBUST, **options}
    return nufed.simulate(sites(), build, new_clients=["site-5"], num_rounds=num_rounds, progress=False, **given)


def test_an_attacked_run_judges_the_honest_clients_and_goes_on_with_its_attack(tmp_path):
    run = simulated(attack="scaled", attackers=1, out=tmp_path)
    whole = simulated(2, attack="scaled", attackers=1)
    honest = simulated()

    assert run.summary["participating"]["num_clients"] == 4
    assert honest.summary["participating"]["num_clients"] == 5
    (attacker,) = run.attackers
    assert attacker in set(run.clients["client"])
    assert honest.attackers == ()
    judged = run.curves("participating").query("split == 'test' and metric == 'accuracy' and step == 1")
    mean = judged[judged["client"] != attacker]["value"].mean()
    assert run.summary["participating"]["accuracy"][1] == pytest.approx(mean)
    for attack in ({"attack": "alie", "attackers": 1}, {"attack": "scaled", "attackers": 2}):
        with pytest.raises(nufed.RunError, match="Give attack='scaled', attackers=1 to go on"):
            run.resume(2, **attack)
    with pytest.raises(nufed.RunError, match="neither attack= nor attackers="):
        honest.resume(2, attack="scaled", attackers=1)
    loaded = nufed.load_run(run.path, dataset=sites(), model=build, new_clients=["site-5"])
    assert same_model(loaded.resume(2, progress=False), whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"attack": "scaled"}, "attack= and attackers= together"),
        ({"attackers": 1}, "attack= and attackers= together"),
        ({"attack": "scale", "attackers": 1}, r"Unknown attack 'scale'\. Did you mean 'scaled'"),
        ({"attack": "scaled", "attackers": 5}, "attackers=5 is refused: expected 1 to 4 of 5"),
        ({"attack": "scaled", "attackers": 0}, "attackers=0 is refused: expected 1 to 4 of 5"),
        ({"attack": "scaled", "attackers": "two"}, "attackers expects a whole number"),
        ({"attack": 3, "attackers": 1}, "attack expects a name"),
    ],
)
def test_an_attack_that_cannot_be_is_refused_in_words_of_python(options, said):
    with pytest.raises(nufed.ConfigError, match=said) as refused:
        simulated(**options)

    assert "--" not in str(refused.value)
