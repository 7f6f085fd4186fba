"""Metrics for Prometheus: those of a real run, their names, and the dashboard and alerts that read them."""

import json
import math
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from nufed.common.errors import ConfigError, RunError
from nufed.common.events import Evaluated, EventStream, Rejected, Replied, Started
from nufed.deploy.commands.cli import main
from nufed.deploy.monitoring.metrics_server import parse_address, served
from nufed.deploy.monitoring.prometheus_metrics import PrometheusMetrics, kept_metrics
from nufed.server.events_file import read_events
from tests.deploy.dashboard.pages_made import private_events
from tests.server.test_run import lines, run

MACHINES = Path(__file__).parents[3] / "deploy" / "machines"
ALERTS = MACHINES / "prometheus" / "nufed-alerts.yml"
CONFIG = MACHINES / "prometheus" / "prometheus.yml"
DASHBOARD = MACHINES / "grafana" / "nufed.json"
NOT_METRICS = {"job", "instance", "nufed"}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return the metrics and the folder of a real run."""
    sink, out = PrometheusMetrics(), tmp_path_factory.mktemp("runs")
    folder = run(out, listener=sink.handle)
    return sink, folder


def samples(sink):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(generate_latest(sink.registry).decode())
        for sample in family.samples
    }


def value(found, name, **labels):
    return found[(name, *sorted(labels.items()))]


def test_metrics_of_a_run_are_those_of_its_folder(told):
    sink, folder = told

    found, records = samples(sink), lines(folder)
    summary = json.loads((folder / "summary.json").read_text())

    assert value(found, "nufed_round") == value(found, "nufed_planned_rounds") == 4
    assert value(found, "nufed_rounds_total") == 4
    assert value(found, "nufed_connected_clients") == 9
    assert value(found, "nufed_working_clients") == 0
    assert value(found, "nufed_replies_total", phase="training", outcome="replied") == sum(
        record["replied"] for record in records
    )
    assert value(found, "nufed_received_bytes_total", phase="training") == summary["costs"]["bytes_up"]
    assert value(found, "nufed_sent_bytes_total", phase="training") == summary["costs"]["bytes_down"]
    assert value(found, "nufed_training_loss") == pytest.approx(records[-1]["loss"])
    assert value(found, "nufed_gradient_evaluations_total") == summary["costs"]["gradient_evaluations"]
    assert value(found, "nufed_phase_duration_seconds_count", phase="evaluation") == 4
    assert value(found, "nufed_run_state", nufed_run_state="complete") == 1
    for group in ("participating", "new"):
        curve, step = summary[group]["accuracy"], summary["primary_step"]
        assert value(found, "nufed_evaluation_score", group=group, adaptation="after", metric="accuracy") == curve[step]
        assert value(found, "nufed_evaluation_loss", group=group, adaptation="before") == summary[group]["loss"][0]
    assert value(found, "process_resident_memory_bytes") > 1e7


def test_no_text_of_a_client_becomes_a_label_and_the_number_of_series_is_bounded(told):
    sink = PrometheusMetrics()
    for number in range(2_000):
        about = {"client": f'x"{{}}\n{number}', "phase": "training", "round": number, "bytes_up": 1, "bytes_down": 1}
        sink.handle(Replied(seconds=0.1, **about))
        sink.handle(Rejected(outcome="rejected", reason="<script>" * 1000, seconds=0.1, **about))
    sink.handle(
        Started(
            run="r" * 10_000, folder="/secret", options={"data.source": "npz:/secret"}, engine="local", first_round=1,
            num_rounds=1, measure="accuracy",
        )
    )  # fmt: skip
    sink.handle(
        Evaluated(round=1, final=True, groups={"new": {"m" * 10_000: (0.1, 0.2)}}, num_clients={"new": 1}, seconds=1)
    )

    text = generate_latest(sink.registry).decode()

    assert len(text) < 20_000
    assert "<script>" not in text
    assert "secret" not in text
    assert value(samples(sink), "nufed_replies_total", phase="training", outcome="rejected") == 2_000


def test_what_is_withheld_is_no_number_and_epsilon_is_one_under_privacy_alone(told):
    assert math.isnan(value(samples(told[0]), "nufed_privacy_epsilon"))
    sink = PrometheusMetrics()
    for event in private_events():
        sink.handle(event)

    found = samples(sink)
    assert value(found, "nufed_privacy_epsilon") == 3.0
    for name in ("connected_clients", "working_clients", "training_loss", "diverged_clients"):
        assert math.isnan(value(found, f"nufed_{name}")), name


def test_metrics_are_served_while_a_run_goes_on(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    typed = ["simulate", "--quiet", "--clients", "3", "--new-clients", "1", "--rounds", "1", "--model", "linear"]
    asked = []

    def ask(_self, event):
        if event.kind == "round":
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
                asked.append((response.headers["Content-Type"], response.read().decode()))
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=5)
        publish(_self, event)

    publish = EventStream.publish
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventStream, "publish", ask)
        assert main([*typed, "--metrics", str(port), "--out", str(tmp_path)]) == 0
    [(content_type, text)] = asked
    assert content_type.startswith("text/plain")
    assert "nufed_connected_clients 4.0" in text
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    assert [event.kind for event in read_events(next(tmp_path.iterdir()))][-1] == "finished"


def test_a_page_and_a_port_share_the_metrics_of_a_stream():
    with EventStream() as stream, kept_metrics(stream) as outer:
        with kept_metrics(stream) as inner:
            shared = stream.sinks
        left = stream.sinks

    assert inner is outer
    assert len(shared) == 1
    assert left == shared
    assert stream.sinks == ()


def test_addresses_are_of_this_machine_unless_a_host_is_named():
    assert parse_address("9100") == ("127.0.0.1", 9100)
    assert parse_address("0.0.0.0:9100") == ("0.0.0.0", 9100)
    assert parse_address("[::1]:9100") == ("::1", 9100)
    for wrong in ("", "host", "host:", "1:70000", "²", ":-1"):
        with pytest.raises(ConfigError, match=r"Expected \[HOST:\]PORT behind --metrics"):
            parse_address(wrong)
    with served(PrometheusMetrics().registry, "0") as url:
        taken = url.split(":")[2].split("/")[0]
        with pytest.raises(RunError, match="Choose another --metrics"), served(PrometheusMetrics().registry, taken):
            pass


def metrics_named(expression):
    without_texts = re.sub(r'"[^"]*"|\[[^]]*\]|\{[^}]*\}|\$\w+', " ", expression)
    without_labels = re.sub(r"\b(by|on|without)\s*\([^)]*\)", " ", without_texts)
    return set(re.findall(r"\b(?:nufed|process|python)_\w+", without_labels))


def test_dashboard_and_alerts_name_metrics_that_there_are(told):
    import yaml

    exported = {name for name, *_ in samples(told[0])} | {"nufed_dropped_events_total"}
    dashboard = json.loads(DASHBOARD.read_text())
    alerts = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]

    of_panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    of_alerts = [rule["expr"] for rule in alerts]
    of_variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]

    used = set().union(*map(metrics_named, [*of_panels, *of_alerts, *of_variables]))
    assert len(used) > 20
    assert used <= exported
    ours = {name for name in exported if name.startswith("nufed_") and not name.endswith(("_created", "_info"))}
    shown = set().union(*map(metrics_named, [*of_panels, *of_alerts]))
    histograms = {re.sub("_(bucket|sum|count)$", "", name) for name in shown}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in ours} <= histograms | shown
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not installed")
def test_promtool_finds_nothing_wrong(told):
    for typed, given in (
        (["check", "config", str(CONFIG)], b""),
        (["check", "rules", str(ALERTS)], b""),
        (["check", "metrics"], generate_latest(told[0].registry)),
    ):
        done = subprocess.run(["promtool", *typed], input=given, capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
