"""Runs with slow clients: over-selection and buffered steps, in simulated time and from any grid."""

import json
import sys

import pytest
from safetensors.torch import load_file

from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError
from nufed.common.events import EventStream
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.control import RunControl
from nufed.server.options import ServerOptions

SMALL = RunConfig.parse(
    {
        "name": "late",
        "data.num-clients": 10,
        "data.num-new-clients": 0,
        "model.hidden-sizes": "4",
        "method.num-local-steps": 1,
        "method.batch-size": 4,
        "federation.num-rounds": 6,
        "federation.client-speeds": "slow:0.2:10",
        "evaluation.interval": 3,
        "evaluation.num-adapt-steps": 1,
        "evaluation.primary-step": 1,
    }
)
OVER = SMALL.updated({"federation.over-selection": 0.4, "federation.min-reply-fraction": 0.9})
BUFFERED = SMALL.updated(
    {
        "federation.mode": "buffered",
        "federation.buffer-size": 3,
        "federation.server-optimizer": "adam",
        "federation.server-lr": 0.05,
        "federation.client-speeds": "slow:0.3:4",
    }
)


def run(config, out, engine="local", **options):
    out.mkdir(parents=True, exist_ok=True)
    with EventStream() as events:
        simulate_checked(config, ServerOptions(out=out, events=events, **options), engine=engine)
    (folder,) = out.iterdir() if not options.get("resume") else (options["resume"],)
    return folder


class StopsAfter(RunControl):
    """Ends a run in whose folder are so many rounds."""

    def __init__(self, rounds, out):
        super().__init__()
        self._rounds, self._out = rounds, out

    @property
    def stop_reason(self):
        lines = [file.read_text().count("\n") for file in self._out.glob("*/metrics.jsonl")]
        return "enough" if sum(lines) >= self._rounds else None


