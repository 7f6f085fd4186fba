"""`nufed personalize`, `predict` and `export` of models that take several arrays, and of mostly frozen ones."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file
from torch import nn

from nufed.common.config import RunConfig
from nufed.common.data import describe_task
from nufed.common.durable_file import write_tensors
from nufed.common.models import build_model
from nufed.common.models.frozen import frozen_hash
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.deploy.commands.cli import main
from nufed.server.run_folder import MODEL_FORMAT

LENGTH, WORDS, TAGS, NUMBER = 5, 12, 3, 40
FORMS = ("torch-export", "torchscript", "onnx", "state-dict")
NOTES = {
    "data.source": "private",
    "data.task": "tokens",
    "data.num-outputs": TAGS,
    "data.class-names": "other,drug,dose",
    "method.inner-lr": 0.3,
    "evaluation.num-adapt-steps": 20,
}


class Tagger(nn.Module):
    """A class for each word, from its number and those that it stands with; ids that are no integers fail."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 8), nn.Linear(16, TAGS)

    def forward(self, mask, ids):
        known = self.words(ids) * torch.where(mask, 1.0, 0.0)[..., None]
        around = known.sum(1, keepdim=True) / mask.sum(1)[:, None, None].clamp(min=1)
        return self.head(torch.cat([known, around.expand_as(known)], -1))


def tagger(_config, _task):
    return Tagger()


def write_run(**options):
    """Write what a server leaves of a run, and return its options."""
    config = RunConfig().updated({**NOTES, **options})
    model = build_model(config.model, describe_task(config.data, Settings()), seed=0)
    metadata = {"format": MODEL_FORMAT, "round": 0, "config": config.model_dump(by_alias=True)}
    write_tensors(Path("run.safetensors"), model_params(model), {**metadata, "frozen": frozen_hash(model)})
    return config


def write_notes(names, dtype=np.int64):
    """Write notes with tags, and the same without; return the inputs and the tags."""
    rng = np.random.default_rng(0)
    mask = np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (NUMBER, 1))
    arrays = dict(zip(names, (rng.integers(0, WORDS, (NUMBER, LENGTH)), mask.astype(dtype)), strict=True))
    tags = np.where(mask, arrays[names[0]] % TAGS, -100)
    stored = {f"x_{name}": array for name, array in arrays.items()}
    np.savez("mine.npz", **stored, y=tags)
    np.savez("others.npz", **stored)
    return arrays, tags


def command(*words):
    return main([*words, "--force"])


def fed_by_description(form, path, description, stored, module):
    """The outputs of an exported file for the arrays of an archive, called as its description says."""
    types = {"int64": torch.int64, "bool": torch.bool, "float32": torch.float32}
    assert description["called"] == "model(**arrays)"
    arrays = {}
    for array in sorted(description["arrays"], key=lambda array: array["position"]):
        values = torch.from_numpy(stored["_".join(["x", *array["path"]])]).to(types[array["dtype"]])
        assert ["N", *values.shape[1:]] == array["shape"]
        arrays[array["name"]] = values
    if form == "torch-export":
        return torch.export.load(path).module()(**arrays)
    if form == "torchscript":
        with pytest.warns(FutureWarning):
            return torch.jit.load(str(path))(**arrays)
    if form == "onnx":
        from onnx import load
        from onnx.reference import ReferenceEvaluator

        given = {name: values.numpy() for name, values in arrays.items()}
        return torch.from_numpy(ReferenceEvaluator(load(str(path))).run(None, given)[0])
    with safetensors.safe_open(str(path), "pt") as file:
        assert json.loads(file.metadata()["nufed"]) == description
    module.load_state_dict(load_file(path))
    returned = module.eval()(**arrays)
    return getattr(returned, "logits", returned)


