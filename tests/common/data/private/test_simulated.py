"""Simulations of all clients' data: each client has what it would have if it were deployed with its own part."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import nufed
from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.data.private.load import Membership, load_private
from nufed.common.data.private.simulated import settle, site_statistics_of
from nufed.common.data.private.task import statistics_shape
from nufed.common.errors import ConfigError, DataError
from nufed.common.settings import Settings
from nufed.common.statistics import pool
from nufed.deploy.commands.cli import main

SITES = ("a", "b, north", "c")


def frame(num=120, seed=0):
    """A table with empty cells, names that hold separators, patients and a site."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": np.where(rng.random(num) < 0.1, np.nan, rng.integers(20, 90, num)),
            "sex, at birth": rng.choice(["f", "m"], num),
            "ward": rng.choice(["A;1", "B|2", None], num),
            "dose": 1e6 + rng.normal(size=num),
            "patient": rng.integers(0, 40, num),
            "site": rng.choice(SITES, num),
            "ill": rng.choice(["no", "yes"], num),
        }
    )


def same(one, other):
    """Whether two clients have the same tensors in each split."""
    return all(
        torch.equal(getattr(one, split).inputs, getattr(other, split).inputs)
        and torch.equal(getattr(one, split).targets, getattr(other, split).targets)
        and len(getattr(one, split))
        for split in ("support", "validation", "test")
    )


def deployed(config, name, spec):
    """The data of a client that is deployed, in a run whose options say what the simulation's say."""
    values = {key: value for key, value in config.flat().items() if key != "data.source"}
    return load_private(Membership(spec, name), RunConfig.parse({**values, "data.source": "private"}), Settings()).data


@pytest.mark.parametrize(
    ("kind", "options", "run"),
    [
        ("csv", "label=ill&ignore=patient&missing=mean&scale=local", {}),
        ("csv", "label=ill&group=patient&missing=drop&sep=;", {"data.test-fraction": 0.4}),
        ("parquet", 'label=ill&group=patient&missing=mode&categories={"ward": ["A;1", "B|2", "C"]}', {"seed": 3}),
        ("csv", "label=dose&ignore=patient,ill&missing=median", {"data.support-examples": 5}),
    ],
)
def test_a_table_of_all_is_the_tables_of_each(kind, options, run, tmp_path):
    """Bit by bit, in every split, though each client's file has its own rows alone."""
    table = frame()
    write = (
        (lambda part, path: part.to_csv(path, index=False, sep=";" if "sep=;" in options else ","))
        if (kind == "csv")
        else (lambda part, path: part.to_parquet(path))
    )
    write(table, tmp_path / f"all.{kind}")
    for number, site in enumerate(SITES):
        write(table[table["site"] == site], tmp_path / f"{number}.{kind}")
    config = settle(RunConfig.parse({"data.source": f"{kind}:{tmp_path}/all.{kind}?{options}&user=site", **run}))

    federation = load_federation(config.data, seed=config.seed, dtype=torch.float32, settings=Settings())

    clients = {client.client_id: client for client in federation.clients}
    assert sorted(clients) == sorted(SITES)
    for number, site in enumerate(SITES):
        own = "&".join(part for part in options.split("&") if not part.startswith("ignore="))
        assert same(clients[site], deployed(config, site, f"{kind}:{tmp_path}/{number}.{kind}?{own}"))


@pytest.mark.parametrize("layout", ["site/class", "class/site"])
def test_images_of_all_are_the_images_of_each(layout, tmp_path):
    """A folder for each client, or in each class one for each client."""
    rng = np.random.default_rng(0)
    for site in ("north", "south"):
        for name in ("cat", "dog"):
            for number in range(6):
                image = Image.fromarray(rng.integers(0, 255, (4, 5), np.uint8))
                for folder in (f"own/{site}/{name}", f"all/{layout}".replace("site", site).replace("class", name)):
                    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
                    image.save(tmp_path / folder / f"{number}.png")
    config = settle(RunConfig.parse({"data.source": f"images:{tmp_path}/all" + "?user=folder" * (layout[0] == "c")}))

    federation = load_federation(config.data, seed=0, dtype=torch.float32, settings=Settings())

    assert (federation.task.input_shape, federation.task.class_names) == ((1, 4, 5), ("cat", "dog"))
    assert [client.client_id for client in federation.clients if client.group == "new"] == []
    for client in federation.clients:
        assert same(client, deployed(config, client.client_id, f"images:{tmp_path}/own/{client.client_id}"))


