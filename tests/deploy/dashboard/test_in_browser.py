"""The page in a real browser: a run from before its start to its end, finished runs, experiments, and whatever is sent.

No page of these tests may leave an error in the console, or ask anything but its own address (`Page.check`).
"""

import json
import re
import shutil
import time

import pytest

from nufed.common.events import Asked, Finished, Joined, Note, Rejected
from nufed.deploy.commands.cli import main
from tests.deploy.dashboard.browser import chromium
from tests.deploy.dashboard.pages_made import SOME_EVENTS, private_events, round_of, served, started, view_of
from tests.system.processes import SMALL_RUN, address_of, faulty_clients, nufed, processes, run_folder

pytestmark = [pytest.mark.system, pytest.mark.timeout(280)]

PANELS = ("overview", "clients", "adaptation", "costs", "configuration", "events")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def row(name, words):
    """Return JavaScript that is true once a client's row has these words."""
    found = f"[...document.querySelectorAll('tbody tr')].find((row) => row.dataset.key === {json.dumps(name)})"
    return f"(({found})?.innerText ?? '').includes({json.dumps(words)})"


def test_a_run_is_watched_from_before_its_start_until_it_is_stopped(browser, tmp_path):
    options = [
        "--rounds",
        5000,
        "--set",
        "evaluation.interval=2",
        "--adapt-steps",
        2,
        "--set",
        "evaluation.primary-step=2",
    ]
    small = [*SMALL_RUN, "--clients", 4, "--out", tmp_path / "runs"]
    with processes(tmp_path) as start:
        command = nufed("server", "--listen", "127.0.0.1:0", "--insecure", "--dashboard", "0", *options, *small)
        server = start("server", *command)
        url = server.wait_for("page: ").split("page: ")[1]
        with browser.page(url) as page:
            page.wait_for_text("Waiting for clients: 0 connected")
            assert "token" not in page.evaluate("location.href")

            address = address_of(server)
            start("clients", *faulty_clients(address, "0", "1", "2:nan"))
            victim = start("victim", *faulty_clients(address, "3"))
            page.wait_for("/Round [1-9]\\d* of 5000/.test(document.body.innerText)", 90)
            page.wait_for_text("client-002: ")
            page.wait_for("/participating clients\\s+[\\d.]+ %\\s*→/i.test(document.body.innerText)")
            rounds = page.evaluate("document.querySelector('.standing .figure').innerText")

            page.open_panel("clients")
            page.wait_for(row("client-002", "NaN") + " || document.querySelector('tr.troubled summary')?.click() === 0")
            page.wait_for(row("client-003", "idle") + "||" + row("client-003", "working"))
            victim.kill()
            page.wait_for(row("client-003", "left"), 60)
            page.open_panel("overview")
            page.wait_for_text("1 client left")
            assert page.evaluate("document.querySelector('.standing .figure').innerText") != rounds

            page.click(".heading .danger")
            page.wait_for("document.querySelector('dialog[open]') !== null")
            assert page.check_access() == []
            page.click("dialog .quiet")
            page.click(".heading .danger")
            page.click("dialog .danger")
            page.wait_for_text("Interrupted")
            page.expected = ("ERR_", "Failed to load resource")  # the process has ended, and its page with it
        assert server.wait(60) == 130
    summary = json.loads((run_folder(tmp_path / "runs") / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("interrupted", "stopped from the page")
    assert main(["runs", "list", str(tmp_path / "runs")]) == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_every_page_of_runs_fits_is_readable_and_can_be_used_without_seeing(browser, some_runs, width, dark):
    first, second = "20260101-000000-three", "20260101-000001-one"
    with served(some_runs) as (base, _), browser.page(f"{base}/#/runs", width=width, dark=dark) as page:
        page.wait_for_text("3 runs")
        problems, seen = page.check_access(), {}
        for panel in PANELS:
            page.go(f"{base}/#/run/{first}/{panel}")
            page.wait_for("document.querySelector('.status')?.innerText === 'Complete'")
            page.wait_for(
                "[...document.querySelectorAll('.plot')].every((plot) => plot.hidden || plot.querySelector('canvas'))"
            )
            if panel == "overview":
                page.wait_for_text("% →")
            page.wait_for("!document.querySelector('tbody') || document.querySelector('tbody tr')")
            page.evaluate("document.querySelectorAll('details.as-table').forEach((each) => { each.open = true; })")
            seen[panel] = page.text()
            problems += page.check_access()
            assert not page.is_too_wide(), panel
        page.go(f"{base}/#/compare/{first},{second}")
        page.wait_for_text("method.num-inner-steps")
        page.wait_for("document.querySelectorAll('canvas').length === 2")
        compared = page.text()
        problems += page.check_access()
        assert not page.is_too_wide()

    assert problems == []
    summary = json.loads((some_runs / first / "summary.json").read_text())
    for group in ("participating", "new"):
        curve = summary[group]["accuracy"]
        assert re.search(rf"{100 * curve[0]:.1f} % →.*{100 * curve[5]:.1f} %", seen["overview"], re.DOTALL)
        assert f"{100 * curve[0]:.1f} % → {100 * curve[5]:.1f} %" in compared
    assert "client-000" in seen["clients"]
    assert "evaluation.interval" in seen["configuration"]
    assert "final evaluation after round 3" in seen["events"]
    assert re.search(r"steps s\s.*participating", seen["adaptation"], re.DOTALL)


def test_what_is_withheld_is_said_to_be_and_is_no_zero(browser):
    with served(live=view_of(*private_events())) as (base, _), browser.page(base) as page:
        page.wait_for_text("withheld: ε does not cover it")
        page.wait_for_text("ε = 3 of a budget of 8")
        page.open_panel("costs")
        page.wait_for_text("ε by round")
        page.wait_for("document.querySelectorAll('canvas').length === 2")
        tiles = page.evaluate("Object.fromEntries([...document.querySelectorAll('.tile')].map((each) => "
                              "[...each.children].map((part) => part.innerText)))")  # fmt: skip
        assert [tiles[title] for title in ("Received from clients", "Gradient evaluations", "Replies not used")] == [
            "withheld"
        ] * 3
        assert page.text().count("Withheld, because ε does not cover it.") == 2
        assert page.check_access() == []
        page.open_panel("clients")
        page.wait_for_text("Who takes part: Withheld")
        page.check()


def test_what_clients_send_is_text_on_the_page_and_nothing_else(browser):
    script = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    name = f"{script} \x1b[31m site"
    view = view_of(
        started(),
        Joined(client=name, group="participating"),
        Rejected(client=name, phase="training", round=1, outcome="failed", reason=script + "A" * 1_000_000),
        round_of(1, problems={name: script}),
        Note(text=script),
    )
    with served(live=view) as (base, _), browser.page(base) as page:
        page.wait_for_text("<script>window.hacked = 1</script>")
        for panel in PANELS:
            page.open_panel(panel)
            page.wait_for(f"location.hash.endsWith('{panel}')")
            page.wait_for("!document.querySelector('table.clients') || document.querySelector('tbody tr')")
            assert page.evaluate("document.querySelectorAll('main script, main img').length") == 0
            assert page.evaluate("document.querySelectorAll('*').length") < 3000
        page.fill("input[type=search]", "x") if page.evaluate(
            "Boolean(document.querySelector('input[type=search]'))"
        ) else None
        page.go(f"{base}/#/run/{script}/overview")
        page.wait_for_text("There is no such run")
        page.expected = ("404",)

        assert page.evaluate("window.hacked === undefined")


def test_the_page_is_changed_in_place_and_used_by_keyboard(browser):
    view = view_of(*SOME_EVENTS)
    with served(live=view) as (base, _), browser.page(f"{base}/#/run/live/clients") as page:
        page.wait_for(row("site-a", "idle"))
        page.evaluate("window.kept = [document.querySelector('tbody tr'), document.querySelector('h1')]")
        page.evaluate("document.querySelector('thead button').focus()")

        view.take(Asked(phase="training", round=2, clients=("site-a",), bytes_down=10).to_json())
        page.wait_for(row("site-a", "working"))
        for kind in ("keyDown", "keyUp"):
            page.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )
        page.wait_for("document.querySelector('thead th').getAttribute('aria-sort') === 'descending'")
        page.wait_for("document.querySelector('tbody tr').dataset.key === 'site-n'")
        page.fill("input[type=search]", "holds nan")
        page.wait_for("document.querySelectorAll('tbody tr').length === 1")
        page.fill("input[type=search]", "")
        page.wait_for("document.querySelectorAll('tbody tr').length === 3")

        assert page.evaluate("window.kept[1].isConnected")
        assert page.evaluate("document.activeElement === document.querySelector('thead button')")
        view.take(Finished(status="complete", round=2, summary={}).to_json())
        page.wait_for_text("Complete")
        page.wait_for("document.getElementById('spoken').innerText.startsWith('Complete')")
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_elsewhere_the_page_asks_for_the_token(browser):
    with served(live=view_of(*SOME_EVENTS), is_open=False) as (base, dashboard), browser.page(base) as page:
        page.expected = ("401",)
        page.wait_for_text("Token that the terminal shows")
        assert "site-a" not in page.text()
        page.fill("#token", "wrong")
        page.click("form button")
        page.wait_for_text("That is not the token")
        assert page.check_access() == []
        page.fill("#token", dashboard.access.token)
        page.click("form button")
        page.wait_for_text("Round 1 of 10")


def test_a_thousand_rounds_of_two_hundred_clients_are_shown_at_once(browser, some_runs, tmp_path):
    source = some_runs / "20260101-000000-three"
    folder = shutil.copytree(source, tmp_path / "20260101-000000-large", ignore=shutil.ignore_patterns("*.jsonl"))
    record = json.loads((source / "metrics.jsonl").read_text().splitlines()[0])
    client = next(iter(record["clients"].values()))
    record["clients"] = {f"client-{number:03d}": client for number in range(200)}
    line = json.dumps(record).removeprefix('{"round": 1,')
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as log:
        log.writelines(f'{{"round": {done},{line}\n' for done in range(1, 1001))
    with served(tmp_path) as (base, _), browser.page() as page:
        begun = time.monotonic()
        page.go(f"{base}/#/run/{folder.name}/overview")
        page.wait_for("/Participating clients\\s+[\\d.]+ %/.test(document.body.innerText)")
        seconds = time.monotonic() - begun
        page.wait_for("!document.body.innerText.includes('Reading the run')")
        page.wait_for("document.querySelector('canvas') !== null")
        page.open_panel("clients")
        page.wait_for_text("202 clients")
        page.wait_for(row("client-005", "1,000"))

    assert seconds < 4  # under 1 s on a machine with nothing else to do


def test_an_experiment_shows_runs_done_and_left_and_how_methods_stand(browser, some_runs, tmp_path):
    cells = tmp_path / "suite" / "cells"
    names = [f"{entry}-{seed}-0123456789ab" for entry in ("three", "one") for seed in (0, 1)]
    for name, source in zip(names[:3], ("0-three", "0-three", "1-one"), strict=True):
        run = shutil.copytree(some_runs / f"20260101-00000{source}", cells / name / "20260101-000000-suite")
        done = {"folder": run.name, "problem": "", "seconds": 2.0, "options": {}}
        (cells / name / "done.json").write_text(json.dumps(done))
    (cells / names[3]).mkdir()
    plan = {"started": time.time() - 30, "done_before": 0, "cells": [{"cell": name} for name in names]}
    (cells / "plan.json").write_text(json.dumps(plan))
    summary = json.loads((some_runs / "20260101-000001-one" / "summary.json").read_text())

    with served(tmp_path / "suite") as (base, _), browser.page(base) as page:
        page.wait_for_text("3 of 4 runs")
        page.wait_for_text("running")
        text, problems = page.text(), page.check_access()

    assert problems == []
    assert re.search(r"Final runs, about \d+ s left", text)
    assert f"{100 * summary['new']['accuracy'][5]:.1f} %" in text
    assert "three" in text


def test_on_a_phone_a_long_notice_stands_below_the_names_of_the_pages(browser):
    with (
        served(live=view_of(*SOME_EVENTS)) as (base, dashboard),
        browser.page(f"{base}/#/run/live/overview", width=390) as page,
    ):
        page.expected = ("ERR_", "Failed to load resource")
        page.wait_for_text("Round 1 of 10")
        line = "parseFloat(getComputedStyle(document.body).lineHeight) * 2"

        dashboard.settle()
        page.wait_for_text("process has ended")

        for name in (".brand", "#pages", "#theme"):
            assert page.evaluate(f"document.querySelector('{name}').offsetHeight < {line}"), name
        assert not page.is_too_wide()
