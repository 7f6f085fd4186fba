"""Which of a client's own examples are trained on, chosen by and judged on: groups stay whole, in every format."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import nufed
from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.data.private.load import Membership, load_private, read_rows
from nufed.common.data.private.spec import USERS, parse_spec
from nufed.common.errors import ConfigError, DataError
from nufed.common.examples import Examples
from nufed.common.meta.draw import sources_of
from nufed.common.settings import Settings

RUN = RunConfig().updated({"data.source": "private", "data.input-shape": "2", "data.class-names": "no,yes"})
TABLE = RUN.updated({"data.feature-names": "a,b", "data.input-shape": ""})
IMAGES = RUN.updated({"data.input-shape": "1,4,4"})


def load(spec, run=TABLE, name="site", group=None):
    return load_private(Membership(spec, name, group), run, Settings()).data


def splits(data):
    return {"support": data.support, "validation": data.validation, "test": data.test}


@pytest.fixture
def frame():
    """Rows of 30 patients, ten of each; b is the patient's number, and the last column the part of a trial."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(30), 10)
    part = np.where(patient < 20, "train", np.where(patient < 24, "validation", "test"))
    names = np.array([f"p{number}" for number in patient])
    values = {"a": rng.normal(size=300), "b": patient, "y": np.where(patient % 2, "yes", "no")}
    return pd.DataFrame({**values, "patient": names, "part": part})


def patients(examples):
    return {int(number) for number in examples.inputs.flatten(1)[:, -1].round().tolist()}


def write(kind, frame, tmp_path, name="t"):
    path = tmp_path / f"{name}.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    return f"{kind}:{path}?label=y"


def archive(_kind, frame, tmp_path):
    np.savez(
        tmp_path / "t.npz", x=frame[["a", "b"]], y=(frame["y"] == "yes").astype(int), group=frame["patient"].tolist()
    )
    return f"npz:{tmp_path}/t.npz"


def function(_kind, frame, tmp_path):
    frame.to_csv(tmp_path / "mine.csv", index=False)
    sys.modules.pop("groups_of_mine", None)
    (tmp_path / "groups_of_mine.py").write_text(
        "import pandas as pd\n"
        f"def load(task):\n    frame = pd.read_csv('{tmp_path}/mine.csv')\n"
        "    return frame[['a', 'b']].to_numpy(), (frame['y'] == 'yes').astype(int), frame['patient'].tolist()\n"
    )
    return "python:groups_of_mine:load"


