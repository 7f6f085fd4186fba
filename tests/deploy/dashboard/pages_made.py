"""Pages served in this process, and events of made runs."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.events import Evaluated, Joined, Left, Rejected, Replied, RoundClosed, Started
from nufed.deploy.dashboard.pages import Dashboard
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.dashboard.server import Address, PageServer
from nufed.deploy.dashboard.shelf import Shelf


@contextmanager
def served(root=None, *, live=None, stop=None, host="127.0.0.1", security=None, **access):
    """Serve a page, with TLS if there are certificates; yields (address without the token, the dashboard)."""
    files = {"certificate": security and security.server_certificate, "key": security and security.server_key}
    address = Address.parse(f"{host}:0", **files, insecure=not security)
    with PageServer(address) as server:
        rules = replace(server.access(), **access)
        dashboard = Dashboard(Shelf(Path(root) if root else None, live), rules, stop)
        server.start(dashboard)
        yield f"http://127.0.0.1:{server.port}", dashboard


def started(**changes):
    values = {
        "run": "20260101-000000-made",
        "folder": "/home/ann/runs/20260101-000000-made",
        "options": RunConfig().updated({"data.source": "npz:/home/ann/secret/ward.npz"}).flat(),
        "engine": "fleet",
        "first_round": 1,
        "num_rounds": 10,
        "measure": "accuracy",
        "primary_step": 1,
    }
    return Started(**{**values, **changes})


def evaluated(done, before, after, *, final=False, groups=("participating",)):
    curves = {"accuracy": (before, after, after), "loss": (1.0, 0.5, 0.4)}
    return Evaluated(
        round=done, final=final, groups=dict.fromkeys(groups, curves), num_clients=dict.fromkeys(groups, 2)
    )


def round_of(done, *, replied=2, problems=(), seconds=1.0, **rest):
    return RoundClosed(
        round=done,
        num_rounds=10,
        sampled=2,
        replied=replied,
        problems=dict(problems),
        loss=1 / done,
        seconds=seconds,
        bytes_up=100,
        bytes_down=200,
        **rest,
    )


def private_events():
    """Return the events of two rounds under client-level privacy, as a reader gets them."""
    options = RunConfig().updated({"privacy.dp": "client", "privacy.clip": 1.0, "privacy.epsilon": 8.0}).flat()
    counts = dict.fromkeys(("sampled", "replied", "rejected", "failed", "missing", "gradient_evaluations", "hvps"))
    unknown = {**counts, **dict.fromkeys(("bytes_up", "bytes_down", "loss", "diverged"))}
    rounds = [replace(round_of(done), epsilon=1.5 * done, delta=0.01, **unknown) for done in (1, 2)]
    return started(options=options), *rounds


def view_of(*events):
    view = RunView()
    for event in events:
        view.take(json.loads(json.dumps(event.to_json())))
    return view


SOME_EVENTS = (
    Joined(client="site-a", group="participating", num_support=30, time=1000.0),
    Joined(client="site-b", group="participating", num_support=20, time=1001.0),
    Joined(client="site-n", group="new", num_support=10, time=1002.0),
    started(time=1003.0),
    evaluated(0, 0.1, 0.4),
    Replied(client="site-a", phase="training", round=1, bytes_up=50, bytes_down=70, seconds=1.5, client_seconds=1.2),
    Rejected(client="site-b", phase="training", round=1, outcome="rejected", reason="holds NaN in /home/ann/x/y.pt"),
    round_of(1, replied=1, problems={"site-b": "holds NaN"}),
    evaluated(1, 0.2, 0.6),
    Left(client="site-b", time=1010.0),
)  # fmt: skip
