"""Options made at random: configuration files, `--set`, and whole command lines."""

import importlib
import json
import os
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nufed.common.config import RunConfig, option_descriptions
from nufed.deploy.commands import cli
from nufed.deploy.simulation import engines
from tests.fuzz.budget import examples, limits

# What commands import when they are called is imported here, and not inside the limits.
for _module in (
    *("client.app", "client.model_export", "client.personal_model", "common.data.private.load"),
    *("deploy.experiments.report", "deploy.experiments.conduct", "deploy.network.certificates"),
    *("deploy.network.direct_client", "deploy.network.direct_server", "server.figures", "server.run"),
):
    importlib.import_module(f"nufed.{_module}")

KEYS = [*option_descriptions()]
VALUES = st.one_of(
    st.sampled_from(
        [
            "",
            "0",
            "-1",
            "1e400",
            "nan",
            "inf",
            "-0",
            "1_000",
            "٣",
            "true",
            "None",
            "[1]",
            "{}",
            "a,b",
            "a" * 5000,
            "\x00",
        ]
    ),
    st.integers(-(2**70), 2**70).map(str),
    st.floats().map(str),
    st.text(max_size=8),
)
PLAIN = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
CONFIGS = st.one_of(
    PLAIN,
    st.dictionaries(
        st.one_of(st.sampled_from([*KEYS, "data", "method", "model"]), st.text(max_size=8)), PLAIN, max_size=4
    ),
)


@settings(max_examples=examples(60))
@given(content=st.one_of(st.binary(max_size=60), CONFIGS.map(lambda value: json.dumps(value).encode())), suffix=...)
def test_a_configuration_file_of_any_content_is_read_or_refused(content: bytes, suffix: bool):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("run.toml" if suffix else "run.json")
        path.write_bytes(content)
        with limits():
            RunConfig.load(path)


@settings(max_examples=examples(100))
@given(changes=st.dictionaries(st.sampled_from(KEYS), st.one_of(VALUES, PLAIN), max_size=3))
def test_any_options_are_a_configuration_that_is_read_back_or_are_refused(changes):
    with limits() as refused:
        config = RunConfig().updated(changes)
    assert refused or RunConfig.parse(config.flat()) == config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with something of every kind that a command could be given."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "table.csv").write_text("a,b\n1,2\n3,4\n", encoding="utf-8")
    (folder / "run.toml").write_text('name = "x"\n[data]\nnum-clients = 3\n', encoding="utf-8")
    (folder / "noise").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "mine.py").write_text(
        "def data(config, seed):\n    return 3\n\n\ndef broken(*_):\n    1 / 0\n", encoding="utf-8"
    )
    return folder


WORDS = st.one_of(
    st.sampled_from(
        [
            *(
                "table.csv",
                "run.toml",
                "noise",
                "empty",
                "folder",
                "nowhere",
                ".",
                "/dev/null",
                "/proc/self/mem",
                "mine.py",
            ),
            *(
                "csv:table.csv?label=b",
                "npz:noise",
                "images:folder",
                "python:mine:data",
                "python:mine:broken",
                "digits#0/3",
            ),
            *(
                "mine:data",
                "mine:broken",
                "digits",
                "mlp",
                "smoke",
                "fedavg",
                "127.0.0.1:1",
                "x:y",
                "\udcff",
                "ν",
                "=x",
            ),
        ]
    ),
    VALUES,
)
RUN = [
    "name",
    "seed",
    "dataset",
    "model",
    "clients",
    "inner-steps",
    "inner-lr",
    "estimator",
    "batch-size",
    "method",
    "config",
    "set",
]
FLAGS = {
    "simulate": [*RUN, "engine", "resume"],
    "personalize": ["model", "data", "out", "name", "steps", "lr", "batch-size", "seed"],
    "predict": ["model", "data", "out"],
    "export": ["model", "out", "format"],
    "report": ["out", "markdown"],
    "experiment": ["out", "setting", "seeds", "set"],
    "certs init": ["san", "out", "days"],
    "certs add-client": ["out"],
    "certs request": ["name", "out"],
    "certs admit": ["fingerprint", "out"],
    "certs revoke": ["out"],
    "client": ["server", "data", "name", "root-certificates", "key", "personal-model"],
    "server": ["listen", "health", "certificates", "config", "set", "state", "min-clients"],
}
NEEDED = {
    "personalize": ["model", "data"],
    "predict": ["model", "data", "out"],
    "export": ["model", "out"],
    "certs init": ["san"],
    "certs request": ["name"],
    "client": ["server", "data", "name"],
}
ARGUMENTS = {"report", "experiment", "certs add-client", "certs admit", "certs revoke"}


@st.composite
def command_lines(draw):
    """Return words of a command: each flag once at the most, with any value."""
    command = draw(st.sampled_from([*FLAGS]))
    needed = NEEDED.get(command, []) if draw(st.integers(0, 9)) else []
    chosen = {*needed, *draw(st.lists(st.sampled_from(FLAGS[command]), unique=True, max_size=3))}
    words = [word for flag in sorted(chosen) for word in (f"--{flag}", draw(WORDS))]
    if command in ARGUMENTS and draw(st.integers(0, 4)):
        words.append(draw(WORDS))
    if draw(st.integers(0, 9)) == 0:
        words.append(draw(st.text(string.printable, max_size=6)))
    return [*command.split(), *words]


@settings(max_examples=examples(60))
@given(words=command_lines())
def test_any_command_line_ends_with_a_code_and_no_traceback(words, files):
    """Runs and servers themselves are not started: what is typed, read and checked before is."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as here:
        for path in files.iterdir():
            (Path(here) / path.name).symlink_to(path)
        patch.chdir(here)
        for name in engines.ENGINES:
            patch.setitem(engines.ENGINES, name, lambda *_: None)
        patch.setattr("nufed.deploy.network.direct_server.DirectServer.__enter__", _stop)
        patch.setattr("nufed.deploy.network.direct_client.DirectClient.serve", _stop)
        patch.setattr("nufed.deploy.experiments.conduct.conduct", _stop)
        with limits(), open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123
            patch.setattr("sys.stdout", nowhere)
            code = cli.main(words)
        assert isinstance(code, int)


def _stop(*_args, **_options):
    raise KeyboardInterrupt