def test_a_run_from_python_reads_back_what_was_inferred(tmp_path):
    """Its config.json repeats it bit for bit, and says what a server would have to declare."""
    frame().to_csv(tmp_path / "all.csv", index=False)
    source = f"csv:{tmp_path}/all.csv?label=ill&ignore=patient&missing=mean&user=site"
    options = {"num_rounds": 1, "hidden_sizes": [4], "progress": False}

    first = nufed.simulate(dataset=source, out=tmp_path / "one", **options)
    second = nufed.simulate(config=RunConfig.load(first.path / "config.json"), out=tmp_path / "two", progress=False)

    stored = json.loads((first.path / "config.json").read_text())["data"]
    assert (stored["num-clients"], stored["num-new-clients"]) == (3, 0)
    assert json.loads(stored["feature-names"]) == ["age", "sex, at birth", "ward", "dose"]
    assert (first.path / "model.safetensors").read_bytes() == (second.path / "model.safetensors").read_bytes()


def test_of_named_columns_everything_else_is_inferred(tmp_path):
    path = tmp_path / "all.csv"
    frame().to_csv(path, index=False)
    source = f"csv:{path}?label=ill&user=site&missing=run"

    found = settle(RunConfig.parse({"data.source": source, "data.feature-names": ["sex, at birth", "age"]})).data

    assert json.loads(found.feature_names) == ["sex, at birth", "age"]
    assert found.class_names == "no,yes"
    assert float(found.feature_means) == pytest.approx(np.nanmean(frame()["age"]))
    with pytest.raises(ConfigError, match="'agee' is no column"):
        settle(RunConfig.parse({"data.source": source, "data.feature-names": ["agee"]}))