def folders(_kind, frame, tmp_path):
    for row, (value, number, label, name) in enumerate(frame[["a", "b", "y", "patient"]].itertuples(index=False)):
        folder = tmp_path / "images" / label / name / f"visit {row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.full((4, 4), number, np.uint8)
        pixels[0] = [int(abs(50 * value)) % 256, row % 256, row // 256, 0]
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return f"images:{tmp_path}/images?group=folder"


@pytest.mark.parametrize(
    ("make", "kind", "option", "run", "unit"),
    [
        (write, "csv", "&group=patient", TABLE, 1),
        (write, "parquet", "&group=patient", TABLE, 1),
        (archive, "npz", "", RUN, 1),
        (function, "python", "", RUN, 1),
        (folders, "images", "", IMAGES, 255),
    ],
)
def test_a_patient_is_in_one_split_alone(make, kind, option, run, unit, frame, tmp_path, monkeypatch):
    """In each format, for a client that takes part and for a new one; the test is the same for both."""
    monkeypatch.syspath_prepend(tmp_path)
    spec = make(kind, frame, tmp_path) + option

    data, new = load(spec, run), load(spec, run, group="new")

    seen = [{round(unit * number) for number in _numbers(part)} for part in splits(data).values()]
    assert all(seen)
    assert set.union(*seen) == set(range(30))
    assert sum(map(len, seen)) == 30
    assert torch.equal(new.test.inputs, data.test.inputs)
    assert not len(new.validation)


def _numbers(examples):
    return examples.inputs.flatten(1)[:, -1].unique().tolist()


@pytest.mark.parametrize("options", ["", "&group=patient"])
def test_a_file_in_another_order_gives_the_same_splits_bit_for_bit(options, frame, tmp_path):
    """In the same order, too, so that a run on it is the same run."""
    spec = write("csv", frame, tmp_path) + options
    before = load(spec)
    write("csv", frame.sample(frac=1, random_state=0), tmp_path)

    after = load(spec)

    assert all(
        torch.equal(one.inputs, other.inputs) and torch.equal(one.targets, other.targets)
        for one, other in zip(splits(before).values(), splits(after).values(), strict=True)
    )


@pytest.mark.parametrize("options", ["", "&group=patient"])
def test_rows_more_and_less_move_no_other(options, frame, tmp_path):
    """Of the test rows that are still in the file, all are test rows."""
    spec = write("csv", frame, tmp_path) + options
    before = load(spec)
    more = frame.assign(a=frame["a"] + 1, patient=frame["patient"] + "x").head(30)
    write("csv", pd.concat([more, frame.drop(index=range(5, 300, 10))]), tmp_path)

    after = load(spec)

    tested, trained = ({tuple(row) for row in part.inputs.tolist()} for part in (after.test, after.support))
    was_tested = {tuple(row) for row in before.test.inputs.tolist()}
    assert not was_tested & trained
    assert len(was_tested & tested) > 20


def test_equal_rows_go_together(frame, tmp_path):
    """A row that was copied by mistake is not known from training."""
    data = load(write("csv", pd.concat([frame, frame]), tmp_path))

    trained, tested = ({tuple(row) for row in part.inputs.tolist()} for part in (data.support, data.test))
    assert not trained & tested
    assert len(data.test) == 2 * len(tested)


def test_several_columns_name_a_group_together(frame, tmp_path):
    """Patient 1 of two hospitals is two patients."""
    frame = frame.assign(hospital=frame["b"] // 10, patient=frame["b"] % 10)
    spec = write("csv", frame, tmp_path)

    apart, together = load(f"{spec}&group=hospital,patient"), load(f"{spec}&group=patient")

    assert len({number % 10 for number in patients(apart.test)} & {number % 10 for number in patients(apart.support)})
    assert not {number % 10 for number in patients(together.test)} & {n % 10 for n in patients(together.support)}


def test_a_column_says_which_split_a_row_is_in(frame, tmp_path):
    """A new client has no validation split: such rows are there to adapt to."""
    spec = write("csv", frame, tmp_path) + "&split=part"

    data, new = load(spec), load(spec, group="new")
    drawn = load(write("csv", frame.replace({"part": {"validation": "support"}}), tmp_path) + "&split=part")

    assert [patients(part) for part in splits(data).values()] == [
        set(range(20)),
        set(range(20, 24)),
        set(range(24, 30)),
    ]
    assert [patients(part) for part in splits(new).values()] == [set(range(24)), set(), set(range(24, 30))]
    assert torch.equal(drawn.test.inputs, data.test.inputs)
    assert len(drawn.validation)


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "images", "python"])
def test_a_test_part_of_ones_own_is_read_in_the_same_way(kind, frame, tmp_path, monkeypatch):
    """From a file, a folder or a function; nothing else is tested then."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own").mkdir()
    rest, held_out = frame[frame["b"] < 20], frame[frame["b"] >= 20]
    if kind in ("csv", "parquet"):
        write(kind, held_out, tmp_path, "own")
        spec, run, unit = f"{write(kind, rest, tmp_path)}&group=patient&test={tmp_path}/own.{kind}", TABLE, 1
    elif kind == "npz":
        archive(kind, held_out, tmp_path / "own")
        spec, run, unit = f"{archive(kind, rest, tmp_path)}?test={tmp_path}/own/t.npz", RUN, 1
    elif kind == "images":
        folders(kind, held_out, tmp_path / "own")
        spec, run, unit = f"{folders(kind, rest, tmp_path)}&test={tmp_path}/own/images", IMAGES, 255
    else:
        function(kind, rest, tmp_path)
        (tmp_path / "own_test.py").write_text("def load(task):\n    return [[0.5, 25.0], [1.5, 26.0]], [0, 1]\n")
        spec, run, unit = "python:groups_of_mine:load?test=own_test:load", RUN, 1

    data = load(spec, run)

    tested = {round(unit * number) for number in _numbers(data.test)}
    trained = {round(unit * number) for part in (data.support, data.validation) for number in _numbers(part)}
    assert trained == set(range(20))
    assert tested == ({25, 26} if kind == "python" else set(range(20, 30)))


def test_what_a_split_column_cannot_be(frame, tmp_path):
    """Each with what to do."""
    mixed = frame.assign(part=["train", "test"] * 150)

    with pytest.raises(DataError, match=r"30 groups have examples in the support and in the test split.*put each"):
        load(write("csv", mixed, tmp_path) + "&split=part&group=patient")
    with pytest.raises(DataError, match=r"expected support, validation, test, train .*40 of 300 values"):
        load(write("csv", frame.replace({"part": {"validation": "dev"}}), tmp_path) + "&split=part")
    with pytest.raises(DataError, match="0 test examples"):
        load(write("csv", frame.assign(part="train"), tmp_path) + "&split=part")
    untrained = write("csv", frame.replace({"part": {"train": "validation"}}), tmp_path) + "&split=part"
    with pytest.raises(DataError, match="0 training and 60 test examples"):
        load(untrained)
    assert len(load(untrained, group="new").support) == 240
    with pytest.raises(ConfigError, match=r"test=.*Leave one"):
        load(write("csv", frame, tmp_path) + f"&split=part&test={tmp_path}/t.csv")


def test_equal_rows_of_two_parts_are_counted_here(frame, tmp_path, caplog):
    """They may be right, and the number is then not what it seems."""
    mixed = pd.concat([frame, frame.head(7).assign(part="test")])

    load(write("csv", mixed, tmp_path) + "&split=part")

    assert "7 examples stand in the support split and, equal to the last digit, in the test split" in caplog.text


def test_one_group_cannot_be_divided(frame, tmp_path):
    """A test on it would be one of what was trained on."""
    with pytest.raises(DataError, match="all belong to one group"):
        load(write("csv", frame.assign(patient="p"), tmp_path) + "&group=patient")


def test_a_whole_table_is_read_with_users_groups_and_parts(frame, tmp_path):
    """For data of several clients."""
    spec = write("csv", frame.assign(site=np.where(frame["b"] < 12, "north", "south")), tmp_path)
    parsed = parse_spec(f"{spec}&user=site&group=patient&split=part", USERS)

    rows = read_rows(parsed, describe_task(TABLE.data, Settings()), TABLE.data, labelled=True)

    assert [rows.users.names[code] for code in rows.users.codes[[0, 299]]] == ["north", "south"]
    assert [rows.groups.names[code] for code in rows.groups.codes[[0, 299]]] == ["p0", "p29"]
    assert rows.parts[[0, 210, 299]].tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="no option 'user'"):
        parse_spec(f"{spec}&user=site")


def nearest(train, test):
    """Accuracy of a model that knows every example that it has seen, and nothing else."""
    distances = torch.cdist(test.inputs.double(), train.inputs.double())
    return float((train.targets[distances.argmin(1)] == test.targets).double().mean())


def test_who_knows_patients_again_is_found_out(tmp_path):
    """By row it is right nearly always; on patients that it has not seen it is as good as a coin."""
    rng = np.random.default_rng(1)
    number = np.repeat(np.arange(300), 8)
    features, ill = rng.normal(size=(300, 2)), rng.integers(0, 2, 300)
    values = features[number] + 0.001 * rng.normal(size=(len(number), 2))
    frame = pd.DataFrame(
        {"a": values[:, 0], "b": values[:, 1], "y": np.array(["no", "yes"])[ill[number]], "patient": number}
    )
    spec = write("csv", frame, tmp_path)

    by_row, by_patient = load(spec), load(f"{spec}&group=patient")

    assert nearest(by_row.support, by_row.test) > 0.95
    assert abs(nearest(by_patient.support, by_patient.test) - 0.5) < 0.15
    assert abs(nearest(by_patient.support, by_patient.validation) - 0.5) < 0.2


def test_outer_batches_are_of_other_groups_than_inner_ones():
    """Where a part of the support split is held out for them; without groups the draw is what it was."""
    inputs, groups = torch.zeros(60, 1), torch.arange(60) // 4
    support = Examples(inputs, torch.zeros(60, dtype=torch.int64), groups=groups)

    held_out = sources_of(support, 0.3, seed=0, client_id="a")

    inner, outer = (set(groups[torch.from_numpy(rows)].tolist()) for rows in (held_out.inner, held_out.outer))
    assert not inner & outer
    assert len(inner) + len(outer) == 15
    assert len(held_out.inner) + len(held_out.outer) == 60
    with pytest.raises(DataError, match="one group"):
        sources_of(Examples(inputs, inputs, groups=torch.zeros(60)), 0.3, seed=0, client_id="a")


def python_clients(frame):
    return {
        f"site-{site}": (own[["a", "b"]].to_numpy(np.float32), (own["y"] == "yes").to_numpy(int))
        for site, own in frame.groupby(frame["b"] % 3)
    }


def test_groups_of_clients_given_in_python(frame, monkeypatch):
    """As a column of a frame, by client, or as the third value of each client: the same federation."""
    seen = []
    monkeypatch.setattr("nufed.library.simulation.conduct", lambda *_, **__: None)
    monkeypatch.setattr(
        "nufed.library.simulation._named", lambda config, _said, _dataset, data, _model: (config, seen.append(data))
    )
    site = "site-" + (frame["b"] % 3).astype(str)
    groups = {name: own["patient"].tolist() for name, own in frame.groupby(site)}
    table = frame.drop(columns="part").assign(site=site, y=(frame["y"] == "yes").astype(int)).astype({"a": np.float32})
    triples = {name: (*pair, groups[name]) for name, pair in python_clients(frame).items()}

    nufed.simulate(triples, progress=False)
    nufed.simulate(python_clients(frame), group=groups, progress=False)
    nufed.simulate(table, client_column="site", target_column="y", group="patient", progress=False)

    pools = [data.content for data in seen]
    names = [[pool.train.groups.names[code] for code in pool.train.groups.codes] for pool in pools]
    assert names[0] == names[1] == names[2]
    with pytest.raises(ConfigError, match="'site-2' is in one of them alone"):
        nufed.simulate(python_clients(frame), group={"site-0": groups["site-0"], "site-1": groups["site-1"]})
    with pytest.raises(ConfigError, match="the dataset is no table"):
        nufed.simulate(python_clients(frame), group="patient")
    with pytest.raises(DataError, match="as many groups as inputs"):
        nufed.simulate(python_clients(frame), group={name: own[:5] for name, own in groups.items()})


def test_a_group_of_both_parts_of_an_archive_is_refused(tmp_path):
    """By a simulation as by a client."""
    x, y, user = np.random.default_rng(0).normal(size=(8, 2)), [0, 1] * 4, ["u", "v"] * 4
    arrays = {
        f"{name}_{part}": value for part in ("train", "test") for name, value in (("x", x), ("y", y), ("user", user))
    }
    np.savez(tmp_path / "t.npz", **arrays, group_train=list("aabbccdd"), group_test=list("ddeeffgg"))
    source = {"data.source": f"npz:{tmp_path}/t.npz", "data.num-clients": 2, "data.num-new-clients": 0}
    config = RunConfig().updated({**source, "data.partition": "by-user"}).data

    with pytest.raises(DataError, match="1 groups have examples in the training and in the test part"):
        nufed.common.data.load_federation(config, seed=0, dtype=torch.float64, settings=Settings())
    with pytest.raises(DataError, match="1 groups have examples in the support and in the test split"):
        load(f"npz:{tmp_path}/t.npz?user=v", RUN)


def test_a_simulation_keeps_groups_whole_and_refuses_what_would_not(frame, tmp_path):
    """By user; dealing single examples would give a patient to two clients."""
    users = frame["b"] % 3
    np.savez(
        tmp_path / "t.npz",
        x=frame[["a", "b"]],
        y=(frame["y"] == "yes").astype(int),
        group=frame["patient"].tolist(),
        user=users,
    )
    source = {"data.source": f"npz:{tmp_path}/t.npz", "data.num-clients": 3, "data.num-new-clients": 0}
    config = RunConfig().updated({**source, "data.partition": "by-user"}).data

    clients = nufed.common.data.load_federation(config, seed=0, dtype=torch.float64, settings=Settings()).clients

    for client in clients:
        seen = [set(_numbers(part)) for part in splits(client).values()]
        assert sum(map(len, seen)) == len(set.union(*seen)) == 10
    mixed = RunConfig().updated({**source, "data.partition": "iid"}).data
    with pytest.raises(DataError, match="by-user, or leave the groups out"):
        nufed.common.data.load_federation(mixed, seed=0, dtype=torch.float64, settings=Settings())
