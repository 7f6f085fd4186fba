"""Models of transformers from a folder, with and without LoRA: built without a network, and differentiated rightly."""

import socket

import pytest
import torch

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from nufed.common.config import MethodConfig, ModelConfig  # noqa: E402
from nufed.common.errors import ConfigError, ModelError  # noqa: E402
from nufed.common.examples import Batch, Examples, TaskInfo, TensorSpec  # noqa: E402
from nufed.common.meta.estimators import ESTIMATORS  # noqa: E402
from nufed.common.meta.meta_gradient import MetaBatches  # noqa: E402
from nufed.common.models import build_model, examine  # noqa: E402
from nufed.common.models.frozen import frozen_hash  # noqa: E402
from nufed.common.params import add_scaled, model_params, num_bytes  # noqa: E402
from nufed.common.settings import exported  # noqa: E402
from nufed.common.task import make_loss  # noqa: E402
from tests import oracles  # noqa: E402
from tests.common.meta.problems import relative_difference  # noqa: E402

WORDS, LENGTH, CLASSES = 40, 6, 3
SPEC = (("attention_mask", TensorSpec((LENGTH,), "integer")), ("input_ids", TensorSpec((LENGTH,), "integer")))
SMALL = {"vocab_size": WORDS}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_args, **_options):
        raise AssertionError("a model asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Configurations of a tiny BERT and GPT-2, and a BERT with weights that were trained to fill in words."""
    root = tmp_path_factory.mktemp("models")
    bert = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, **SMALL
    )
    bert.save_pretrained(root / "bert")
    transformers.GPT2Config(n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **SMALL).save_pretrained(
        root / "gpt2"
    )
    torch.manual_seed(3)
    transformers.BertForMaskedLM(bert).save_pretrained(root / "trained")
    return root


def task(head):
    shape, outputs = ((), CLASSES) if head == "sequence-classification" else ((LENGTH,), CLASSES)
    outputs = WORDS if head == "causal-lm" else outputs
    kind = "tokens" if shape else "classification"
    return TaskInfo(kind, (), outputs, tuple(map(str, range(outputs))), SPEC, shape)


def examples(head, seed, number=4):
    """Sentences of which the first is longer than the others, padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, WORDS, (number, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 4:] = 0
    targets = torch.randint(0, task(head).num_outputs, (number, LENGTH), generator=generator)
    targets = targets[:, 0] if head == "sequence-classification" else targets.masked_fill(mask == 0, -100)
    return Examples({"attention_mask": mask, "input_ids": ids}, targets)


def built(folder, ending="token-classification", **options):
    config = ModelConfig(**{"name": f"huggingface:{folder}", "dtype": "float64", "lora_rank": 2, **options})
    return build_model(config, task(ending), seed=0)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", "token-classification"),
        ("trained", "sequence-classification"),
        ("gpt2", "causal-lm"),
        ("gpt2", "sequence-classification"),
    ],
)
def test_estimators_equal_autograd_through_the_unrolled_loop(folders, name, head, rank):
    """Attention, tied weights, padding and adapters under double backward."""
    model = built(folders / name, head, head=head, lora_rank=rank).eval()
    loss = make_loss(model, task(head), examine(model, task(head), examples(head, 9), twice=True))
    *inner, outer = (Batch(each.inputs, each.targets) for each in (examples(head, seed) for seed in range(3)))
    batches = MetaBatches(tuple(inner), outer, tuple(inner))
    params = model_params(model)
    noise = {name: torch.randn(tensor.shape, dtype=tensor.dtype) for name, tensor in params.items()}
    params = add_scaled(params, noise, 0.01)  # adapters begin at 0

    oracle = oracles.unrolled_meta_gradient(loss, params, inner, outer, 0.3)

    for estimator, bound in {"exact": 1e-10, "unrolled": 1e-10, "hessian-free": 1e-5}.items():
        method = MethodConfig(num_inner_steps=2, inner_lr=0.3, estimator=estimator)
        found = ESTIMATORS[estimator].build(loss, method)(params, batches).gradient
        assert relative_difference(found, oracle) < bound
    assert loss.traits.math_attention
    assert rank == 0 or num_bytes(params) < 0.3 * sum(8 * each.numel() for each in model.parameters())


def test_what_the_folder_has_is_frozen_and_all_that_is_new_is_trained(folders):
    model = built(folders / "trained", "sequence-classification")

    trained = {name for name in model_params(model) if "lora_" not in name}
    assert trained == {"classifier.weight", "classifier.bias", "bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    kept = transformers.BertForMaskedLM.from_pretrained(folders / "trained").state_dict()
    own = {name.replace(".base_layer", ""): each for name, each in model.named_parameters() if not each.requires_grad}
    assert all(torch.equal(tensor, kept[name].double()) for name, tensor in own.items())


def test_the_frozen_part_comes_from_the_folder_of_each_machine(folders):
    """And depends on neither the seed nor what it draws."""
    named = ModelConfig(name="huggingface:elsewhere/bert", lora_rank=2)
    here = build_model(
        ModelConfig(name=f"huggingface:{folders / 'trained'}", lora_rank=2), task("token-classification"), seed=0
    )

    with exported(frozen=folders / "trained"):
        there = build_model(named, task("token-classification"), seed=5)
    with exported(frozen=folders / "bert"):
        drawn = build_model(named, task("token-classification"), seed=0)

    assert frozen_hash(here) == frozen_hash(there) != frozen_hash(drawn)


def test_the_seed_decides_what_is_drawn(folders):
    one, same = (model_params(built(folders / "bert")) for _ in range(2))

    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())


def test_layers_are_chosen_by_name(folders):
    model = built(folders / "bert", lora_targets="dense", lora_rank=1, lora_alpha=3)

    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in model_params(model) if "lora_" in name}
    assert adapted == {"dense"}
    with pytest.raises(ConfigError, match=r"model.lora-targets='nothing' is refused: .* adapted: .*query"):
        built(folders / "bert", lora_targets="nothing")


@pytest.mark.parametrize(
    ("name", "options", "failure", "message"),
    [
        ("", {}, ConfigError, "lacks its argument; write huggingface:FOLDER"),
        ("bert-base-uncased", {}, ConfigError, "no such folder on this machine. Nothing is downloaded: .*hf download"),
        (".", {}, ConfigError, "has no config.json"),
        ("bert", {"head": "image-classification"}, ModelError, "for model.head=image-classification in .*raised"),
        ("pickled", {}, ModelError, "weights as safetensors .* may run code"),
    ],
)
def test_what_is_no_model_of_this_machine_is_refused(folders, monkeypatch, name, options, failure, message):
    monkeypatch.chdir(folders)
    pickled = folders / "pickled"
    pickled.mkdir(exist_ok=True)
    (pickled / "config.json").write_bytes((folders / "bert" / "config.json").read_bytes())
    (pickled / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(failure, match=message):
        built(name, **options)