def records(folder):
    """Return the rounds of a run without what depends on this machine's time."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds")
        for metrics in line["clients"].values():
            metrics.pop("seconds")
            metrics.pop("growth")  # a ratio of norms, whose last bit depends on where in memory the arrays lie
        if line["evaluation"]:
            line["evaluation"].pop("seconds")
    return lines


def model(folder):
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("config", [OVER, BUFFERED], ids=["over-selection", "buffered"])
def test_in_simulated_time_processes_leave_the_run_that_one_process_leaves(config, tmp_path):
    here, workers = run(config, tmp_path / "local"), run(config, tmp_path / "processes", "processes")

    assert model(here) == model(workers)
    assert records(here) == records(workers)


def test_over_selection_leaves_enough_for_a_secure_sum(tmp_path):
    options = {"federation.over-selection": 0.4, "federation.participation-fraction": 0.6, "federation.num-rounds": 1}
    config = SMALL.updated({**options, "privacy.secure-aggregation": True, "evaluation.interval": 0})

    (line,) = records(run(config, tmp_path))

    assert (line["sampled"], line["replied"], line["dropped"]) == (8, 6, 2)
    assert line["secure_aggregation"]["threshold"] == 6


def test_over_selection_takes_the_fastest_that_are_needed_and_drops_the_others(tmp_path):
    late = records(run(SMALL, tmp_path / "waiting"))
    early = records(run(OVER, tmp_path / "early"))

    assert {line["sampled"] for line in early} == {7}
    assert {(line["replied"], line["dropped"]) for line in early} == {(5, 2)}
    assert all(line["problems"] == {} for line in early)
    assert {line["simulated_seconds"] for line in early} == {1.0}  # there are 8 fast clients, and 5 of them among any 7
    assert {line["simulated_seconds"] for line in late} == {1.0, 10.0}
    summary = json.loads((next((tmp_path / "early").iterdir()) / "summary.json").read_text())
    assert (summary["dropped"], summary["simulated_seconds"]) == (12, 6.0)


def test_a_buffered_run_that_was_stopped_at_any_step_ends_at_the_same_model(tmp_path):
    """Those at work are so again, on the models that they were sent, of which some are old."""
    whole = run(BUFFERED, tmp_path / "whole")
    assert max(line["buffer"]["max_staleness"] for line in records(whole)) >= 3

    for stop in (1, 4):
        out = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(BUFFERED, out, control=StopsAfter(stop, out))
        (folder,) = out.iterdir()
        assert len(records(folder)) in (stop, stop + 1)
        run(BUFFERED, out, resume=folder)

        assert model(folder) == model(whole)
        assert records(folder) == records(whole)


def test_a_buffer_as_large_as_all_clients_at_one_speed_is_the_synchronous_run(tmp_path):
    everybody = SMALL.updated({"federation.participation-fraction": 1.0, "federation.client-speeds": "slow:0:1"})
    buffered = everybody.updated({"federation.mode": "buffered", "federation.buffer-size": 10})

    assert model(run(everybody, tmp_path / "a")) == model(run(buffered, tmp_path / "b"))


def test_clients_that_are_too_slow_for_the_timeout_or_the_staleness_are_counted(tmp_path):
    timed = records(run(SMALL.updated({"federation.round-timeout": 5.0}), tmp_path / "timeout"))
    aged = records(run(BUFFERED.updated({"federation.max-staleness": 2}), tmp_path / "staleness"))
    buffered = records(run(BUFFERED.updated({"federation.round-timeout": 2.5}), tmp_path / "both"))

    missed = [line for line in timed if line["missing"]]
    assert missed
    assert {line["simulated_seconds"] for line in missed} == {5.0}
    assert "no reply within 5 s" in str(missed[0]["problems"])
    assert sum(line["dropped"] for line in aged) > 0
    assert max(line["buffer"]["max_staleness"] for line in aged) <= 2
    assert sum(line["missing"] for line in buffered) > 0
    assert all(line["replied"] == 3 for line in [*aged, *buffered])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"federation.buffer-size": 3}, "set federation.mode to buffered"),
        ({"federation.mode": "buffered", "federation.over-selection": 0.1}, "leave over-selection at 0"),
        ({"federation.mode": "buffered", "federation.training": "local"}, "federation.training=local"),
        ({"federation.mode": "buffered", "federation.buffer-size": 11}, "Lower buffer-size"),
        ({"federation.client-speeds": "fast"}, "lognormal:SIGMA"),
        ({"federation.client-speeds": "slow:2:1"}, "SHARE from 0 to 1"),
        ({"federation.client-speeds": "lognormal:nan"}, "lognormal:SIGMA"),
        ({"federation.client-speeds": "file:nothing.csv"}, "Check the path"),
        ({"federation.client-speeds": "python:os:getcwd"}, "os"),
    ],
)
def test_what_contradicts_is_refused_before_anything_starts(options, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        run(SMALL.updated(options), tmp_path / "run")

    assert list((tmp_path / "run").iterdir()) == [] if (tmp_path / "run").exists() else True


def test_speeds_come_from_files_and_functions_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"client-{index:03d}" for index in range(10)]
    lines = ["client,seconds", *(f"{name},{0.5 + index}" for index, name in enumerate(names))]
    (tmp_path / "speeds.csv").write_text("\n".join(lines))
    (tmp_path / "late_speeds.py").write_text(
        "def seconds(names, seed):\n    return [0.5 + i for i in range(len(names))]\n"
    )
    config = SMALL.updated({"federation.num-rounds": 1, "federation.participation-fraction": 1.0})
    config = config.updated({"data.num-new-clients": 1})  # never trains, and needs no speed

    for speeds in ("file:speeds.csv", "python:late_speeds:seconds"):
        (line,) = records(run(config.updated({"federation.client-speeds": speeds}), tmp_path / speeds[:4]))
        assert line["simulated_seconds"] == 9.5

    is_none, text, number = "'client-001' is none", "got type str", "got type int"
    for returned, told in (("['1', 'a secret']", is_none), ("'a secret'", text), ("7", number)):
        (tmp_path / "wrong_speeds.py").write_text(f"def of(names, seed):\n    return {returned}\n")
        monkeypatch.delitem(sys.modules, "wrong_speeds", raising=False)
        with pytest.raises(ConfigError, match=told) as raised:
            run(config.updated({"federation.client-speeds": "python:wrong_speeds:of"}), tmp_path / "wrong")
        assert "a secret" not in str(raised.value)

    long_field = "x" * 2**18
    for wrong, told in (
        (lines[:-1], r"1 of 10 clients.*client-009"),
        ([*lines, "client-003,7"], "client-003' has several"),
        ([*lines, f"{long_field},1"], "Check the path"),
    ):
        (tmp_path / "speeds.csv").write_text("\n".join(wrong))
        with pytest.raises(ConfigError, match=told):
            run(config.updated({"federation.client-speeds": "file:speeds.csv"}), tmp_path / "again")
