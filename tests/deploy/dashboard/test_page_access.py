"""Who may see the page and stop a run, what is never served, and what slow readers cost: nothing."""

import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from nufed.common.events import Finished
from nufed.deploy.commands.cli import main
from nufed.deploy.dashboard.access import CSRF_HEADER
from nufed.deploy.dashboard.run_view import RunView
from nufed.deploy.network.certificates import CertificateFolder, create_authority
from tests.deploy.dashboard.pages_made import SOME_EVENTS, round_of, served, started, view_of


def ask(url, body=None, context=None, **headers):
    """Return (status, headers, body) of a request; `Host_` stands for the header Host."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, named)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def entered(base, token, **changes):
    """Return the headers of a page that has shown the token."""
    _, headers, body = ask(f"{base}/api/login", {"token": token}, Origin=base)
    cookie = headers["Set-Cookie"].split(";")[0]
    return {"Cookie": cookie, "Origin": base, CSRF_HEADER: json.loads(body)["csrf"], **changes}


@pytest.fixture
def stops():
    return []


@pytest.fixture
def live(stops):
    with served(live=view_of(*SOME_EVENTS), stop=stops.append) as (base, dashboard):
        yield base, dashboard.access.token


def test_on_this_machine_reading_is_free_and_every_answer_keeps_browsers_in_bounds(live):
    base, _ = live
    pages = {
        path: ask(base + path) for path in ("/", "/main.js", "/vendor/uPlot.iife.min.js", "/api/runs", "/api/none")
    }

    assert [status for status, *_ in pages.values()] == [200, 200, 200, 200, 404]
    for _, headers, _ in pages.values():
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in headers
    page = pages["/"][2].decode()
    assert not re.search(r"https?://|<style|style=|onclick|<script>", page)
    assert "MIT" in ask(f"{base}/vendor/uPlot.LICENSE.txt")[2].decode()


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "[::2]:80", "", "0.0.0.0", "localhost.evil"]
)
def test_a_page_of_another_name_that_leads_here_gets_nothing(live, host):
    status, _, body = ask(f"{live[0]}/api/runs", Host_=host)

    assert status == 421
    assert b"site-a" not in body


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "127.0.0.1", "[::1]:8080"])
def test_the_names_of_this_machine_are_known(live, host):
    assert ask(f"{live[0]}/api/runs", Host_=host)[0] == 200


@pytest.mark.parametrize("without", ["Cookie", "Origin", CSRF_HEADER])
def test_stopping_needs_the_token_and_a_page_of_this_origin(live, stops, without):
    base, token = live
    headers = entered(base, token)
    url = f"{base}/api/runs/live/stop"

    lacking = {name: value for name, value in headers.items() if name != without}
    assert ask(url, {}, **lacking)[0] == 403
    for value in ("", "null", "https://evil.example", base.replace("http:", "https:"), base + "1"):
        assert ask(url, {}, **{**headers, without: value})[0] == 403
    assert ask(url, None, **headers)[0] == 405
    assert stops == []

    assert ask(url, {}, **headers)[0] == 200
    assert stops == ["stopped from the page"]


def test_a_wrong_token_opens_nothing_and_cookies_are_for_this_page_alone(live):
    base, token = live

    refused = [
        ask(f"{base}/api/login", body, Origin=base)[0] for body in ({"token": "x"}, {"token": token[:-1]}, {}, [])
    ]
    foreign = ask(f"{base}/api/login", {"token": token}, Origin="https://evil.example")[0]
    large = ask(f"{base}/api/login", {"token": "A" * 100_000}, Origin=base)[0]
    _, headers, _ = ask(f"{base}/api/login", {"token": token}, Origin=base)

    assert (refused, foreign, large) == ([401] * 4, 403, 401)
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(re.split("; ?", headers["Set-Cookie"]))
    assert token not in headers["Set-Cookie"]


def test_elsewhere_reading_needs_the_token_too():
    with served(live=view_of(*SOME_EVENTS), is_open=False) as (base, dashboard):
        token = dashboard.access.token
        paths = ["/api/runs", "/api/runs/live", "/api/runs/live/clients", "/api/runs/live/stream", "/api/compare"]

        refused = [ask(base + path) for path in [*paths, "/api/experiments/x", "/metrics", "/metrics/"]]
        session = json.loads(ask(f"{base}/api/session")[2])
        opened = ask(f"{base}/api/runs/live", **entered(base, token))[0]
        by_program = ask(f"{base}/api/runs/live", Authorization=f"Bearer {token}")[0]
        wrong = ask(f"{base}/api/runs/live", Authorization="Bearer x", Cookie=f"{dashboard.access.cookie}=x")[0]

    assert {status for status, *_ in refused} == {401}
    assert not any(b"site-a" in body for *_, body in refused)
    assert session["may_read"] is False
    assert (opened, by_program, wrong) == (200, 200, 401)


@pytest.mark.parametrize(
    "name", ["..", "../secret", "..%2Fsecret", "%2e%2e/secret", "/etc", "..\\secret", "made%00", "."]
)
def test_names_that_lead_elsewhere_are_no_runs(some_runs, tmp_path, name):
    inside = tmp_path / "runs"
    inside.mkdir()
    (inside / "made").symlink_to(some_runs / "20260101-000001-one")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "config.json").write_text("{}")

    with served(inside) as (base, _):
        answers = [ask(f"{base}/api/runs/{name}{rest}")[0] for rest in ("", "/clients", "/stream")]
        static = [ask(f"{base}/{path}")[0] for path in ("../pages.py", "%2e%2e/pages.py", "vendor/", "static/page.css")]

    assert set(answers + static) <= {404, 307, 400}


def test_no_path_of_this_machine_no_token_and_no_key_is_served(some_runs):
    with served(some_runs, live=view_of(*SOME_EVENTS)) as (base, dashboard):
        names = [run["run"] for run in json.loads(ask(f"{base}/api/runs")[2])["runs"]]
        paths = [
            "/api/runs",
            "/api/session",
            "/api/runs/live",
            "/api/runs/live/clients",
            f"/api/compare?run={names[0]}",
        ]
        sent = b" ".join(ask(base + path)[2] for path in [*paths, *(f"/api/runs/{name}" for name in names)]).decode()

    assert len(names) == 3
    assert str(some_runs) not in sent
    assert "/home/" not in sent
    assert dashboard.access.token not in sent


def listening(base, path="/api/runs/live/stream?after=-1,0&epoch=0", size=None):
    """Return a socket that has asked for a stream."""
    host, port = base.removeprefix("http://").split(":")
    waiting = socket.socket()
    if size:
        waiting.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
    waiting.connect((host, int(port)))
    waiting.settimeout(20)
    waiting.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return waiting


def read_until(waiting, words):
    """Return what a stream has sent by the time that it has sent `words`."""
    content = b""
    while words not in content:
        chunk = waiting.recv(65_536)
        assert chunk, content[-500:]
        content += chunk
    return content


def test_ten_readers_one_of_them_stalled_take_no_time_from_the_run_and_miss_nothing():
    alone = RunView()
    start = time.process_time()
    for done in range(1, 2001):
        alone.take(round_of(done).to_json())
    usual = time.process_time() - start
    view = view_of(started(num_rounds=4000))

    with served(live=view) as (base, dashboard):
        readers = [listening(base) for _ in range(9)]
        stalled = listening(base, size=1024)
        for reader in readers:
            read_until(reader, b"event: news")
        taken = 0.0
        for done in range(1, 4001):
            begun = time.perf_counter()
            view.take(round_of(done).to_json())
            taken += time.perf_counter() - begun
            if done % 400 == 0:
                time.sleep(0.1)
        view.take(Finished(status="complete", round=4000).to_json())
        for reader in readers:
            read_until(reader, b'"status": "complete"')
        counted = dashboard._readers
        for each in [*readers, stalled]:
            each.close()
        until = time.monotonic() + 20
        while dashboard._readers and time.monotonic() < until:
            time.sleep(0.05)

        assert counted == 10
        assert dashboard._readers == 0, "readers that have gone are let go"
    assert taken < 20 * usual + 2, "nobody who adds an event waits for a reader"


def test_readers_and_connections_are_bounded():
    with served(live=view_of(*SOME_EVENTS)) as (base, _):
        readers = [listening(base) for _ in range(48)]
        for reader in readers:
            read_until(reader, b"event: news")

        status, _, body = ask(f"{base}/api/runs/live/stream")

        assert status == 503
        assert b"Close one of them" in body
        assert ask(f"{base}/api/runs/live")[0] == 200
        for reader in readers:
            reader.close()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not show a process's open files")
@pytest.mark.parametrize("is_encrypted", [False, True])
def test_connections_that_ask_for_nothing_leave_the_process_its_files(is_encrypted, tmp_path):
    """With TLS they are no connections to the server before they have agreed on it, but open files."""
    files, security = Path("/proc/self/fd"), None
    if is_encrypted:
        security = CertificateFolder(tmp_path)
        create_authority(security, ["localhost"])
    with served(live=view_of(*SOME_EVENTS), security=security) as (base, _):
        place, before = ("127.0.0.1", int(base.rpartition(":")[2])), len(list(files.iterdir()))
        silent = [socket.create_connection(place) for _ in range(400)]
        until = time.monotonic() + 10
        held = len(silent)
        while not 0 < held < 300 and time.monotonic() < until:
            time.sleep(0.2)
            held = len(list(files.iterdir())) - before - len(silent)
        for connection in silent:
            connection.close()

        assert 0 < held < 300  # with the few files that the server itself opens


def test_over_tls_the_cookie_is_secure_and_other_protocols_are_not_spoken(tmp_path):
    from dataclasses import replace

    from nufed.deploy.dashboard.pages import Dashboard
    from nufed.deploy.dashboard.server import Address, PageServer
    from nufed.deploy.dashboard.shelf import Shelf

    folder = CertificateFolder(tmp_path)
    create_authority(folder, ["localhost", "pages.example"])
    address = Address.parse("0", certificate=folder.server_certificate, key=folder.server_key, insecure=False)
    context = ssl.create_default_context(cafile=str(folder.authority_certificate))
    with PageServer(address) as server:
        dashboard = Dashboard(Shelf(None, RunView()), replace(server.access(), is_open=False))
        server.start(dashboard)
        base = f"https://localhost:{server.port}"
        status, headers, _ = ask(f"{base}/api/login", {"token": dashboard.access.token}, context, Origin=base)
        known = ask(f"{base}/", None, context, Host_="pages.example")[0]
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            spoken = plain.recv(100)

    assert status == known == 200
    assert headers["Set-Cookie"].startswith("__Host-nufed-")
    assert "Secure" in headers["Set-Cookie"]
    assert not spoken.startswith(b"HTTP")


def command(*words):
    return ["simulate", "--rounds", "1", "--clients", "2", "--new-clients", "0", "--model", "linear", *words]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--dashboard", "0.0.0.0:0"], 2, "open to a network"),
        (["--dashboard", "example.org:80"], 2, "open to a network"),
        (["--dashboard", "x"], 2, "PORT or HOST:PORT"),
        (["--dashboard", "99999"], 2, "PORT or HOST:PORT"),
        (["--dashboard", "http://localhost:80"], 2, "PORT or HOST:PORT"),
        (["--dashboard", "0", "--dashboard-cert", "c.pem"], 2, "TLS needs both"),
        (["--dashboard", "0", "--dashboard-cert", "c", "--dashboard-key", "k"], 2, "Expected a certificate in c"),
        (["--dashboard-insecure"], 2, "Expected --dashboard"),
        (["--dashboard", "192.0.2.1:8080", "--dashboard-insecure"], 6, "the system refused"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_page_is_said_before_a_run_starts(tmp_path, capsys, words, code, said):
    assert main(command("--out", str(tmp_path / "runs"), *words)) == code

    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_port_in_use_and_a_missing_package_are_said_before_a_run_starts(tmp_path, capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        in_use = main(command("--out", str(tmp_path / "runs"), "--dashboard", port)), capsys.readouterr().err
        dashboard = main(["dashboard", str(tmp_path), "--listen", port]), capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    missing = main(command("--out", str(tmp_path / "runs"), "--dashboard", "0")), capsys.readouterr().err

    assert (in_use[0], dashboard[0], missing[0]) == (6, 6, 2)
    assert "in use" in in_use[1]
    assert "in use" in dashboard[1]
    assert "pip install" in missing[1]
    assert not (tmp_path / "runs").exists()


def test_the_token_is_shown_once_and_written_nowhere(tmp_path, capsys):
    assert main(command("--out", str(tmp_path), "--dashboard", "0", "--json")) == 0

    captured = capsys.readouterr()
    (token,) = re.findall(r"#token=(\S+)", captured.err)
    json.loads(captured.out)
    (folder,) = tmp_path.iterdir()
    written = b" ".join(path.read_bytes() for path in folder.iterdir())
    assert token.encode() not in written
    assert not [thread for thread in threading.enumerate() if thread.name == "dashboard"]
