"""The head is the last layer that runs, wherever it was registered."""

import pytest
import torch
from torch import nn

from nufed.client.workplace import workplace
from nufed.common.config import RunConfig
from nufed.common.errors import ModelError
from nufed.common.meta.objective import fine_tune
from nufed.common.models.heads import find_head, resolve_head
from nufed.common.params import model_params
from nufed.common.settings import Settings

INPUTS = torch.linspace(-1, 1, 10).reshape(2, 5)


class HeadFirst(nn.Module):
    """Registers its layers in the reverse order of their execution."""

    def __init__(self):
        super().__init__()
        self.out, self.middle, self.first = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(5, 8)

    def features(self, inputs):
        return torch.relu(self.middle(torch.relu(self.first(inputs))))

    def forward(self, inputs):
        return torch.log_softmax(self.out(self.features(inputs)), -1)


class Wrapped(nn.Module):
    """A frozen encoder in a wrapper, then a head of two layers, with one number more in the wrapper where asked."""

    def __init__(self, *, temperature=False):
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU()).requires_grad_(requires_grad=False)
        self.temperature = nn.Parameter(torch.ones(())) if temperature else 1.0

    def forward(self, inputs):
        with torch.no_grad():
            features = self.encoder(inputs)
        return self.classifier(features) / self.temperature


class Together(HeadFirst):
    def forward(self, inputs):
        return self.out(self.features(inputs)) + self.middle(torch.relu(self.first(inputs)))[:, :3]


class Twice(HeadFirst):
    def forward(self, inputs):
        return self.out(torch.relu(self.first(inputs))) + self.out(self.features(inputs))


class ByFunction(HeadFirst):
    def forward(self, inputs):
        return nn.functional.linear(self.features(inputs), self.out.weight, self.out.bias)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.middle, self.out = nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, tokens):
        return self.out(torch.relu(self.middle(self.words(tokens).mean(1))))


def weight_norm():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)))


@pytest.mark.parametrize(
    ("model", "head"),
    [
        (HeadFirst(), "out.weight,out.bias"),
        (Wrapped(), "classifier.2.weight,classifier.2.bias"),
        (weight_norm(), "2.bias,2.parametrizations.weight.original0,2.parametrizations.weight.original1"),
        (nn.Linear(5, 3), "weight,bias"),
    ],
    ids=["registered-first", "in-a-wrapper", "computed-weight", "alone"],
)
def test_the_last_layer_that_runs_is_found(model, head):
    flags = [tensor.requires_grad for tensor in model.parameters()]

    assert find_head(model, INPUTS) == head

    assert [tensor.requires_grad for tensor in model.parameters()] == flags
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Together(), r"'out' and 'middle' make its output together.*method\.head=\"out,middle\""),
        (Wrapped(temperature=True), r"'temperature' and 'classifier\.2' make its output together"),
        (ByFunction(), r"'out' and 'middle' make its output together"),
        (Twice(), r"'out' is called 2 times in Twice, so that it is part of the body too"),
        (Tied(), r"'out' shares 'out\.weight' with the body"),
    ],
    ids=["two", "a-number", "by-function", "used-twice", "tied"],
)
def test_a_head_that_is_not_one_layer_of_its_own_is_asked_for(model, told):
    inputs = torch.zeros(2, 3, dtype=torch.int64) if isinstance(model, Tied) else INPUTS

    with pytest.raises(ModelError, match=told):
        find_head(model, inputs)


def test_a_user_names_layers_and_parameters():
    assert resolve_head(Wrapped(), "classifier") == ",".join(
        f"classifier.{number}.{kind}" for number in (0, 2) for kind in ("weight", "bias")
    )
    assert resolve_head(Wrapped(temperature=True), "temperature, classifier.2") == (
        "temperature,classifier.2.weight,classifier.2.bias"
    )
    assert resolve_head(Tied(), "out") == "words.weight"
    with pytest.raises(ModelError, match=r"method\.head, but it has no 'clasifier'; it has .*'classifier\.2'"):
        resolve_head(Wrapped(), "clasifier")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_heads_of_hugging_face_models_and_of_adapters():
    """The classifier, a score of each token of which one is taken, and a layer with its adapter as one."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(intermediate_size=8, **sizes)).eval()
    gpt = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            vocab_size=20, n_embd=8, n_layer=1, n_head=2, num_labels=3, pad_token_id=0, bos_token_id=1, eos_token_id=1
        )
    )
    inputs = {"input_ids": torch.full((2, 6), 3), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}

    found = [find_head(model, inputs) for model in (bert, gpt.eval())]
    adapted = peft.get_peft_model(bert, peft.LoraConfig(r=2, target_modules=["query", "classifier"])).eval()

    assert found == ["classifier.weight,classifier.bias", "score.weight"]
    assert {name.rpartition("classifier.")[2] for name in find_head(adapted, inputs).split(",")} == {
        *("base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
    }


def build_head_first(config, task):
    """Return a model for digits whose head is registered first."""
    model = HeadFirst()
    model.first, model.out = nn.Linear(64, 8), nn.Linear(8, task.num_outputs)
    return nn.Sequential(nn.Flatten(), model)


def test_anil_adapts_the_head_of_a_model_that_registers_it_first():
    config = RunConfig().updated(
        {
            "model.name": "tests.common.models.test_heads:build_head_first",
            "method.adapted-part": "head",
            "data.num-clients": 4,
            "data.num-new-clients": 1,
        }
    )
    place = workplace(config.flat(), {"partition-id": 0, "num-partitions": 5}, Settings())
    params = model_params(place.model)

    *_, after = fine_tune(place.adaptation_loss, params, [place.data.support.as_batch()], 0.1, place.config.method)

    assert {name for name in params if not torch.equal(params[name], after[name])} == {"1.out.weight", "1.out.bias"}
