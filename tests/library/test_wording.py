"""Errors of nufed.simulate name its own arguments, whichever part of NuFed explains what is wrong."""

from dataclasses import fields

import numpy as np
import pytest

import nufed
from nufed.common.errors import RunError
from nufed.deploy.commands.run_options import FLAGS
from nufed.deploy.simulation.engine_options import EngineOptions
from nufed.library.wording import in_words_of_python

CLIENTS = {f"site-{i}": (np.ones((20, 2), "float32"), np.arange(20) % 2) for i in range(4)}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ray_address": "auto"}, "ray_address is for engine='ray', but the engine is local. Leave one of them out."),
        ({"gpus_per_client": 0.5}, "gpus_per_client is for engine='ray' or 'processes', but the engine is local."),
        ({"clients_per_actor": 0}, "Expected clients_per_actor as a whole number from 1, got 0."),
        ({"engine": "ray", "ray_address": "nowhere"}, "Expected an address of a Ray cluster as local, auto, HOST:PORT"),
        ({"engine": "ray", "ray_address": "127.0.0.1:9"}, "no firewall is between; or use engine='local'."),
        (
            {"engine": "processes", "gpus_per_client": 0.5, "device": "cpu"},
            r"gpus_per_client=0.5 gives each client a GPU, which contradicts the device 'cpu' \(device or",
        ),
        ({"engine": "processes", "cpus_per_client": 4096}, "cpus_per_client=4096 is more than this machine's"),
        (
            {"secure_aggregation": True, "participation_fraction": 0.5},
            r"\(participation_fraction\), or leave secure_agg",
        ),
        ({"dp": "client"}, "Give .*clip"),
    ],
)
def test_errors_of_a_run_name_arguments_of_python(options, said):
    with pytest.raises(nufed.NufedError, match=said) as refused:
        nufed.simulate(CLIENTS, "linear", num_rounds=1, progress=False, **options)

    assert "--" not in str(refused.value)


@pytest.mark.parametrize("flag", [*FLAGS, *(each.name.replace("_", "-") for each in fields(EngineOptions)), "threads"])
def test_every_flag_that_an_option_has_is_told_by_its_argument(flag):
    @in_words_of_python
    def refuse():
        raise RunError(f"Leave --{flag} out.")

    with pytest.raises(RunError) as refused:
        refuse()

    name = {"threads": "num_threads", "dataset": "dataset", "model": "model"}.get(flag)
    name = name or FLAGS.get(flag, flag).rpartition(".")[2].replace("-", "_")
    assert str(refused.value) == f"Leave {name} out."


def test_commands_in_an_error_stay_as_they_are():
    @in_words_of_python
    def refuse():
        raise RunError("Start it with `nufed server --rounds 3 --dp client`, or take --device cuda, --threads 2.")

    with pytest.raises(RunError) as refused:
        refuse()

    assert str(refused.value) == (
        "Start it with `nufed server --rounds 3 --dp client`, or take device='cuda', num_threads 2."
    )
