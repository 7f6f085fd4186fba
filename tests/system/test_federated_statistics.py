"""A server that asks its clients for statistics: those that allow it give the run its means; the others are named."""

import json

import pytest

from nufed.client.personal_model import load_personal_model
from nufed.common.config import RunConfig
from nufed.common.data.private.load import Membership, own_statistics
from nufed.common.data.private.task import statistics_shape
from nufed.common.settings import Settings
from nufed.common.statistics import pool
from nufed.deploy.commands.cli import main
from tests.system.processes import processes, run_folder
from tests.system.test_private_federation import OPTIONS, client, start_server, write_table

pytestmark = pytest.mark.system


def test_clients_that_allow_it_give_the_run_its_scales(tmp_path, monkeypatch, capsys):
    """They are those of the support splits together, in every client's preparation, and the run is found again."""
    federated = OPTIONS.replace("\n[model]", 'scale = "federated"\n\n[model]', 1)
    monkeypatch.setattr("tests.system.test_private_federation.OPTIONS", federated)
    for index in range(3):
        write_table(tmp_path / f"{index}.csv", index)
    specs = [f"csv:{tmp_path}/{index}.csv?label=y" for index in range(3)]
    flags = [["--allow-statistics"], [], ["--new"]]
    with processes(tmp_path) as start:
        server, address = start_server(start, tmp_path)
        sites = []
        for index, spec in enumerate(specs):
            words = [str(word) for word in client(tmp_path, address, index, *flags[index])]
            words[words.index("--data") + 1] = spec
            sites.append(start(f"site-{index}", *words))
        assert server.wait() == 0, server.output
        assert [site.wait(30) for site in sites] == [0, 0, 0]

    folder = run_folder(tmp_path / "runs")
    config = RunConfig.load(folder / "config.json")
    pooled = pool(
        {"site-0": own_statistics(Membership(specs[0], "site-0"), config, Settings(), 10)},
        statistics_shape(config.data),
    )
    assert (config.data.feature_means, config.data.feature_scales) == (repr(pooled.means[0]), repr(pooled.scales[0]))
    report = json.loads((folder / "statistics.json").read_text())
    assert list(report["sites"]) == ["site-0"]
    assert "site-1 told no statistics" in server.output
    assert "--allow-statistics" in report["absent"]["site-1"]
    for index in range(3):
        preparation = load_personal_model(tmp_path / f"{index}.safetensors").preparation
        assert (preparation.shift[0], preparation.scale[0]) == (pooled.means[0], pooled.scales[0])
    again = ["server", "--config", tmp_path / "run.toml", "--out", tmp_path / "runs", "--insecure", "--resume-or-start"]
    assert main(list(map(str, again))) == 0
    assert "is complete" in capsys.readouterr().out
