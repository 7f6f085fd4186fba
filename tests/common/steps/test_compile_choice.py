"""`method.compile=auto`: by what is remembered, else by a guess, and never for what compiling cannot help."""

import pytest
from torch import nn

from nufed.common.config import RunConfig
from nufed.common.examples import TaskInfo
from nufed.common.steps import compile_choice
from nufed.common.steps.cautions import Caution, caution
from nufed.common.steps.compile_choice import CompileCost, costs_path, read_costs, settle_compile, write_costs
from nufed.common.task import make_loss
from tests.common.meta.problems import cnn, mlp

TASK = TaskInfo("classification", (1, 3, 3), 4)
AUTO = RunConfig().replace(method__compile="auto")
CHEAP, DEAR = CompileCost(0.001, 1.0, 0.1), CompileCost(1e9, 1.0, 0.1)


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    settle_compile.cache_clear()
    caution.cache_clear()


@pytest.fixture
def measurements(monkeypatch):
    """Say that compiling makes steps ten times faster, and list what was measured."""
    measured = []

    def measure(loss, method):
        measured.append(method)
        return CHEAP

    monkeypatch.setattr(compile_choice, "_measure", measure)
    return measured


def remember(loss, config, cost):
    write_costs(costs_path(), {compile_choice._key(loss, config.method): cost})


@pytest.mark.parametrize("option", ["on", "off"])
def test_what_the_user_decided_stays(option, measurements):
    config = RunConfig().replace(method__compile=option)

    settled = settle_compile(config, make_loss(mlp(), TASK), 20)

    assert (settled, measurements) == (config, [])


@pytest.mark.parametrize(("cost", "option"), [(CHEAP, "on"), (DEAR, "off")])
def test_a_remembered_cost_decides(cost, option, measurements):
    loss = make_loss(mlp(), TASK)
    remember(loss, AUTO, cost)

    settled = settle_compile(AUTO, loss, 20)

    assert settled == AUTO.replace(method__compile=option)


def test_without_memory_a_run_of_few_steps_is_not_compiled_and_one_of_many_is_and_is_remembered(measurements):
    loss = make_loss(mlp(), TASK)

    short = settle_compile(AUTO.replace(federation__num_rounds=1), loss, 1)
    long = settle_compile(AUTO.replace(federation__num_rounds=10_000_000), loss, 20)

    assert (short.method.compile, long.method.compile) == ("off", "on")
    assert read_costs(costs_path()) == {compile_choice._key(loss, AUTO.method): CHEAP}
    assert len(measurements) == 1


def test_a_measurement_that_shows_no_gain_turns_compilation_off(monkeypatch):
    loss = make_loss(mlp(), TASK)
    monkeypatch.setattr(compile_choice, "_measure", lambda loss, method: CompileCost(1.0, 1.0, 1.5))
    remember(loss, AUTO, CHEAP)

    settled = settle_compile(AUTO, loss, 20)

    assert settled.method.compile == "off"


@pytest.mark.parametrize(
    ("build", "changes"),
    [(cnn, {}), (lambda: mlp(dropout=0.5), {}), (mlp, {"method__batch_size": 0})],
    ids=["convolutions", "dropout", "batches of all examples"],
)
def test_what_compiling_cannot_help_is_left_alone(build, changes, measurements):
    config = AUTO.replace(federation__num_rounds=10_000_000, **changes)

    settled = settle_compile(config, make_loss(build(), TASK), 20)

    assert (settled.method.compile, measurements) == ("off", [])


def test_the_choice_depends_on_model_and_method_and_not_on_the_outer_step_size():
    loss = make_loss(mlp(), TASK)
    other = make_loss(nn.Sequential(nn.Flatten(), nn.Linear(9, 4).double()), TASK)

    keys = [
        compile_choice._key(loss, AUTO.method),
        compile_choice._key(other, AUTO.method),
        compile_choice._key(loss, AUTO.replace(method__num_inner_steps=4).method),
    ]

    assert len(set(keys)) == 3
    assert compile_choice._key(loss, AUTO.replace(method__local_lr=0.7).method) == keys[0]


def test_what_was_remembered_beside_double_backward_is_not_taken_for_steps_by_hand(monkeypatch):
    loss = make_loss(mlp(), TASK)
    by_hand = compile_choice._key(loss, AUTO.method)

    monkeypatch.setattr(compile_choice, "dense_steps", lambda loss, inner_lr: None)
    by_autograd = compile_choice._key(loss, AUTO.method)

    assert by_hand != by_autograd


def test_costs_survive_the_file():
    write_costs(costs_path(), {"a": CHEAP, "b": DEAR})

    assert read_costs(costs_path()) == {"a": CHEAP, "b": DEAR}


@pytest.mark.parametrize("content", ["{", '{"a": {"wrong": 1}}', '{"a": 3}', "[]"])
def test_a_damaged_file_is_said_and_left_out(content):
    costs_path().parent.mkdir(parents=True)
    costs_path().write_text(content)

    with pytest.warns(Caution, match="cannot be read"):
        costs = read_costs(costs_path())

    assert costs == {}


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    with pytest.warns(Caution, match="cannot be remembered"):
        write_costs(costs_path(), {"a": CHEAP})


def test_savings_must_exceed_the_cost():
    cost = CompileCost(compile_seconds=10.0, eager_seconds=3.0, compiled_seconds=1.0)

    assert [cost.repaid_by(count) for count in (4, 5, 6)] == [False, False, True]