def test_statistics_are_those_of_the_support_splits(tmp_path):
    """Of the participating clients, before anything is filled in."""
    table = frame(400)
    table.to_csv(tmp_path / "all.csv", index=False)
    source = f"csv:{tmp_path}/all.csv?label=ill&ignore=patient&missing=zero&scale=none&user=site"
    config = settle(RunConfig.parse({"data.source": source, "data.scale": "federated", "data.num-new-clients": 1}))

    told = site_statistics_of(config)

    clients = load_federation(config.data, seed=0, dtype=torch.float64, settings=Settings()).clients
    assert list(told) == [client.client_id for client in clients if client.group == "participating"]
    supports = np.concatenate([client.support.inputs.numpy()[:, [0, -1]] for client in clients[:2]])
    known = supports[:, 0][supports[:, 0] > 0]  # an empty age is filled in with 0
    pooled = pool(told, statistics_shape(config.data))
    assert pooled.means[0] == pytest.approx(known.mean(), rel=1e-12)
    assert pooled.scales[0] == pytest.approx(known.std(), rel=1e-12)
    assert pooled.means[3] == pytest.approx(supports[:, 1].mean(), rel=1e-12)
    assert pooled.scales[3] == pytest.approx(supports[:, 1].std(), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "run", "error", "told"),
    [
        ("label=ill&missing=mean", {}, ConfigError, "user=COLUMN"),
        ("label=ill&missing=mean&user=ill", {}, ConfigError, "something else"),
        ("label=ill&user=site", {}, DataError, "missing=.*of --dataset"),
        ("label=ill&missing=mean&user=site", {"data.num-clients": 5}, DataError, "has 3"),
        ("missing=mean&user=site", {}, ConfigError, "^--dataset names no label.*label=COLUMN"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, run, error, told, tmp_path):
    """With what to do."""
    frame().to_csv(tmp_path / "all.csv", index=False)
    config = RunConfig.parse({"data.source": f"csv:{tmp_path}/all.csv?{options}", "data.num-new-clients": 0, **run})

    with pytest.raises(error, match=told):
        load_federation(settle(config).data, seed=0, dtype=torch.float32, settings=Settings())


@pytest.mark.parametrize(
    ("spec", "code", "told"), [("digits#3/20", 2, "images:scans."), ("images:nowhere", 3, "no such folder")]
)
def test_what_is_no_table_and_no_folder_is_refused_by_draft_and_simulate(spec, code, told, tmp_path, capsys):
    """With what they can take, which a slice of a named source is not."""
    assert main(["draft", "--data", spec]) == code
    assert told in capsys.readouterr().err
    if spec.startswith("images"):
        assert main(["simulate", "--dataset", spec, "--out", str(tmp_path)]) == code
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "check", "task", "expected"),
    [
        ("label=ill&ignore=patient,site", "label=ill", None, {"class-names": "no,yes"}),
        ("label=dose&ignore=patient,site,ill", "label=dose", None, {"task": "regression", "num-outputs": 1}),
        ("label=patient&ignore=site,ill&labels=numbers", "label=patient&labels=numbers", None, {"num-outputs": 40}),
        ("label=age,dose&ignore=site,ill,patient", "label=age,dose", None, {"task": "regression", "num-outputs": 2}),
        ("label=patient&ignore=site,ill", "label=patient", "regression", {"task": "regression"}),
        ("label=patient&ignore=site,ill", "label=patient", "counts", {"task": "counts", "num-outputs": 1}),
    ],
)
def test_a_draft_is_what_a_server_needs(options, check, task, expected, tmp_path, capsys):
    """Written by one site, taken by the server, and passed by that site's check; nothing is replaced unasked."""
    frame(300).to_csv(tmp_path / "mine.csv", index=False)
    words = ["draft", "--data", f"csv:{tmp_path}/mine.csv?{options}", "--out", str(tmp_path / "run.toml")]
    words += ["--task", task] if task else []

    assert main(words) == 0

    config = RunConfig.load(tmp_path / "run.toml")
    flat = config.flat()
    assert {key: flat[f"data.{key}"] for key in expected} == expected
    assert "sex, at birth" in flat["data.feature-names"]
    data = f"csv:{tmp_path}/mine.csv?{check}&missing=drop"
    assert main(["check", "--config", str(tmp_path / "run.toml"), "--data", data, "--name", "a"]) == 0
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0


@pytest.mark.parametrize(
    ("table", "options", "code", "told"),
    [
        ({"x": [f"t{n}" for n in range(9)], "y": [0, 1, 0] * 3}, "label=y", 2, "ignore="),
        ({"x": [None] * 9, "y": [0, 1, 0] * 3}, "label=y", 2, "hold no value"),
        ({"x": range(9), "y": ["a"] * 9}, "label=z", 2, "no column"),
        ({"x": range(9), "y": ["3", "3.0", "4"] * 3}, "label=y", 0, ""),
        ({"y": ["a"] * 9}, "label=y", 3, "columns beside the label"),
        ({"x": [], "y": []}, "label=y", 3, "expected examples"),
        ({"x\nz": range(9), "y": ["a"] * 9}, "label=y", 2, "line break"),
    ],
)
def test_a_draft_of_other_data_says_what_is_wrong(table, options, code, told, tmp_path, capsys):
    """And writes nothing."""
    pd.DataFrame(table).to_csv(tmp_path / "mine.csv", index=False)

    assert main(["draft", "--data", f"csv:{tmp_path}/mine.csv?{options}", "--out", str(tmp_path / "o.toml")]) == code

    assert told in capsys.readouterr().err
    assert (tmp_path / "o.toml").exists() == (code == 0)
    shutil.rmtree(tmp_path)
