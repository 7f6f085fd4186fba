"""What ε does not cover leaves the server's process where it is named, and nowhere else: every file, event and page."""

import io
import json
import re

import numpy as np
import pytest
import torch
from prometheus_client import generate_latest
from rich.console import Console

import nufed
from nufed.client import app as client_app
from nufed.client import training
from nufed.common.config import RunConfig
from nufed.common.errors import ConfigError, NufedError, RunError
from nufed.common.events import EventStream
from nufed.common.model_arrays import params_to_arrays
from nufed.common.privacy.publishing import IN_THE_LOG, Publication
from nufed.common.privacy.terms import ClientTerms
from nufed.deploy.commands.terminal import TerminalObserver
from nufed.deploy.dashboard.client_rows import Wanted
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.experiments.cells import Cell, check_published
from nufed.deploy.experiments.finished import read_run
from nufed.deploy.monitoring.prometheus_metrics import kept_metrics
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.observer import ObserverSink
from nufed.server.run import Run, ServerOptions
from nufed.server.withholding import shown_record
from nufed.strategy.meta_fedavg import MetaFedAvg
from nufed.strategy.private_rounds import ClientPrivacy
from nufed.strategy.secure_phase import SecureAggregation
from tests.strategy.fake_grid import FakeGrid, client

NAMES = [f"clinic-{letter}" for letter in "pqrstuvw"]
FAILING = "clinic-q"
OPTIONS = {
    "data.num-clients": 5,
    "data.num-new-clients": 3,
    "data.feature-means": "0,0",
    "data.feature-scales": "1,1",
    "model.name": "linear",
    "federation.num-rounds": 2,
    "federation.participation-fraction": 1.0,
    "evaluation.interval": 1,
    "evaluation.num-adapt-steps": 2,
    "evaluation.primary-step": 2,
    "privacy.dp": "client",
    "privacy.clip": 1.0,
    "privacy.noise": 0.01,
}
ALL = "evaluation,client-curves,participants,examples,training-loss"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Rows of clients with names and numbers of rows that stand for nothing else."""
    rng, path = np.random.default_rng(3), tmp_path_factory.mktemp("data") / "rows.csv"
    lines = ["clinic,first,second,label"]
    for number, name in enumerate(NAMES):
        for first, second in rng.normal(size=(211 + 34 * number, 2)):
            lines.append(f"{name},{first:.4f},{second:.4f},{int(first + number * second > 0)}")
    path.write_text("\n".join(lines))
    return path


class Spied:
    """What clients know, and all that came out of the server's process."""

    def __init__(self, monkeypatch):
        self.losses, self.sizes, self.curves = set(), set(), set()
        train, judge = training.local_update, client_app.adaptation_curves

        def trained(loss, params, support, method, stream):
            if stream.client_id == FAILING:
                raise RuntimeError(f"the loss is not finite on {len(support)} examples")
            update = train(loss, params, support, method, stream)
            self.losses.add(update.loss)
            self.sizes.add(len(support))
            return update

        def judged(place, params, **rest):
            found = judge(place, params, **rest)
            self.curves |= {number for number in found["test-loss"] if number > 1e-3}
            return found

        monkeypatch.setattr(training, "local_update", trained)
        monkeypatch.setattr(client_app, "adaptation_curves", judged)

    def run(self, table, out, publish="", resume=None, **changes):
        """Run a federation with everything that looks on, and keep what it saw."""
        config = RunConfig().updated({**OPTIONS, "data.source": f"csv:{table}?label=label&user=clinic", **changes})
        config = config.updated({"privacy.publish": publish})
        shown, view, heard = io.StringIO(), RunView(), []
        with EventStream() as events, TerminalObserver(Console(file=shown, width=200)) as observer:
            view.connections = lambda: events.connections()  # noqa: PLW0108
            events.attach(ObserverSink(observer), patience=None)
            events.listen(lambda event: (heard.append(event), view.take(event.to_json())))
            with kept_metrics(events) as registry:
                simulate_checked(config, ServerOptions(out=out, resume=resume, events=events), engine="local")
                assert events.flush()
                lines = generate_latest(registry).decode().splitlines()
                exposition = "\n".join(line for line in lines if line.startswith("nufed_"))  # of the run, not of Python
        self.folder = resume or next(out.iterdir())
        self.summary = json.loads((self.folder / "summary.json").read_text())
        self.terminal, self.view = shown.getvalue(), view
        pages = [view.snapshot(), view.page(Wanted())]
        # Three digits stand in compressed pictures, and in hashes (below), by chance.
        files = [path for path in self.folder.iterdir() if path.suffix != ".png"]
        files = [path.read_bytes().decode("utf-8", "ignore") for path in files]
        told = [json.dumps(event.to_json()) for event in heard]
        self.text = "\n".join([*files, *told, json.dumps(pages), exposition, self.terminal])
        return self

    def found(self):
        """Return what of the clients' is among what came out."""
        numbers = {f"{float(number):.6g}" for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", self.text)}
        seen = {
            "names": any(name in self.text for name in NAMES),
            "sizes": any(re.search(rf"(?<![\w.:-]){size}(?![\w.:-])", self.text) for size in self.sizes),
            "losses": any(f"{loss:.6g}" in numbers for loss in self.losses),
            "curves": any(f"{number:.6g}" in numbers for number in self.curves),
            "accuracy": bool(self.summary["participating"]),
            "mean loss": any(
                json.loads(line)["loss"] is not None
                for line in (self.folder / "metrics.jsonl").read_text().splitlines()
            ),
            "counts": '"replied": 4' in self.text,
        }
        return {name for name, is_seen in seen.items() if is_seen}


SHOWN = {
    "": set(),
    "evaluation": {"accuracy"},
    "evaluation,client-curves": {"accuracy", "curves", "names"},
    "participants": {"names", "counts"},
    "participants,examples": {"names", "counts", "sizes"},
    "training-loss": {"mean loss"},
    ALL: {"names", "sizes", "losses", "curves", "accuracy", "mean loss", "counts"},
}


@pytest.mark.parametrize("publish", SHOWN)
def test_a_run_shows_of_its_clients_what_it_names_and_nothing_else(table, tmp_path, monkeypatch, caplog, publish):
    spied = Spied(monkeypatch).run(table, tmp_path, publish)

    assert spied.found() == SHOWN[publish]
    assert spied.summary["status"] == "complete"
    assert f"Client {FAILING} is left out" in caplog.text  # whoever runs it must know
    assert set(spied.summary["outside_epsilon"]["published"]) == set(filter(None, publish.split(",")))
    answered = spied.summary["final_evaluation"]["answered"]
    assert (answered is None) == ("participants" not in publish)
    named = publish.replace(",", ", ")
    assert (f"although ε does not cover it: {named}" in spied.terminal) == bool(publish)


def test_what_is_withheld_stays_so_when_the_run_goes_on_and_the_picture_and_table_are_not_made(
    table, tmp_path, monkeypatch
):
    spied = Spied(monkeypatch).run(table, tmp_path)

    spied.run(table, tmp_path, resume=spied.folder, **{"federation.num-rounds": 3})

    assert (spied.found(), spied.summary["rounds"]) == (set(), 3)
    assert not {"clients.csv", "curves.png", "shots.csv"} & {path.name for path in spied.folder.iterdir()}
    assert "Evaluations are withheld" in spied.terminal
    (told, spent) = [each for each in spied.view.head()["attention"] if each["level"] == "info"]
    assert told["text"].startswith("Not shown, because ε does not cover it")
    assert spent["text"].startswith("ε = ")
    assert spent["text"].endswith("after round 3")
    run = nufed.load_run(spied.folder)
    assert run.withheld == ("evaluation", "client-curves", "participants", "examples", "training-loss", "statistics")
    assert (len(run.curves()), len(run.history)) == (0, 3)
    assert "withheld" in repr(run)


def test_the_reason_of_an_error_names_nobody_but_to_whom_runs_it(table, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the loss is not finite on 97 examples")

    spied = Spied(monkeypatch)
    monkeypatch.setattr(client_app, "EvaluateReply", fail)
    with pytest.raises(nufed.NufedError, match=r"clinic-.*97 examples"):
        spied.run(table, tmp_path)

    (folder,) = tmp_path.iterdir()
    text = "".join(path.read_text() for path in folder.glob("*.json*"))
    assert f"RunError: {IN_THE_LOG}" in text
    assert not any(name in text for name in NAMES)
    assert "97 examples" not in text


def test_a_flower_loop_is_returned_no_metrics_that_are_withheld():
    terms = ClientTerms(clip=1.0, noise=1.0, rate=1.0, num_clients=3, cohort_cap=0, delta=1e-3)
    found = {}
    for publish in ((), ("training-loss", "evaluation")):
        grid = FakeGrid({100 + i: client(f"c{i}") for i in range(3)})
        privacy = ClientPrivacy(terms, publish=publish)
        strategy = MetaFedAvg(participation_fraction=1.0, privacy=privacy, min_clients=3)
        result = strategy.start(grid, params_to_arrays({"w": torch.zeros(2)}), num_rounds=1, timeout=5)
        found[publish] = result.train_metrics_clientapp, result.evaluate_metrics_clientapp

    assert found[()] == ({}, {})
    assert all(found["training-loss", "evaluation"])
    with pytest.raises(ConfigError, match="the server sees their sum alone"):
        MetaFedAvg(aggregation="median", secure=SecureAggregation())
    with pytest.raises(ConfigError, match="Did you mean 'evaluation'"):
        MetaFedAvg(participation_fraction=1.0, privacy=ClientPrivacy(terms, publish=("evaluations",)))


def test_runs_that_withhold_what_they_are_compared_by_are_no_experiment(table, tmp_path, monkeypatch):
    spied = Spied(monkeypatch).run(table, tmp_path)

    with pytest.raises(RunError, match=r"withholds evaluation, client-curves.*--publish"):
        read_run(spied.folder)
    withheld = RunConfig().updated({name: OPTIONS[name] for name in OPTIONS if name.startswith("privacy")})
    with pytest.raises(ConfigError, match="which runs are tuned and compared by"):
        check_published([Cell("one", withheld)])
    check_published([Cell("one", withheld.updated({"privacy.publish": ALL}))])


def test_means_and_scales_of_all_clients_data_are_refused_or_named(table, tmp_path, monkeypatch):
    open_means = {"data.feature-means": "", "data.feature-scales": ""}

    with pytest.raises(ConfigError, match=r"data\.feature-means of all clients' data.*--publish statistics"):
        Spied(monkeypatch).run(table, tmp_path, **open_means)
    assert not list(tmp_path.iterdir())
    Spied(monkeypatch).run(table, tmp_path, "statistics", **open_means)


def test_a_server_refuses_what_a_source_would_be_scaled_by_that_all_have(tmp_path):
    rows = np.arange(60)
    np.savez(tmp_path / "all.npz", x=np.zeros((60, 2)), y=rows * 1.0, user=rows % 3)
    source = {"data.source": f"npz:{tmp_path / 'all.npz'}", "data.task": "regression", "data.partition": "by-user"}
    privacy = {"privacy.dp": "record", "privacy.clip": 1.0, "privacy.noise": 1.0}
    config = RunConfig().updated({**source, **privacy, "data.num-clients": 2, "data.num-new-clients": 1})

    for scale in ({}, {"data.target-means": "0", "data.target-scales": "1"}):
        reason = "are connected" if scale else "scales of targets of all clients' data.*--publish statistics"
        with pytest.raises(NufedError, match=reason):
            Run(FakeGrid({}), config.updated(scale), ServerOptions(out=tmp_path, connect_timeout=0)).conduct()


def test_how_a_secure_sum_went_is_withheld_with_the_participants_whom_it_counts():
    config = RunConfig().updated({"privacy.dp": "client", "privacy.clip": 1.0, "privacy.noise": 1.0})
    secure = {"cohort": 8, "summed": 7, "late": {"client-003": "no answer"}, "bytes_up": 24_000}
    record = {"round": 1, "clients": {}, "problems": {}, "secure_aggregation": secure}

    withheld = shown_record(record, Publication.of(config))
    published = shown_record(record, Publication.of(config.updated({"privacy.publish": "participants,examples"})))

    assert withheld["secure_aggregation"] is None
    assert published["secure_aggregation"] == secure
    assert "secure_aggregation" not in shown_record({"clients": {}, "problems": {}}, Publication.of(config))
