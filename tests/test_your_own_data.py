"""What docs/your-own-data.md shows can be typed."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nufed.common.config import RunConfig, option_descriptions
from nufed.common.data import describe_task
from nufed.common.data.private.load import check_spec
from nufed.common.data.private.spec import KINDS
from nufed.common.settings import Settings
from nufed.deploy.commands.cli import app

TEXT = (Path(__file__).parent.parent / "docs" / "your-own-data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:    |\$ )nufed (.+)$", TEXT, re.MULTILINE)


def test_the_servers_example_describes_a_task():
    """The options exist and agree with each other."""
    [block] = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)

    task = describe_task(RunConfig.parse(tomllib.loads(block)).data, Settings())

    assert (task.input_shape, task.class_names) == ((7,), ("no", "yes"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_flags_exist(command):
    """As its help has them, and the data are spelled rightly."""
    name, *words = shlex.split(command)

    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output

    assert all(word in shown for word in words if word.startswith("--"))
    if "--data" in words:
        check_spec(words[words.index("--data") + 1])


def test_every_option_of_every_kind_of_data_is_explained():
    """And no other."""
    explained = set(re.findall(r"^\| `(\w+)=", TEXT, re.MULTILINE)) - {"missing"} | {"missing"}
    wanted = {option for options in KINDS.values() for option in options}

    assert explained == wanted
    assert all(f"`{kind}:" in TEXT for kind in KINDS)


@pytest.mark.parametrize("key", sorted(set(re.findall(r"`((?:data|evaluation)\.[a-z-]+)[`=]", TEXT))))
def test_every_option_of_the_run_exists(key):
    """Under the name shown."""
    assert key in option_descriptions()
