"""Every refusal of a client that has data of its own: what it sends names counts and what the run itself declares."""

import ast
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import nufed.client.app
from nufed.client.workplace import forget_workplaces, workplace
from nufed.common.config import RunConfig
from nufed.common.errors import NufedError
from nufed.common.params import model_params
from nufed.common.settings import Settings
from tests.client.deployed import ask

ROOT = Path(__file__).parent.parent.parent
SIMULATED = {"inference.py", "simulated.py"}  # what a deployed client has no use for
MODULES = (
    *sorted(path for path in (ROOT / "common/data/private").glob("*.py") if path.name not in SIMULATED),
    ROOT / "client/workplace.py",
)
"""Where whatever is raised may be raised about a client's own data."""

SECRET = "ann-smith"
TABLE = {
    "data.source": "private",
    "data.feature-names": "a,b",
    "data.categories": "b:x|y",
    "data.class-names": "no,yes",
    "model.hidden-sizes": "3",
}
UNNAMED = {**TABLE, "data.feature-names": "", "data.categories": "", "data.input-shape": "2"}
VALUES = {**UNNAMED, "data.class-names": "", "data.task": "regression", "data.num-outputs": 1}
MASKS = {**UNNAMED, "data.task": "segmentation", "data.target-shape": "2"}
NAMED = {**UNNAMED, "data.input-shape": "a:2;b:1:integer"}
IMAGES = {**UNNAMED, "data.input-shape": "1,4,4", "data.class-names": "3,yes"}
GOOD = "a,b,ann-smith\n1,x,no\n2,y,yes\n3,x,no\n4,y,yes\n"
LABEL = "?label=ann-smith"


@dataclass(frozen=True)
class Case:
    """A client that must be refused; `make` writes its data into a folder and returns the spec."""

    make: Callable[[Path], str]
    run: dict = field(default_factory=lambda: TABLE)
    node: dict = field(default_factory=dict)


