"""What a page shows of a run follows from its events, or from its folder, and stays small."""

import json
import math
import os
import random
import shutil

import pytest

from nufed.common.events import Finished, Interrupted, Joined, Note, Rejected, Replied
from nufed.deploy.commands.cli import main
from nufed.deploy.dashboard.client_rows import PAGE, Wanted
from nufed.deploy.dashboard.decimation import kept_indices
from nufed.deploy.dashboard.following import FolderFollower
from nufed.deploy.dashboard.hidden_paths import without_folders
from nufed.deploy.dashboard.shelf import Shelf
from nufed.deploy.dashboard.stream import to_json
from nufed.server.run_lock import locked
from tests.deploy.dashboard.pages_made import SOME_EVENTS, evaluated, private_events, round_of, started, view_of

HOSTILE = "<script>window.hacked = 1</script>\x1b[31m\x1b]0;title\x07 \u202e" + "A" * 1_000_000


def texts(head):
    return " ".join([each["text"] + " ".join(each["items"]) for each in head["attention"]])


def test_where_the_run_stands_what_came_out_and_what_needs_attention():
    head = view_of(*SOME_EVENTS).head()

    assert (head["status"], head["round"], head["num_rounds"], head["left"]) == ("running", 1, 10, 9.0)
    assert head["latest"]["groups"]["participating"] == {"before": 0.2, "after": 0.6, "last": 0.6, "num_clients": 2}
    assert head["clients"] == {"working": 0, "idle": 2, "left": 1}
    assert head["costs"]["bytes_up"] == 100
    assert "1 client left" in texts(head)
    assert "site-b: holds NaN" in texts(head)


def test_numbers_that_are_withheld_are_none_and_not_zero():
    head = view_of(*private_events()).head()

    assert {name for name, value in head["costs"].items() if value is not None} == {"seconds"}
    assert "participants" in head["withheld"]
    assert "evaluation, client-curves, participants, examples, training-loss, statistics" in texts(head)
    assert "ε = 3 of a budget of 8 (δ = 0.01) after round 2" in texts(head)
    assert view_of(*SOME_EVENTS).head()["withheld"] == ()


def test_a_client_has_what_it_did_and_why_its_replies_were_not_used():
    rows = {row["name"]: row for row in view_of(*SOME_EVENTS).page(Wanted())["rows"]}

    assert (rows["site-a"]["rounds"], rows["site-a"]["bytes_up"], rows["site-a"]["train_seconds"]) == (1, 50, 1.2)
    assert (rows["site-a"]["state"], rows["site-b"]["state"]) == ("idle", "left")
    assert rows["site-b"]["reasons"] == [[1, "holds NaN in …/y.pt"]]
    assert rows["site-n"]["group"] == "new"
    assert rows["site-a"]["connected_since"] == 1000.0


def test_news_are_what_has_come_since_and_nothing_twice():
    view = view_of(*SOME_EVENTS)
    cursor = tuple(view.snapshot()["cursor"])

    assert view.since(cursor)["points"] == view.since(cursor)["lines"] == []
    for event in (round_of(2), evaluated(2, 0.3, 0.7), Note(text="hello")):
        view.take(event.to_json())

    news = view.since(cursor)
    assert [point["round"] for point in news["points"]] == [2]
    assert [each["round"] for each in news["evaluations"]] == [2]
    assert [line["text"] for line in news["lines"]][-1] == "hello"
    assert tuple(news["cursor"]) == (2, view.num_lines)


def test_a_run_that_goes_on_does_its_rounds_again_once():
    view = view_of(*SOME_EVENTS, round_of(2), round_of(3), started(first_round=2), round_of(2), round_of(3))

    assert [point["round"] for point in view.points] == [1, 2, 3]
    assert view.status == "running"


def test_the_time_of_a_run_is_that_of_its_rounds_without_the_pause_before_it_went_on():
    view = view_of(*SOME_EVENTS, started(first_round=2, time=90_000.0), round_of(2, seconds=1.0))

    assert view.begun == 90_000.0 - 1.0
    summary = {"seconds": 2.5}
    view = view_of(*SOME_EVENTS, Finished(status="complete", round=1, time=90_000.0, summary=summary))
    assert view.head()["elapsed"] == 2.5


@pytest.mark.parametrize(
    ("event", "status", "words"),
    [
        (Interrupted(status="interrupted", round=3, reason="stopped here"), "interrupted", "stopped here"),
        (Finished(status="complete", round=3), "complete", ""),
    ],
)  # fmt: skip
def test_how_a_run_ended_is_shown(event, status, words):
    view = view_of(*SOME_EVENTS, event)

    assert (view.status, view.head()["left"]) == (status, None)
    assert words in texts(view.head())
    assert not any(row["state"] == "working" for row in view.page(Wanted())["rows"])


