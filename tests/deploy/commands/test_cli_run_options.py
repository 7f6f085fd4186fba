"""Claims about how what was typed becomes a run's configuration."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nufed.common.config import RunConfig, option_descriptions
from nufed.common.errors import ConfigError
from nufed.deploy.commands.cli import main
from nufed.deploy.commands.option_groups import MachineOptions, check_device
from nufed.deploy.commands.run_options import FLAGS, RunOptions, allowed_values, config_for_resuming


def test_nothing_typed_gives_the_defaults():
    assert RunOptions().resolve() == RunConfig()


def test_defaults_give_way_to_the_file_the_file_to_flags_and_flags_to_set(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('seed = 1\n[method]\ninner-lr = 0.2\nlocal-lr = 0.3\n[model]\nactivation = "tanh"\n')

    options = RunOptions(file, {"inner-lr": "0.4", "rounds": "7"}, ("method.outer-batch-size=40", "name=mine"))
    config = options.resolve()

    assert (config.seed, config.model.activation, config.method.local_lr) == (1, "tanh", 0.3)
    assert (config.method.inner_lr, config.federation.num_rounds) == (0.4, 7)
    assert (config.method.outer_batch_size, config.name) == (40, "mine")


def test_a_method_stands_above_the_file_and_below_flags_and_set(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[method]\nnum-inner-steps = 7\nestimator = "unrolled"\ninner-lr = 0.2\n')

    preset = RunOptions(file, method="per-fedavg-fo").resolve().method
    changed = RunOptions(file, {"estimator": "exact"}, ("method.num-inner-steps=2",), "per-fedavg-fo").resolve().method

    assert (preset.num_inner_steps, preset.estimator, preset.inner_lr) == (1, "first-order", 0.2)
    assert (changed.num_inner_steps, changed.estimator) == (2, "exact")


def test_a_method_leaves_what_a_file_says_of_the_server_alone_and_says_what_it_overrides(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[federation]\nserver-lr = 0.7\n[method]\nnum-inner-steps = 3\n")

    config, notes = RunOptions(file, method="per-fedavg").resolve_with_notes()

    assert (config.federation.server_lr, config.method.num_inner_steps) == (0.7, 1)
    assert notes == [
        "method per-fedavg overrides what was given: method.num-inner-steps 3 → 1",
        "federation.server-lr=0.7 stays as given: method per-fedavg leaves it open",
    ]


def test_a_method_says_nothing_where_it_overrides_defaults_or_flags_decide(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("seed = 3\n")

    assert RunOptions(file, {"estimator": "unrolled"}, method="fedavg").resolve_with_notes()[1] == []


def test_an_unknown_method_is_refused_naming_the_nearest():
    with pytest.raises(ConfigError, match=r"Unknown method 'fedavgg' .*Did you mean 'fedavg'"):
        RunOptions(method="fedavgg").resolve()


def test_a_runs_own_config_file_gives_that_run(tmp_path):
    config = RunConfig().replace(seed=5, data__source="sinusoid", model__hidden_sizes="")
    (tmp_path / "config.json").write_text(config.to_json())

    assert RunOptions(tmp_path / "config.json").resolve() == config


def test_set_takes_python_spelling_and_values_with_equal_signs():
    config = RunOptions(assignments=("method.num_inner_steps=3", "data.source=npz:a=b.npz")).resolve()

    assert config.method.num_inner_steps == 3
    assert config.data.source == "npz:a=b.npz"


@pytest.mark.parametrize(
    ("flags", "assignments"),
    [
        ({"inner-lr": "0.1"}, ("method.inner-lr=0.2",)),
        ({"estimator": "exact"}, ("method.estimator=unrolled",)),
        ({}, ("seed=1", "seed=2")),
    ],
)
def test_the_same_key_with_two_values_is_refused_naming_both(flags, assignments):
    first = f"--{next(iter(flags))} {next(iter(flags.values()))}" if flags else f"--set {assignments[0]}"

    with pytest.raises(ConfigError) as caught:
        RunOptions(flags=flags, assignments=assignments).resolve()

    assert first in str(caught.value)
    assert f"--set {assignments[-1]}" in str(caught.value)


def test_the_same_key_with_one_value_in_two_spellings_is_no_contradiction():
    config = RunOptions(flags={"inner-lr": "0.10"}, assignments=("method.inner-lr=0.1",)).resolve()

    assert config.method.inner_lr == 0.1


def test_a_refused_flag_is_named_beside_its_key():
    with pytest.raises(ConfigError, match=r"^--rounds \(federation\.num-rounds\)='-1' is refused"):
        RunOptions(flags={"rounds": "-1"}).resolve()


@pytest.mark.parametrize("flag", ["--inner-lr=1e-400", "--set=federation.server-lr=-0.1e-999"])
def test_a_number_too_small_for_a_computer_does_not_become_zero(tmp_path, capsys, flag):
    code = main(["simulate", "--out", str(tmp_path), "--rounds", "0", flag])

    assert code == ConfigError.exit_code
    assert "is refused: input is too small, and would become 0" in capsys.readouterr().err
    assert RunConfig.parse({"method.inner-lr": "0.00e-400"}).method.inner_lr == 0


def test_every_flag_stands_for_an_option_and_says_what_it_is():
    described = option_descriptions()

    for parameter in RunOptions.parameters():
        if (key := FLAGS.get(parameter.name.replace("_", "-"))) is not None:
            help_text = parameter.annotation.__metadata__[0].help
            assert described[key][1] in help_text
            assert f"default: {described[key][0]}" in help_text
    assert set(FLAGS.values()) <= described.keys()
    assert {flag.replace("-", "_") for flag in FLAGS} < {parameter.name for parameter in RunOptions.parameters()}


def test_help_texts_state_what_is_allowed():
    assert allowed_values("data.partition") == "iid, dirichlet, classes, by-user, per-fedavg"
    assert allowed_values("method.num-inner-steps") == "0 to 1000"
    assert allowed_values("federation.participation-fraction") == "above 0 to 1"
    assert allowed_values("data.num-clients") == "1 to 1000000"
    assert allowed_values("model.name") == "see `nufed models`"
    assert allowed_values("model.hidden-sizes") == ""


def test_a_resumed_run_may_have_more_rounds():
    stored = RunConfig().replace(seed=3)

    config = config_for_resuming(stored, RunOptions(flags={"rounds": "100"}))

    assert config == stored.replace(federation__num_rounds=100)


def test_a_resumed_run_with_another_option_is_refused_naming_it_and_both_values():
    stored = RunConfig().replace(method__inner_lr=0.25)

    with pytest.raises(ConfigError, match=r"method\.inner-lr=0\.5 contradicts .* method\.inner-lr=0\.25"):
        config_for_resuming(stored, RunOptions(flags={"inner-lr": "0.5"}))


scalars = {int: st.integers(1, 9), float: st.sampled_from([0.125, 0.25, 0.5])}
numeric = sorted(
    key for key, (default, _) in option_descriptions().items() if type(default) in scalars and "timeout" not in key
)


@given(st.data())
def test_an_option_gives_the_same_run_by_flag_and_by_set(data):
    flag = data.draw(st.sampled_from(sorted(flag for flag, key in FLAGS.items() if key in numeric)))
    key = FLAGS[flag]
    value = data.draw(scalars[type(option_descriptions()[key][0])])
    room = ("evaluation.primary-step=0",)

    by_flag = RunOptions(flags={flag: str(value)}, assignments=room).resolve()
    by_set = RunOptions(assignments=(f"{key}={value}", *room)).resolve()

    assert by_flag == by_set
    assert by_flag.flat()[key] == value


def test_machine_settings_are_in_the_environment_only_inside_the_block(tmp_path, monkeypatch):
    import os

    from nufed.common.settings import process_settings

    monkeypatch.setenv("NUFED_NUM_THREADS", "3")
    with MachineOptions(data_root=tmp_path, download=True, threads=2).exported():
        inside = process_settings()

    assert (inside.data_root, inside.download, inside.num_threads) == (tmp_path, True, 2)
    assert os.environ["NUFED_NUM_THREADS"] == "3"
    assert "NUFED_DATA_ROOT" not in os.environ


def test_a_device_that_is_not_there_is_refused_with_those_that_are():
    check_device("cpu")

    with pytest.raises(ConfigError, match="Choose one of: cpu"):
        check_device("cuda:99")


def test_group_parameters_are_keyword_only_and_optional():
    for parameter in [*RunOptions.parameters(), *MachineOptions.parameters()]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default in (None, False)
