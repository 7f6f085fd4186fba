"""A run starts from the seed or from a trained model, and goes on without the file that it started from."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import nufed
from nufed.common.errors import ModelError, RunError
from nufed.server.checkpoint import load_checkpoint

OPTIONS = {"num_clients": 3, "num_new_clients": 1, "num_adapt_steps": 2, "primary_step": 2, "progress": False}


def run_of(num_rounds, model="linear", **options):
    return nufed.simulate("digits", model, num_rounds=num_rounds, **{**OPTIONS, **options})


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.fixture(scope="module")
def trained():
    return run_of(1)


def test_a_run_starts_from_the_model_of_another(trained):
    run = run_of(0, init=trained.path)

    assert equal(run.params, trained.params)
    assert not equal(run.params, run_of(0).params)
    assert run.config.model.init == str(trained.path)
    assert len(run.config.model.init_hash) == 32


def test_a_model_of_another_program_will_do(trained, tmp_path):
    save_file(dict(reversed(trained.params.items())), tmp_path / "plain.safetensors")

    assert equal(run_of(0, init=tmp_path / "plain.safetensors").params, trained.params)


def test_the_file_is_not_needed_to_go_on(trained, tmp_path):
    (tmp_path / "start.safetensors").write_bytes((trained.path / "model.safetensors").read_bytes())
    first = run_of(1, init=tmp_path / "start.safetensors", out=tmp_path)
    whole = run_of(2, init=tmp_path / "start.safetensors")
    again = nufed.simulate(config=first.config, progress=False)
    (tmp_path / "start.safetensors").unlink()

    assert equal(again.params, first.params)
    assert equal(first.resume(2).params, whole.params)
    with pytest.raises(RunError, match="Expected a file at"):
        nufed.simulate(config=first.config, progress=False)


def test_a_run_that_was_killed_in_its_first_round_goes_on_without_the_file(trained, tmp_path, monkeypatch):
    def killed(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("nufed.strategy.meta_fedavg.MetaFedAvg.train_round", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(1, init=trained.path, out=tmp_path)
    (folder,) = tmp_path.iterdir()
    whole = run_of(1, init=trained.path)

    assert load_checkpoint(folder).round == 0
    monkeypatch.setattr("nufed.server.starting.read_foreign_tensors", killed)
    assert equal(nufed.load_run(folder).resume().params, whole.params)


def changed(params, name, tensor):
    return {**params, name: tensor}


WRONG = {
    "another file than before": (lambda w: changed(w, "1.bias", w["1.bias"] + 1), {"init_hash": "0" * 32}, "another"),
    "a tensor less": (lambda w: {"1.bias": w["1.bias"]}, {}, "'1.weight' is missing"),
    "a tensor more": (lambda w: changed(w, "2.bias", w["1.bias"].clone()), {}, "found '2.bias'"),
    "another shape": (
        lambda w: changed(w, "1.bias", w["1.bias"][:3].clone()),
        {},
        r"but got torch.float32 of shape \[3\]",
    ),
    "another type": (lambda w: changed(w, "1.bias", w["1.bias"].double()), {}, "but got torch.float64"),
    "no number": (lambda w: changed(w, "1.bias", w["1.bias"] / 0), {}, "'1.bias' has others"),
    "another frozen part": (lambda w: w, {"trainable": "1.bias", "seed": 1}, "'1.weight' differs; .* --frozen"),
}


@pytest.mark.parametrize(("change", "options", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_before_the_first_round(trained, tmp_path, change, options, reason):
    save_file(change(trained.params), tmp_path / "start.safetensors")

    with pytest.raises((ModelError, RunError), match=reason):
        run_of(1, init=tmp_path / "start.safetensors", out=tmp_path / "runs", **options)

    assert not (tmp_path / "runs").exists()


def test_what_was_trained_becomes_the_frozen_part(trained, monkeypatch):
    """With the file on each side; the head alone goes on, on the body of the earlier run."""
    monkeypatch.setenv("NUFED_FROZEN", str(trained.path))

    run = run_of(1, init=trained.path, trainable="1.bias", seed=1)

    assert list(run.params) == ["1.bias"]
    assert torch.equal(run.model.get_parameter("1.weight"), trained.params["1.weight"])


def test_what_is_frozen_is_not_in_the_files_of_a_run_and_must_be_there_to_go_on(tmp_path, monkeypatch):
    run = run_of(1, "mlp", trainable="5.*", out=tmp_path / "runs")

    for name in ("model.safetensors", "checkpoint.safetensors"):
        assert sorted(load_file(run.path / name)) == ["5.bias", "5.weight"]
    assert run.history["bytes_up"].tolist() == [2 * (610 * 4 + 2 * 128)]  # two clients, two headers each
    assert equal(run_of(2, "mlp", trainable="5.*").params, run.resume(2).params)
    save_file({name: tensor + 1 for name, tensor in run.model.state_dict().items()}, tmp_path / "other.safetensors")
    monkeypatch.setenv("NUFED_FROZEN", str(tmp_path / "other.safetensors"))
    with pytest.raises(ModelError, match="frozen part of the run to resume"):
        run.resume(3)
    with pytest.raises(ModelError, match="frozen part of the run's model"):
        _ = nufed.load_run(run.path).model


def test_a_cohort_trains_the_same_part():
    local, cohort = (run_of(1, "mlp", trainable="3.*,5.*", engine=engine) for engine in ("local", "cohort"))

    assert list(local.params) == list(cohort.params)
    assert all(torch.allclose(tensor, cohort.params[name], atol=1e-6) for name, tensor in local.params.items())