def test_whatever_a_client_sends_is_short_printable_text_without_paths():
    view = view_of(
        started(),
        Joined(client=HOSTILE),
        Rejected(client="a", phase="training", round=1, outcome="failed", reason=HOSTILE + " /home/ann/secret/x.csv"),
        round_of(1, problems={HOSTILE: HOSTILE}),
        Note(text=HOSTILE),
    )

    sent = json.dumps([view.snapshot(), view.page(Wanted())], ensure_ascii=False)

    assert len(sent) < 60_000
    assert "\x1b" not in sent
    assert "\u202e" not in sent
    assert "/home/ann" not in sent
    assert "secret" not in sent
    assert json.loads(sent)[0]["options"]["data.source"] == "npz:…/ward.npz"


@pytest.mark.parametrize(
    "event",
    [
        {}, {"event": "round"}, {"event": "round", "round": "x"}, {"event": "replied", "client": 3},
        {"event": "evaluation", "round": 1, "groups": {"new": {"accuracy": None}}}, {"event": "started"},
        {"event": "round", "round": 1, "problems": [1]}, {"event": "asked", "clients": 5},
    ],
)  # fmt: skip
def test_an_event_that_is_none_changes_nothing_that_can_be_seen(event):
    view = view_of(*SOME_EVENTS)
    before = view.head()["round"], view.head()["latest"]

    view.take(event)

    assert (view.head()["round"], view.head()["latest"]) == before
    json.dumps(view.snapshot())


def test_pages_of_thousands_of_clients_are_sorted_and_filtered():
    view = view_of(
        *(
            Joined(client=f"site-{number:04d}", group="new" if number % 10 else "participating")
            for number in range(3000)
        )
    )
    for number in range(3000):
        event = Replied(
            client=f"site-{number:04d}",
            phase="training",
            round=1,
            bytes_up=number,
            bytes_down=0,
            seconds=1.0,
            client_seconds=1.0,
        )
        view.take(event.to_json())

    largest = view.page(Wanted.parse({"sort": "bytes_up", "order": "desc"}))
    last = view.page(Wanted.parse({"page": "999999", "group": "participating"}))
    found = view.page(Wanted.parse({"q": "SITE-29", "sort": "nonsense", "page": "-1"}))

    assert [row["bytes_up"] for row in largest["rows"][:2]] == [2999, 2998]
    assert (largest["pages"], len(largest["rows"])) == (3000 // PAGE, PAGE)
    assert (last["total"], last["page"]) == (300, 300 // PAGE - 1)
    assert found["total"] == 100


def test_fewer_points_keep_the_extremes_and_the_ends():
    random.seed(0)
    rows = [{"loss": random.random(), "seconds": math.sin(index)} for index in range(20_000)]
    rows[7777]["loss"], rows[12_345]["loss"] = 9.0, None

    kept = kept_indices(rows, ["loss", "seconds"])

    assert len(kept) <= 1300
    assert {0, 7777, 19_999} <= set(kept)


def test_paths_lose_their_folders_and_other_slashes_stay():
    text = "in /srv/a b/c.csv, C:\\Users\\ann\\x.pt, ~/runs/1 and ./here/x; 3/4, 5 MB/s, http://host/page, a/b"

    shown = without_folders(text)

    assert not any(word in shown for word in ("srv", "Users", "ann", "here", "runs"))
    assert "3/4, 5 MB/s" in shown


def test_a_folder_is_followed_while_it_grows_and_shows_its_end(some_runs, tmp_path):
    source = some_runs / "20260101-000000-three"
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    whole, summary = (folder / "events.jsonl").read_bytes(), (folder / "summary.json").read_bytes()
    lines = whole.splitlines(keepends=True)
    cut = next(index for index, line in enumerate(lines) if b'"round": 2,' in line and b'"event": "round"' in line)
    (folder / "events.jsonl").write_bytes(b"".join(lines[: cut + 1]) + lines[cut + 1][:20])
    log = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_bytes(b"".join(log[:2]))
    (folder / "summary.json").unlink()
    follower = FolderFollower(folder)

    with locked(folder):
        first = follower.refresh().head()
        (folder / "events.jsonl").write_bytes(whole)
        (folder / "metrics.jsonl").write_bytes(b"".join(log))
        (folder / "summary.json").write_bytes(summary)
    last = follower.refresh().head()

    assert (first["status"], first["round"]) == ("running", 2)
    assert (last["status"], last["round"], last["left"]) == ("complete", 3, None)
    expected = json.loads(summary)
    for group in ("participating", "new"):
        curve = expected[group]["accuracy"]
        assert last["latest"]["groups"][group]["before"] == pytest.approx(curve[0])
        assert last["latest"]["groups"][group]["after"] == pytest.approx(curve[expected["primary_step"]])


def test_a_run_without_events_shows_the_same_of_its_rounds_and_results(some_runs, tmp_path):
    source = some_runs / "20260101-000000-three"
    older = tmp_path / source.name
    shutil.copytree(source, older, ignore=shutil.ignore_patterns("events.jsonl"))

    new, old = FolderFollower(source).refresh(), FolderFollower(older).refresh()

    assert new.points == old.points
    assert (new.status, new.head()["latest"]) == (old.status, old.head()["latest"])
    assert new.curves == old.curves
    evaluated_on_the_way = [{done: each for done, each in view.evaluations.items() if done} for view in (new, old)]
    assert evaluated_on_the_way[0] == evaluated_on_the_way[1]
    rows = [
        {row["name"]: (row["rounds"], row["after"], row["group"]) for row in view.page(Wanted())["rows"]}
        for view in (new, old)
    ]
    assert rows[0] == rows[1]


def test_a_run_that_was_killed_or_is_damaged_says_so(some_runs, tmp_path):
    killed, damaged = (tmp_path / name for name in ("killed", "damaged"))
    for folder in (killed, damaged):
        shutil.copytree(some_runs / "20260101-000000-three", folder)
    (killed / "summary.json").unlink()
    events = [
        line for line in (killed / "events.jsonl").read_bytes().splitlines(keepends=True) if b'"finished"' not in line
    ]
    (killed / "events.jsonl").write_bytes(b"".join(events))
    (damaged / "summary.json").write_text("{")
    (damaged / "events.jsonl").write_bytes(b"\xff\x00[1]\n{}\n" + b"[" * 100_000 + b"\nnull\n")

    assert FolderFollower(killed).refresh().head()["status"] == "killed"
    head = FolderFollower(damaged).refresh().head()
    assert head["status"] == "damaged"
    assert "summary.json" in texts(head)


def _rewrite(name, change):
    def write(folder):
        lines = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps({**line, **change(line)}) + "\n" for line in lines))

    return write


