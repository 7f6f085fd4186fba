"""A client remembers which examples it trained on, and says so when a changed file moves them into its test split."""

import json
import stat

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.client.split_memory import SplitMemory, state_path
from nufed.client.workplace import forget_workplaces, workplace
from nufed.common.config import RunConfig
from nufed.common.data.private.split import SplitHashes
from nufed.common.errors import ConfigError
from nufed.common.params import model_params
from nufed.common.settings import Settings
from tests.client.deployed import ask

RUN = RunConfig().updated(
    {
        "data.source": "private",
        "data.feature-names": "a,b",
        "data.class-names": "no,yes",
        "model.hidden-sizes": "3",
        "method.num-local-steps": 1,
    }
)


@pytest.fixture
def site(tmp_path):
    """A client's node configuration; its table has 200 rows that all differ, five of them of each patient."""
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=200), "b": rng.normal(size=200), "y": ["no", "yes"] * 100}
    frame = pd.DataFrame({**values, "patient": np.arange(200) // 5, "part": (["train"] * 3 + ["test"]) * 50})
    write(frame, tmp_path)
    return {"data": f"csv:{tmp_path}/t.csv?label=y", "client-id": "site", "state": str(tmp_path / "site.split")}, frame


def write(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)


def restart():
    """As a new process would find it: only files are left."""
    forget_workplaces()
    from nufed.client.workplace import _memory

    _memory.cache_clear()


def take_part(node, run=RUN):
    restart()
    place = workplace(run.flat(), node, Settings())
    ask("train", run, node, model_params(place.model))
    return place


def test_a_row_more_moves_no_other(site, tmp_path, caplog):
    """The file may grow, shrink and be sorted between runs, and nothing is to be told."""
    node, frame = site
    before = take_part(node).data
    more = pd.concat([frame.iloc[20:], pd.DataFrame({"a": [9.0], "b": [9.0], "y": ["no"]})])
    write(more.sample(frac=1, random_state=1), tmp_path)

    after = take_part(node).data

    trained, tested = ({tuple(row) for row in part.inputs.tolist()} for part in (before.support, after.test))
    assert not trained & tested
    assert "MOVED" not in caplog.text


def test_rows_that_move_are_told_with_how_many_they_are(site, caplog):
    """Patients are kept together from now on, so that some of their rows were trained on and are tested now."""
    node, _ = site
    before = take_part(node).data

    after = take_part({**node, "data": node["data"] + "&group=patient"}).data

    trained, tested = ({tuple(row) for row in part.inputs.tolist()} for part in (before.support, after.test))
    moved = len(trained & tested)
    assert 5 < moved < len(after.test)
    assert f"THE SPLIT HAS MOVED: {moved} of {len(after.test)} test examples of site were trained on" in caplog.text


def test_a_client_that_outlives_runs_reads_its_file_anew_at_each(site, tmp_path, caplog):
    """Within a run the data stay what they were when it began."""
    node, frame = site
    node = {**node, "data": node["data"] + "&split=part"}
    params = model_params(take_part(node).model)
    write(frame.assign(part=frame["part"].to_numpy()[::-1]), tmp_path)

    ask("train", RUN, node, params)
    assert "MOVED" not in caplog.text
    ask("query", RUN, node, run_id=2)

    assert "MOVED" in caplog.text


def test_a_restart_with_the_same_data_is_silent(site, tmp_path, caplog):
    """Also where the columns stand in another order, or are prepared otherwise."""
    node, frame = site
    take_part(node)
    write(frame[["y", "b", "a"]], tmp_path)

    take_part({**node, "data": node["data"] + "&scale=local"})

    assert "MOVED" not in caplog.text


def test_who_only_said_who_it_is_has_not_trained(site, tmp_path, caplog):
    """Rows are remembered when they are used."""
    node, frame = site
    restart()
    ask("query", RUN, node)
    assert not (tmp_path / "site.split").exists()
    write(frame.iloc[::-1], tmp_path)

    take_part(node)

    assert "MOVED" not in caplog.text


def test_another_seed_or_name_is_another_split(site, caplog):
    """That was to be expected, and its model has learnt from nothing yet."""
    node, _ = site
    take_part(node)

    take_part(node, RUN.updated({"seed": 1}))
    take_part({**node, "client-id": "other"})

    assert "MOVED" not in caplog.text


def test_the_file_is_its_owners_and_holds_no_value(site, tmp_path):
    """Hashes under a key of its own, so that equal rows of two sites do not look alike."""
    node, frame = site
    take_part(node)
    text = (tmp_path / "site.split").read_text()
    other = tmp_path / "other.split"

    take_part({**node, "state": str(other)})

    assert stat.S_IMODE((tmp_path / "site.split").stat().st_mode) == 0o600
    assert not [value for value in frame["a"] if repr(value) in text]
    [hashes], [others] = (json.loads(each)["nufed-split-1"].values() for each in (text, other.read_text()))
    assert len(hashes) == len(others) == len(workplace(RUN.flat(), node, Settings()).data.support)
    assert not hashes.keys() & others.keys()


def test_nothing_of_it_is_sent(site, tmp_path, caplog):
    """Neither hashes nor how many have moved."""
    node, frame = site
    node, run = {**node, "data": node["data"] + "&split=part"}, RUN.updated({"data.validation-fraction": 0.0})
    before = ask("query", run, node).content
    take_part(node, run)
    write(frame.assign(part=frame["part"].to_numpy()[::-1]), tmp_path)
    restart()

    again = ask("query", run, node).content

    assert "MOVED" in caplog.text
    assert again == before


def test_it_lies_beside_the_personal_model_unless_it_is_named(tmp_path):
    """Without either it lasts as long as the process."""
    assert state_path({}) is None
    assert state_path({"personal-model": f"{tmp_path}/p.safetensors"}) == tmp_path / "p.split"
    assert state_path({"personal-model": f"{tmp_path}/p.x", "state": f"{tmp_path}/s"}) == tmp_path / "s"
    with pytest.raises(ConfigError, match="folder that exists"):
        state_path({"state": f"{tmp_path}/absent/s"})


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"nufed-split-1": 1, "key": "00"}', "a,b\n1,2\n"])
def test_a_file_that_is_something_else_is_not_replaced(site, content, tmp_path):
    """It may be the patients'."""
    (tmp_path / "t.split").write_text(content)

    with pytest.raises(ConfigError, match="not"):
        SplitMemory.load(tmp_path / "t.split")


def test_a_disk_that_is_full_does_not_end_the_training(site, monkeypatch, caplog):
    """The client says that it will not remember."""
    node, _ = site

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nufed.common.durable_file._sync", fail)

    take_part(node)

    assert "not remembered beyond this process" in caplog.text


NAMES = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=6).map(tuple)


@given(before=NAMES, support=NAMES, test=NAMES)
def test_equal_examples_are_counted_one_by_one(before, support, test):
    """Of equal rows in both splits, only those count that cannot all have stayed in training."""
    memory = SplitMemory(None, b"k", {})
    memory.remember("way", SplitHashes(before, ()))

    moved = memory.num_moved("way", SplitHashes(support, test))

    assert moved == sum(
        min(test.count(name), max(0, before.count(name) - support.count(name))) for name in (b"a", b"b", b"c")
    )
    assert memory.num_moved("other way", SplitHashes(support, test)) == 0