def csv(text: str | bytes = GOOD, options: str = LABEL, run: dict = TABLE) -> Case:
    def make(folder: Path) -> str:
        (folder / "ann-smith.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        return f"csv:{folder}/ann-smith.csv{options}"

    return Case(make, run)


def parquet(column: pa.Array, run: dict = UNNAMED) -> Case:
    def make(folder: Path) -> str:
        names = ["no", "yes"] * (len(column) // 2)
        pq.write_table(pa.table({"ann-smith-2": column, "b": column, "ann-smith": names}), folder / "t.parquet")
        return f"parquet:{folder}/t.parquet{LABEL}"

    return Case(make, run)


def bomb(folder: Path) -> str:
    part = pa.table({"ann-smith-2": np.zeros(2**20), "b": np.zeros(2**20), "ann-smith": np.zeros(2**20)})
    with pq.ParquetWriter(folder / "ann-smith.parquet", part.schema) as writer:
        for _ in range(12):
            writer.write_table(part)
    return f"parquet:{folder}/ann-smith.parquet{LABEL}"


def images(options: str = "", run: dict = IMAGES, **folders: Image.Image | bytes | None) -> Case:
    def make(folder: Path) -> str:
        for name, content in folders.items():
            inside = folder / name.replace("_", "-").replace("3-0", "3.0")
            inside.mkdir()
            if isinstance(content, bytes):
                (inside / "ann-smith.png").write_bytes(content)
            elif content is not None:
                pages = {"save_all": True, "append_images": [content]} if content.mode == "LA" else {}
                content.convert("L" if pages else content.mode).save(
                    inside / ("ann-smith.tif" if pages else "ann-smith.png"), **pages
                )
        return f"images:{folder}{options}"

    return Case(make, run)


X, Y = np.ones((6, 2), np.float32), np.arange(6) % 2


def npz(options: str = "", run: dict = UNNAMED, **arrays) -> Case:
    def make(folder: Path) -> str:
        np.savez(
            folder / "ann-smith.npz", **{name.replace("_smith", "-smith"): value for name, value in arrays.items()}
        )
        return f"npz:{folder}/ann-smith.npz{options}"

    return Case(make, run)


def two_archives(folder: Path) -> str:
    np.savez(folder / "t.npz", x=X, y=Y)
    np.savez(folder / "ann-smith.npz", x_train=X, y_train=Y, x_test=X, y_test=Y)
    return f"npz:{folder}/t.npz?test={folder}/ann-smith.npz"


def function(body: str, run: dict = UNNAMED, name: str = "ann_smith") -> Case:
    def make(folder: Path) -> str:
        sys.modules.pop("module_of_ann_smith", None)
        (folder / "module_of_ann_smith.py").write_text(
            "import numpy as np\nfrom nufed.common.errors import *\nclass AnnSmithError(Exception): pass\n"
            f"def ann_smith(task):\n    x, y = np.ones((6, 2)), np.arange(6) % 2\n    {body}\n"
        )
        sys.path.insert(0, str(folder))
        return f"python:module_of_ann_smith:{name}"

    return Case(make, run)


def written(name: str, content: bytes, kind: str, options: str = "", run: dict = UNNAMED) -> Case:
    def make(folder: Path) -> str:
        (folder / name).write_bytes(content)
        return f"{kind}:{folder}/{name}{options}"

    return Case(make, run)


def spec(text: str, run: dict = TABLE, **node) -> Case:
    return Case(lambda folder: text.format(folder=folder), run, node)


def image(mode: str = "L", size=(4, 4)) -> Image.Image:
    return Image.new(mode, size)


CASES = {
    "no file": spec("csv:{folder}/ann-smith.csv" + LABEL),
    "an empty file": csv(""),
    "rows of other lengths": csv(GOOD + "ann-smith,x\n"),
    "not UTF-8": csv(GOOD.encode() + b"\xff\xfeann-smith"),
    "an open quote": csv(GOOD + '1,x,"ann-smith\n'),
    "a column twice": csv("ann-smith-2,ann-smith-2,ann-smith\n1,x,no\n"),
    "no header": csv("1,ann-smith,x\n2,y,no\n"),
    "text for a number": csv(GOOD + "ann-smith-9,x,no\n"),
    "no number of float32": csv(GOOD + "1e39,x,no\n1e39,y,no\n"),
    "another category": csv(GOOD + "5,ann-smith-9,no\n"),
    "another class": csv(GOOD + "5,x,ann-smith-9\n"),
    "a row without label": csv(GOOD + "5,x,\n"),
    "an empty cell": csv(GOOD + ",x,no\n"),
    "an empty cell of an unnamed column": csv("ann-smith-2,b,ann-smith\n1,1,no\n,1,no\n", run=UNNAMED),
    "text in an unnamed column": csv("ann-smith-2,b,ann-smith\n1,1,no\nann-smith-3,1,no\n", run=UNNAMED),
    "no column has a mean": csv("a,b,ann-smith\n,x,no\n,y,no\n,x,no\n", f"{LABEL}&missing=mean"),
    "an unnamed column has no mean": csv("ann-smith-2,b,ann-smith\n,1,no\n,2,no\n", f"{LABEL}&missing=mean", UNNAMED),
    "nothing but rows to drop": csv("a,b,ann-smith\n,x,no\n1,,no\n1,x,\n", f"{LABEL}&missing=drop"),
    "header only": csv("a,b,ann-smith\n"),
    "one row": csv("a,b,ann-smith\n1,x,no\n"),
    "no label named": csv(options=""),
    "an input as label": csv(options="?label=a"),
    "two labels": csv("a,b,ann-smith-2,ann-smith\n1,2,no,no\n", "?label=ann-smith,ann-smith-2", UNNAMED),
    "a label that is not there": csv(options="?label=ann-smith-4"),
    "an unknown policy": csv(options=f"{LABEL}&missing=ann-smith"),
    "an unknown scale": csv(options=f"{LABEL}&scale=ann-smith"),
    "unknown labels=": csv(options=f"{LABEL}&labels=ann-smith"),
    "a long separator": csv(options=f"{LABEL}&sep=ann-smith"),
    "a class as missing": csv(options=f"{LABEL}&na=no,ann-smith"),
    "a category as missing": csv(options=f"{LABEL}&na=x,ann-smith"),
    "other categories": csv(options=f"{LABEL}&categories=b:ann-smith|y"),
    "ignored though named": csv(options=f"{LABEL}&ignore=ann-smith"),
    "categories of no column": csv("a,b,ann-smith\n1,2,no\n", f"{LABEL}&categories=ann-smith-5:a|b", UNNAMED),
    "categories of the label": csv("a,b,ann-smith\n1,2,no\n", f"{LABEL}&categories=ann-smith:no|yes", UNNAMED),
    "another number of columns": csv("a,b,ann-smith-2,ann-smith\n1,2,3,no\n", run=UNNAMED),
    "no inputs": csv("ann-smith\nno\n", run=UNNAMED),
    "malformed categories": csv(options=f"{LABEL}&categories=ann-smith"),
    "categories twice": csv(options=f"{LABEL}&categories=ann-smith:a|a"),
    "empty names": csv(options="?label=ann-smith,"),
    "a name of two lines": csv(options="?label=ann-smith%0Ab"),
    "an unknown option": csv(options="?ann-smith=1"),
    "an option twice": csv(options=f"{LABEL}&label=ann-smith"),
    "half an option": csv(options="?ann-smith"),
    "no scale of the run": csv(options=f"{LABEL}&scale=run"),
    "values in other columns": csv(
        "a,b,ann-smith\n1,2,3\n3,4,5\n", "?label=ann-smith,b", {**VALUES, "data.input-shape": "1"}
    ),
    "text for a value": csv("a,b,ann-smith\n1,2,ann-smith-6\n", run=VALUES),
    "values beyond float32": csv("a,b,ann-smith\n1,2,1e39\n1,2,1e39\n", run=VALUES | {"data.target-scale": "none"}),
    "an unknown encoding": csv(options=f"{LABEL}&encoding=ann-smith"),
    "an encoding of no text": csv(options=f"{LABEL}&encoding=base64"),
    "one mark for two things": csv(options=f"{LABEL}&decimal=,&thousands=,"),
    "an unknown mark": csv(options=f"{LABEL}&thousands=ann-smith"),
    "no number of lines": csv(options=f"{LABEL}&skip=ann-smith"),
    "more lines skipped than there are": csv(options=f"{LABEL}&skip=70417"),
    "an unknown header": csv(options=f"{LABEL}&header=ann-smith"),
    "an unknown bad": csv(options=f"{LABEL}&bad=ann-smith"),
    "nothing but bad rows": csv("a,b,ann-smith\nann-smith,x,no\n1,x\n", f"{LABEL}&bad=drop"),
    "an unknown policy of a column": csv(options=f"{LABEL}&missing=a:ann-smith"),
    "two policies of a column": csv(options=f"{LABEL}&missing=zero,mean"),
    "a policy of no column": csv(options=f"{LABEL}&missing=ann-smith-7:mean"),
    "an empty cell of one column": csv("a,b,ann-smith\n1,x,no\n,,no\n", f"{LABEL}&missing=zero,a:error"),
    "indicators of no column": csv(options=f"{LABEL}&indicator=yes"),
    "indicators that the run has not": csv(options=f"{LABEL}&indicator=yes&missing=a:zero"),
    "a row of no group": csv("a,b,ann-smith,c\n1,x,no,ann-smith\n2,y,yes,\n", f"{LABEL}&group=c"),
    "one group": csv(GOOD.replace("yes", "no"), "?label=b&labels=numbers&group=ann-smith", UNNAMED),
    "a split of no name": csv(options="?label=b&split=ann-smith", run={**UNNAMED, "data.input-shape": "1"}),
    "a split that is an input": csv(options=f"{LABEL}&split=a"),
    "two splits": csv(options=f"{LABEL}&split=ann-smith,a"),
    "a group in two splits": csv(
        "a,b,ann-smith,c,d\n1,x,no,train,ann-smith-8\n2,y,yes,test,ann-smith-8\n", f"{LABEL}&split=c&group=d"
    ),
    "a group of no column": csv(options=f"{LABEL}&group=ann-smith-4"),
    "no test rows": csv("a,b,ann-smith,c\n1,x,no,train\n2,y,yes,train\n", f"{LABEL}&split=c"),
    "two test parts": csv("a,b,ann-smith,c\n1,x,no,train\n2,y,yes,test\n", f"{LABEL}&split=c&test=ann-smith.csv"),
    "no test file": csv(options=f"{LABEL}&test=ann-smith-9.csv"),
    "a struct": parquet(pa.array([{"ann-smith": 1}] * 4)),
    "a bomb": Case(bomb, UNNAMED),
    "a torn parquet": written("ann-smith.parquet", b"PAR1ann-smith", "parquet", LABEL),
    "images for a table": images(yes=image(), run=TABLE),
    "no folder": spec("images:{folder}/ann-smith", IMAGES),
    "no folders": images(),
    "a folder of no class": images(ann_smith=image()),
    "two folders of one class": images(**{"3": image(), "3_0": image()}),
    "no image": images(yes=b"ann-smith"),
    "a torn image": images(yes=b"\x89PNG\r\n\x1a\nann-smith"),
    "another mode": images(yes=image("RGB")),
    "another size": images(yes=image(size=(5, 6))),
    "too many pixels": images(yes=image("1", (2**13, 2**13 + 1)), options="?size=4,4"),
    "two pages": images(yes=image("LA")),
    "a wrong size=": images("?size=ann-smith", yes=image()),
    "a wrong gray=": images("?gray=ann-smith", yes=image()),
    "images of no group": images("?group=folder", yes=image()),
    "an unknown group=": images("?group=ann-smith", yes=image()),
    "no archive": written("ann-smith.npz", b"ann-smith", "npz"),
    "no archive there": spec("npz:{folder}/ann-smith.npz", UNNAMED),
    "other arrays": npz(ann_smith=X),
    "objects": npz(x=X, y=np.array([{"ann-smith": 1}] * 6)),
    "users unnamed": npz(x=X, y=Y, user=np.array(["ann-smith", "b"] * 3)),
    "another user": npz("?user=ann-smith", x=X, y=Y, user=np.array(["ann-smith-2", "b"] * 3)),
    "a user of none": npz("?user=ann-smith", x=X, y=Y),
    "other class names": npz(x=X, y=Y, class_names=np.array(["ann-smith", "no"])),
    "no class names": npz(x=X, y=Y, class_names=np.array("ann-smith")),
    "labels beyond": npz(x=X, y=Y + 70417),
    "a label of text": npz(x=X, y=np.array(["no", "ann-smith"] * 3)),
    "another shape": npz(x=np.ones((6, 3)), y=Y),
    "values for classes": npz(x=X, y=Y * 0.5),
    "a table for masks": csv(run=MASKS),
    "masks of another shape": npz(x=X, y=np.stack([Y, Y, Y], 1), run=MASKS),
    "one array for several": npz(x=X, y=Y, run=NAMED),
    "other names of inputs": function("return {'a': x, 'ann_smith': y}, y", run=NAMED),
    "names of inputs where there is one": function("return {'a': {'ann_smith_2': x}, 'ann_smith': y}, y"),
    "missing inputs": npz(x=X * np.nan, y=Y, feature_names=np.array(["ann-smith", "b"])),
    "no such function": function("pass", name="ann_smith_2"),
    "no such module": spec("python:ann_smith:ann_smith"),
    "a function without a name": spec("python:ann_smith"),
    "a function that raises": function("raise ValueError('ann-smith')"),
    "a function that raises its own": function("raise AnnSmithError('ann-smith')"),
    "a function that raises ours": function("raise DataError('ann-smith')"),
    "a function that raises what is sent": function("raise WireError('ann-smith')"),
    "no pair": function("return {'ann-smith': 1}"),
    "texts for inputs": function("return [['ann-smith', 'b']] * 6, y"),
    "too few targets": function("return x, y[:5]"),
    "no targets": function("return x, None"),
    "a class of no run": function("return x, ['ann-smith'] * 6"),
    "too few groups": function("return x, y, ['ann-smith'] * 5"),
    "groups of something else": function("return x, y, [['ann-smith', 'b']] * 6"),
    "a test part with a test part": Case(two_archives, UNNAMED),
    "a slice of another source": spec("npz:{folder}/ann-smith.npz#0/4"),
    "a slice beyond": spec("digits#40/20", {}),
    "a slice of another group": spec("digits#0/20", {}, group="new"),
    "no kind": spec("ann-smith"),
    "no argument": spec("csv:?label=ann-smith"),
    "no name": Case(csv().make, TABLE, {"client-id": ""}),
    "another group": Case(csv().make, TABLE, {"group": "ann-smith"}),
    "no folder for the personal model": Case(csv().make, TABLE, {"personal-model": "/nowhere/ann-smith/p.safetensors"}),
}

ELSEWHERE = {
    # Of `nufed predict`, which has no server, and of a simulation.
    *(
        "_check_undivided",
        "_prepared_elsewhere",
        "settle_empty",
        "find_way",
        "_preparation_without_support",
        "_simulated_client",
    ),
    # Of record-level privacy, which has tests of its own.
    "check_preparation",
    # Of the command line, before it connects.
    "check_spec",
    # Of the server's own options, which it refuses before any client hears of them.
    *(
        "declared_task",
        "check_declared",
        "declared_columns",
        "declared_scaling",
        "_input_shape",
        "_input_form",
        "_target_shape",
        "_outputs",
    ),
    "check_distinct",
    # What no test can make happen by a file: no pyarrow, a folder that may not be read, a file that counts wrongly.
    *("_open_parquet", "read_images", "parts"),
    # Of statistics before round 1, which have tests of their own.
    *("own_statistics", "statistics_shape", "check_is_scaled"),
    # Of drafts and simulations.
    "find_form",
    # They pass on what others have worded.
    *("_of_the_run", "_explained", "load_own"),
    "Preparation.from_json",
    "from_json",
}


def raised_in(error: BaseException | None) -> set[tuple[str, int]]:
    """Return the lines that an error, and what it was made of, came through."""
    lines = set()
    while error:
        trace = error.__traceback__
        while trace:
            lines.add((Path(trace.tb_frame.f_code.co_filename).resolve().as_posix(), trace.tb_lineno))
            trace = trace.tb_next
        error = error.__cause__ or error.__context__
    return lines


def raise_statements() -> dict[tuple[str, int], set[tuple[str, int]]]:
    """Return the lines of every raise statement, by its place, outside the functions of ELSEWHERE."""
    found = {}
    for path in MODULES:
        for function_node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function_node, ast.FunctionDef) or function_node.name in ELSEWHERE:
                continue
            for node in ast.walk(function_node):
                if isinstance(node, ast.Raise) and node.exc is not None:
                    lines = {(path.resolve().as_posix(), line) for line in range(node.lineno, node.end_lineno + 1)}
                    found[(path.name, node.lineno)] = lines
    return found


def refused(case: Case, folder: Path, monkeypatch) -> NufedError:
    """Return what a client raises to its runtime, which sends the words to the server."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    node = {"data": case.make(folder), "client-id": "site-a", **case.node}
    forget_workplaces()
    with pytest.raises(NufedError) as caught:
        ask("query", RunConfig().updated(case.run), node)
    return caught.value


REACHED: set[tuple[str, int]] = set()


@pytest.mark.parametrize("name", CASES)
def test_a_refusal_tells_nothing_of_the_file(name, tmp_path, monkeypatch, caplog):
    """No cell, header, label, path, user, option of --data or word of somebody's code; here all of it is told."""
    folder = tmp_path / SECRET
    folder.mkdir()

    error = refused(CASES[name], folder, monkeypatch)

    REACHED.update(raised_in(error))
    told = str(error).lower().replace("_", "-")
    assert error.sendable
    assert not [secret for secret in (SECRET, "annsmith", "70417", "1e39", str(tmp_path)) if secret in told]
    assert len(told) < 600
    assert all(record.levelno >= logging.WARNING for record in caplog.records if record.name == "nufed.private")


def test_no_refusal_is_left_out():
    """Every raise statement of the modules that read a client's own data was reached above."""
    if len(REACHED) == 0:
        pytest.skip("the cases above ran in another process")

    missed = [place for place, lines in raise_statements().items() if not lines & REACHED]

    assert not missed


def params_of(run, node):
    return model_params(workplace(run.flat(), node, Settings()).model)


def failing(error: Exception):
    def fail(*_, **__):
        raise error

    return fail


class AnnSmithError(Exception):
    """Of a client's own code."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("ann-smith"), "ValueError was raised (app.py, line"),
        (AnnSmithError("ann-smith"), "an exception of its own code was raised (app.py, line"),
        (NufedError("ann-smith"), "NufedError was raised (app.py, line"),
    ],
)
def test_what_nobody_worded_for_the_server_is_told_by_its_kind(error, kind, tmp_path, monkeypatch, caplog):
    """The words stay in the client's log, and with them names of its own files."""
    node = {"data": csv().make(tmp_path), "client-id": "site-a"}
    monkeypatch.setattr(nufed.client.app, "adaptation_curves", failing(error))

    run = RunConfig().updated(TABLE)

    with pytest.raises(NufedError) as caught:
        ask("evaluate", run, node, params_of(run, node))

    assert kind in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET in caplog.text


def test_a_personal_model_that_cannot_be_kept_is_told_without_its_path(tmp_path, monkeypatch):
    """The path names people as often as not."""
    run = RunConfig().updated({**TABLE, "evaluation.num-adapt-steps": 1, "evaluation.primary-step": 1})
    node = {"data": csv().make(tmp_path), "client-id": "a", "personal-model": str(tmp_path / "ann-smith.safetensors")}
    monkeypatch.setattr("nufed.common.durable_file._sync", failing(OSError(28, "No space left on ann-smith")))

    with pytest.raises(NufedError, match="RunError was raised") as caught:
        ask("evaluate", run, node, params_of(run, node), final=True)

    assert SECRET not in str(caught.value)


def test_a_model_of_the_users_own_is_told_without_its_words(tmp_path, monkeypatch):
    """Its code lies on the client's machine and may say anything."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "their_model.py").write_text("def build(config, task):\n    raise ValueError('ann-smith')\n")
    node = {"data": csv().make(tmp_path), "client-id": "a"}

    for name in ("their_model:build", "no_such_module:build"):
        with pytest.raises(NufedError, match=r"(Model|Config)Error was raised") as caught:
            ask("query", RunConfig().updated({**TABLE, "model.name": name}), node)

        assert SECRET not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_the_runs_own_options_are_told_in_full(tmp_path):
    """The server sent them."""
    node = {"data": csv().make(tmp_path), "client-id": "a"}

    with pytest.raises(NufedError, match=r"cnn.*images|images.*cnn"):
        ask("query", RunConfig().updated({**TABLE, "model.name": "cnn"}), node)


def test_a_private_table_is_written_as_pandas_writes_it(tmp_path):
    """The good file is good."""
    spec_text = csv().make(tmp_path)
    assert len(pd.read_csv(tmp_path / "ann-smith.csv")) == 4

    assert not ask("query", RunConfig().updated(TABLE), {"data": spec_text, "client-id": "a"}).has_error()