def _replace(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def _instead(name, make):
    def write(folder):
        (folder / name).unlink()
        make(folder / name)

    return write


def _of_metrics(change):
    def write(folder):
        (folder / "events.jsonl").unlink()
        _rewrite("metrics.jsonl", change)(folder)

    return write


SPOILED = {
    "time": _rewrite("events.jsonl", lambda _: {"time": "<b>"}),
    "first-round": _rewrite("events.jsonl", lambda _: {"first_round": math.inf, "round": 10**400}),
    "bytes": _rewrite("events.jsonl", lambda _: {"bytes_up": 10**400, "bytes_down": "9", "hvps": [1], "loss": {}}),
    "scores": _rewrite("events.jsonl", lambda _: {"before": {"accuracy": "<b>"}, "after": [1], "loss": "x"}),
    "curves": _rewrite("events.jsonl", lambda _: {"groups": {"new": {"accuracy": ["<b>"]}, "participating": 1}}),
    "depth": lambda folder: (folder / "events.jsonl").write_text("[" * 100_000 + "\n"),
    "rounds": _of_metrics(lambda _: {"clients": [1], "problems": "<b>", "evaluation": 3}),
    "numbers": _of_metrics(lambda _: {"clients": {"a": "<b>"}, "round": "5", "problems": {"a": {"b": 1}}}),
    "summary": _replace("summary.json", '"seconds": ', '"seconds": NaN, "x": '),
    "costs": _replace("summary.json", '"bytes_up": ', '"bytes_up": "<b>", "x": '),
    "surrogate": _replace("config.json", '"digits"', '"dig\\ud800its"'),
    "table": _replace("clients.csv", "client-000,", "client-000,client-001,"),
    "pipe": _instead("summary.json", os.mkfifo),
    "pipe of rounds": lambda folder: [_instead(name, os.mkfifo)(folder) for name in ("events.jsonl", "metrics.jsonl")],
    "endless": _instead("clients.csv", lambda path: path.symlink_to("/dev/zero")),
}


@pytest.mark.timeout(60)
def test_a_folder_that_somebody_else_has_filled_is_shown_for_what_it_is_and_hides_no_other(some_runs, tmp_path):
    for number, (name, spoil) in enumerate(SPOILED.items()):
        folder = tmp_path / f"20260102-0000{number:02d}-{name}"
        shutil.copytree(some_runs / "20260101-000000-three", folder)
        spoil(folder)
    shelf = Shelf(tmp_path)

    names = [entry["run"] for entry in json.loads(to_json(shelf.listing()))["runs"]]
    compared = [json.loads(to_json(shelf.comparison([name])))["runs"] for name in names]
    views = {name: shelf.view(name) for name in names}

    assert len(names) == len(SPOILED)
    assert all(len(each) == 1 for each in compared)
    for view in views.values():
        for column in ("name", "before", "after", "loss", "bytes_up", "last_seen"):
            view.page(Wanted.parse({"sort": column}))
        shown = json.loads(to_json(view.snapshot()))
        assert all(isinstance(value, float | None) for each in shown["curves"].values() for value in each["curve"])
    damage = {entry["run"][16:]: entry["damage"] for entry in shelf.listing()["runs"]}
    assert "not a regular file" in damage["pipe"]
    assert "does not say" in damage["summary"]
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    for name in names:
        assert main(["runs", "show", str(tmp_path / name)]) == 0