def check_use(capsys, build, forms):
    """Adapt, predict to both kinds of files, and export in every form; all agree."""
    assert command("personalize", "--model", "run.safetensors", "--data", "npz:mine.npz") == 0
    shown = capsys.readouterr().out
    before, after = (float(each) for each in shown.partition("loss")[2].split()[:2])
    assert after < before

    use = ["predict", "--model", "personal.safetensors", "--data"]
    assert command(*use, "npz:mine.npz", "--out", "found.npz") == 0
    assert "40 labelled examples: loss" in capsys.readouterr().out
    assert command(*use, "npz:others.npz", "--out", "found.csv") == 0
    assert f"each line has the 15 numbers of [{LENGTH}, {TAGS}]; --out NAME.npz keeps it" in capsys.readouterr().err
    found, mine = np.load("found.npz"), np.load("mine.npz")
    lines = np.array(
        [list(map(float, line)) for line in list(csv.reader(Path("found.csv").read_text().splitlines()))[1:]]
    )
    predicted = found["predictions"]
    assert predicted.shape == (NUMBER, LENGTH, TAGS)
    assert found["rows"].tolist() == lines[:, 0].astype(int).tolist() == list(range(1, NUMBER + 1))
    assert found["class_names"].tolist() == ["other", "drug", "dose"]
    np.testing.assert_array_equal(found["classes"], predicted.argmax(-1))
    np.testing.assert_array_equal(found["targets"], mine["y"])
    np.testing.assert_allclose(lines[:, 1:].reshape(predicted.shape), predicted, rtol=1e-6)
    for form in forms:
        if form != "onnx" or all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
            check_export(form, predicted, build)


def check_export(form, predicted, build):
    assert command("export", "--model", "personal.safetensors", "--format", form, "--out", "model.bin") == 0, form
    description = json.loads(Path("model.inputs.json").read_text())
    outputs = fed_by_description(form, Path("model.bin"), description, np.load("mine.npz"), build()).detach()
    assert "softmax over the last dimension" in description["outputs"]
    assert description["returns"] == f"[N, {LENGTH}, {TAGS}]"
    np.testing.assert_allclose(outputs.softmax(-1), predicted, atol=1e-5)


def test_a_model_of_several_arrays_is_personalized_predicted_with_and_exported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_notes(("ids", "mask"), bool)
    shape = f"ids:{LENGTH}:integer;mask:{LENGTH}:boolean"
    write_run(**{"data.input-shape": shape, "model.name": f"{__name__}:tagger"})

    check_use(capsys, Tagger, FORMS)


def test_a_frozen_language_model_with_adapters_is_used_by_commands(tmp_path, monkeypatch, capsys):
    """Its file holds the adapters alone; the rest is read from its folder, and what is exported holds both."""
    pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=WORDS, **sizes)).save_pretrained("bert")
    write_notes(("input_ids", "attention_mask"))
    shape = f"attention_mask:{LENGTH}:integer;input_ids:{LENGTH}:integer"
    config = write_run(**{"data.input-shape": shape, "model.name": "huggingface:bert", "model.lora-rank": 2})
    task = describe_task(config.data, Settings())

    check_use(capsys, lambda: build_model(config.model, task, seed=1), ("state-dict",))

    kept, whole = load_file("personal.safetensors"), load_file("model.bin")
    assert set(kept) < set(whole)
    assert all("lora" in name or name.startswith("classifier") for name in kept)
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=WORDS, **sizes)).save_pretrained("bert")
    assert main(["predict", "--model", "personal.safetensors", "--data", "npz:mine.npz"]) != 0
    assert "frozen" in capsys.readouterr().err


def test_a_slice_of_several_arrays_is_predicted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arrays, tags = write_notes(("ids", "mask"), bool)
    several = {f"x_{name}": np.concatenate([array] * 3) for name, array in arrays.items()}
    np.savez("all.npz", **several, y=np.concatenate([tags] * 3), user=np.repeat(["a", "b", "c"], NUMBER))
    model = f"{__name__}:tagger"
    write_run(
        **{
            "data.source": "npz:all.npz",
            "data.num-clients": 2,
            "data.num-new-clients": 1,
            "data.partition": "by-user",
            "model.name": model,
        }
    )

    assert main(["predict", "--model", "run.safetensors", "--data", "npz:all.npz#1/2", "--out", "found.npz"]) == 0

    found = np.load("found.npz")
    assert found["predictions"].shape == (len(found["targets"]), LENGTH, TAGS)
    assert "labelled examples: loss" in capsys.readouterr().out
