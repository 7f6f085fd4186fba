"""Claims about functions of the user's own."""

import sys

import pytest

from nufed.common.errors import ConfigError, DataError, ModelError
from nufed.common.user_code import load_function


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, with a module whose functions can be named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_to_load.py").write_text("NUMBER = 3\n\n\ndef double(x):\n    return 2 * x.real\n")
    (tmp_path / "needs_more.py").write_text("import not_there_at_all\n")
    (tmp_path / "unfinished.py").write_text("def f(:\n")
    yield tmp_path
    for name in ("mine_to_load", "needs_more", "unfinished"):
        sys.modules.pop(name, None)


def test_a_module_in_the_working_directory_is_found_and_the_path_is_put_back(here):
    """No installation is needed, and nothing is left on sys.path."""
    before = list(sys.path)

    function = load_function("mine_to_load:double", "model.name")

    assert function(4) == 8
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("mine_to_load", "model.name expects module:function, but got 'mine_to_load'"),
        (":double", "expects module:function"),
        ("mine_to_load:", "expects module:function"),
        ("no_such_module:f", "module 'no_such_module', which is neither installed nor a file under"),
        ("no_such.module:f", "module 'no_such.module', which is neither installed"),
        ("mine_to_load:triple", "names 'triple', which mine_to_load does not define as a function. It has: double."),
        ("mine_to_load:NUMBER", "names 'NUMBER', which mine_to_load does not define as a function. It has: double."),
        (
            "needs_more:f",
            r"'needs_more', which raised ModuleNotFoundError: .*not_there_at_all' \(needs_more.py, line 1\)",
        ),
        ("unfinished:f", r"'unfinished', which raised SyntaxError: .* \(unfinished.py, line 1\)"),
    ],
)
def test_a_wrong_reference_is_refused_with_what_there_is(here, reference, message):
    """The message names the option and what was found."""
    with pytest.raises(ConfigError, match=message):
        load_function(reference, "model.name")


def test_what_the_function_raises_is_told_with_its_place(here):
    """The error is of the kind asked for, names the file and line, and keeps the cause."""
    function = load_function("mine_to_load:double", "data.source", DataError)

    with pytest.raises(DataError, match=r"AttributeError: 'str' .* \(mine_to_load.py, line 5\)") as caught:
        function("four")

    assert isinstance(caught.value.__cause__, AttributeError)


def test_code_that_ends_the_program_does_not_end_ours(here):
    """A script that was written to be run ends with `sys.exit()`."""
    (here / "script_to_load.py").write_text("def f():\n    raise SystemExit(0)\n")
    (here / "script_that_runs.py").write_text("import sys\nsys.exit(0)\n")

    with pytest.raises(DataError, match=r"SystemExit"):
        load_function("script_to_load:f", "--data", DataError)()
    with pytest.raises(ConfigError, match=r"SystemExit"):
        load_function("script_that_runs:f", "--data", DataError)


def test_an_error_of_ours_passes_as_it_is(here):
    """A user's function may use this package; its messages are complete."""
    (here / "mine_to_load.py").write_text(
        "from nufed.common.errors import ModelError\n\ndef f():\n    raise ModelError('mine')\n"
    )
    function = load_function("mine_to_load:f", "data.source", DataError)

    with pytest.raises(ModelError, match=r"^mine$"):
        function()
