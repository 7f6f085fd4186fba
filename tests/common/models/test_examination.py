"""The examination before round 1: what is accepted, what is refused with which words, and what was found out."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from nufed.common.errors import ModelError
from nufed.common.examples import Examples, TaskInfo
from nufed.common.models import examine
from nufed.common.params import model_params
from nufed.common.rng import seeded_torch, torch_generator

SHAPE = (6, 8)
TASK = TaskInfo("classification", SHAPE, 5, tuple("abcde"))


def examples(dtype=torch.float32, scale=1.0):
    inputs = scale * torch.randn(10, *SHAPE, generator=torch_generator(3, "test"), dtype=torch.float64)
    return Examples(inputs.to(dtype), torch.arange(10) % 5)


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs)


class InTraining(nn.Module):
    """A function that is applied in training mode alone."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, inputs):
        return self.function(inputs) if self.training else inputs


def around(*layers):
    """Return a network around layers of 32 units."""
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 32), *layers, nn.Linear(32, 5))


def around_function(function):
    return around(Called(function))


class Sequence(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(16, 5)

    def forward(self, inputs):
        return self.head(self.layer(inputs)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, **{"dropout": 0.0, **options})
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.head(self.layers(inputs).mean(1))


class Attention(nn.Module):
    def __init__(self, dropout=0.0):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True, dropout=dropout), nn.Linear(8, 5)

    def forward(self, inputs):
        return self.head(self.attention(inputs, inputs, inputs, need_weights=False)[0].mean(1))


def words(inputs):
    return (3 * inputs[:, :, 0].abs()).long().clamp(0, 15)


class Words(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer, self.head = layer, nn.Linear(8, 5)

    def forward(self, inputs):
        found = self.layer(words(inputs))
        return self.head(found if found.ndim == 2 else torch.tanh(found).mean(1))


class Scaled(nn.Module):
    """Has parameters without dimensions, and a normalization in float32 whatever the model's precision."""

    def __init__(self, function=torch.tanh):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))
        self.function = function
        self.head = nn.Linear(48, 5)

    def forward(self, inputs):
        single = inputs.flatten(1).float()
        normal = single * torch.rsqrt(single.square().mean(1, keepdim=True) + 1e-6)
        return self.head(self.function(normal.to(inputs) * self.scale + self.shift))


class Square(torch.autograd.Function):
    """x², its derivative by operations on the saved tensor."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.save_for_backward(inputs)
        return inputs.square()

    @staticmethod
    def backward(ctx, above):
        return 2 * ctx.saved_tensors[0] * above


class SquareOfNumpy(torch.autograd.Function):
    """x², its derivative from an array that remembers no graph."""

    @staticmethod
    def forward(ctx, inputs):
        ctx.array = inputs.detach().numpy()
        return inputs.square()

    @staticmethod
    def backward(ctx, above):
        return 2 * torch.from_numpy(ctx.array) * above


class SquareOnce(Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, above):
        return 2 * ctx.saved_tensors[0] * above


class NoisyGradient(Square):
    @staticmethod
    def backward(ctx, above):
        return 2 * ctx.saved_tensors[0] * above * (1 + 0.1 * torch.rand_like(above))


class Checkpointed(nn.Module):
    def __init__(self, use_reentrant=False):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(48, 32), nn.Tanh(), nn.Linear(32, 32)), nn.Linear(32, 5)
        self.use_reentrant = use_reentrant

    def forward(self, inputs):
        return self.head(checkpoint(self.body, inputs.flatten(1), use_reentrant=self.use_reentrant))


class Remembering(nn.Module):
    """Keeps what it made of its weights: in `when`, `always` or in `evaluation`."""

    def __init__(self, when):
        super().__init__()
        self.weight, self.when, self.kept = nn.Parameter(torch.full((5, 48), 0.1)), when, None

    def forward(self, inputs):
        if self.when == "evaluation" and self.training:
            return F.linear(inputs.flatten(1), 2 * self.weight)
        self.kept = 2 * self.weight if self.kept is None else self.kept
        return F.linear(inputs.flatten(1), self.kept)


class Elsewhere(nn.Module):
    """Reads its weight from a list."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((5, 48), 0.1))
        self.weights = [self.weight]

    def forward(self, inputs):
        return F.linear(inputs.flatten(1), self.weights[0])


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.calls = nn.Linear(48, 5), 0

    def forward(self, inputs):
        self.calls += 1
        return self.head(inputs.flatten(1)) / self.calls


class Normalized(nn.Module):
    """Changes its own weight: `change` is called with it."""

    def __init__(self, change):
        super().__init__()
        self.head, self.change = nn.Linear(48, 5), change

    def forward(self, inputs):
        self.change(self.head.weight)
        return self.head(inputs.flatten(1))


@torch.no_grad()
def divided_in_place(weight):
    weight.div_(weight.norm())


def given_other_data(weight):
    weight.data = weight.data.clamp(-0.05, 0.05)


class Seldom(nn.Module):
    """Draws from a generator of its own what hardly ever makes a difference."""

    def __init__(self, generator):
        super().__init__()
        self.head, self.generator = nn.Linear(48, 5), generator

    def forward(self, inputs):
        draw = getattr(self.generator, "random", None) or (lambda: torch.rand((), generator=self.generator))
        return self.head(inputs.flatten(1)) * (1 + (draw() < 1e-9))


def halved_in_place(inputs):
    inputs /= 2
    return inputs


def skips(inputs):
    return inputs / 2 if random.random() < 0.5 else inputs


def noise_of_numpy(inputs):
    return inputs + torch.from_numpy(np.random.standard_normal(inputs.shape)).to(inputs)  # noqa: NPY002 - so too


def noise_from(generator):
    return lambda inputs: inputs + torch.randn(inputs.shape, generator=generator).to(inputs)


def noise_from_numpy(generator):
    return lambda inputs: inputs + torch.from_numpy(generator.random(inputs.shape)).to(inputs)


def pooled(pool, size):
    return nn.Sequential(nn.Conv1d(6, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), pool, nn.Flatten(), size)


ACTIVATIONS = [
    *(nn.ELU, nn.GELU, nn.SiLU, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.LeakyReLU, nn.PReLU, nn.SELU, nn.CELU),
    *(nn.Mish, nn.ReLU6, nn.Hardtanh, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.RReLU),
]
ACCEPTED = {
    **{activation.__name__: (lambda activation=activation: around(activation())) for activation in ACTIVATIONS},
    "GRU": lambda: Sequence(nn.GRU(8, 16, batch_first=True)),
    "LSTM": lambda: Sequence(nn.LSTM(8, 16, batch_first=True)),
    "LSTM both ways": lambda: Sequence(nn.LSTM(8, 8, batch_first=True, bidirectional=True)),
    "RNN with relu": lambda: Sequence(nn.RNN(8, 16, batch_first=True, nonlinearity="relu")),
    "encoder": Encoder,
    "encoder, norm first": lambda: Encoder(norm_first=True, activation="gelu"),
    "attention": Attention,
    "embedding": lambda: Words(nn.Embedding(16, 8)),
    "embedding with padding": lambda: Words(nn.Embedding(16, 8, padding_idx=0)),
    "functional relu": lambda: around_function(F.relu),
    "functional clamp": lambda: around_function(lambda units: units.clamp(min=0)),
    "sort": lambda: around_function(lambda units: units.sort(1)[0]),
    "normalize": lambda: around_function(F.normalize),
    "softmax held to its maximum": lambda: around_function(lambda x: (x - x.amax(1, keepdim=True).detach()).softmax(1)),
    "own function": lambda: around_function(Square.apply),
    "fft": lambda: around_function(lambda units: torch.fft.fft(units).abs()),
    "0-d and float32 inside": Scaled,
    "float32 inside, relu": lambda: Scaled(F.relu),
    "layer norm": lambda: around(nn.LayerNorm(32)),
    "batch norm of the batch": lambda: around(nn.BatchNorm1d(32, track_running_stats=False), nn.ReLU()),
    "orthogonal": lambda: around(parametrizations.orthogonal(nn.Linear(32, 32))),
    "max pool": lambda: pooled(nn.MaxPool1d(2), nn.Linear(64, 5)),
    "deep": lambda: around(*[layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.Tanh())]),
}


def build(make, dtype=torch.float32):
    with seeded_torch(1):
        return make().to(dtype)


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_differentiated_rightly_is_accepted_and_left_as_it_was(name):
    model = build(ACCEPTED[name])
    before, generator = model_params(model), torch.get_rng_state()

    examine(model.train(), TASK, examples(), twice=True)
    examine(model.eval(), TASK, examples())

    assert all(torch.equal(tensor, before[key]) for key, tensor in model.named_parameters())
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float64, 1.0), (torch.float32, 100.0), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", ["ReLU", "GRU", "encoder", "0-d and float32 inside", "max pool"])
def test_precision_and_scale_do_not_matter(name, dtype, scale):
    examine(build(ACCEPTED[name], dtype).train(), TASK, examples(dtype, scale), twice=True)


REFUSED = {
    "checkpoint": (Checkpointed, r"gradients at the parameters that are given, but the model itself \(Checkpointed\)"),
    "weights elsewhere": (Elsewhere, r"the model itself \(Elsewhere\) computes with the module's own"),
    "remembered": (lambda: Remembering("always"), r"on 'weight' they do in the first call alone; keep nothing"),
    "in place": (lambda: nn.Sequential(Called(halved_in_place), around()), r"'0' \(Called\) changes them in place"),
    "in place by a layer": (lambda: nn.Sequential(nn.ReLU(inplace=True), around()), r"'0' \(ReLU\) changes them"),
    "weight in place": (lambda: Normalized(divided_in_place), r"'head.weight' of 'head' \(Linear\) changes in the"),
    "other data": (lambda: Normalized(given_other_data), r"parameters that stay as they are, but 'head.weight'"),
    "renormalized embedding": (
        lambda: Words(nn.Embedding(16, 8, max_norm=100.0)),
        r"'layer.weight' of 'layer' \(Embedding\) changes .* leave max_norm out",
    ),
    "sparse": (lambda: Words(nn.Embedding(16, 8, sparse=True)), r"'layer' \(Embedding\) is sparse; set sparse=False"),
    **{
        f"seldom drawn from {type(each).__module__}": (
            lambda each=each: Seldom(each),
            r"the model itself \(Seldom\) draws from the generator 'generator' that it keeps",
        )
        for each in (torch.Generator(), np.random.default_rng(0), random.Random(0))
    },
    "own generator": (
        lambda: around_function(noise_from(torch.Generator())),
        r"equal outputs and gradients .* '2' \(Called\) differ; draw random numbers .* global generators",
    ),
    "own numpy generator": (
        lambda: around_function(noise_from_numpy(np.random.default_rng(0))),
        r"those of '2' \(Called\) differ",
    ),
    "counting": (Counting, r"those of the model itself \(Counting\) differ; .* keep nothing"),
    "noisy gradient": (lambda: around_function(NoisyGradient.apply), r"equal outputs and gradients"),
    "infinite loss": (
        lambda: around_function(lambda x: x / 0.0),
        r"a finite loss before training, .* scale the inputs",
    ),
    "not a number": (
        lambda: around_function(lambda x: x + (x * 0).sum(1, keepdim=True).sqrt()),
        r"a finite gradient before training",
    ),
}
REFUSED_TWICE = {
    "saved as numpy": (lambda: around_function(SquareOfNumpy.apply), r"second derivatives .* those of '2' \(Called\)"),
    "once": (lambda: around_function(SquareOnce.apply), r"'2' \(Called\)"),
    "detached": (
        lambda: around_function(lambda x: x / x.detach().norm(dim=1, keepdim=True)),
        r"those of '2' \(Called\) do not\. .* detach\(\) hides .* or choose method.estimator=hessian-free",
    ),
    "straight through": (lambda: around_function(lambda x: x + (x.round() - x).detach()), r"'2' \(Called\) do not"),
    "embedding bag": (
        lambda: Words(nn.EmbeddingBag(16, 8)),
        r"'layer' \(EmbeddingBag\) cannot .* use torch.nn.Embedding",
    ),
    "hardsigmoid": (lambda: around(nn.Hardsigmoid()), r"'2' \(Hardsigmoid\) cannot .* use torch.nn.Sigmoid"),
    "norm at 0": (
        lambda: around_function(lambda x: x + (x * 0).norm(dim=1, keepdim=True)),
        r"finite second derivatives before training",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_whose_gradients_are_others_is_refused_by_module_with_a_way_out(name):
    make, message = REFUSED[name]

    with pytest.raises(ModelError, match=message):
        examine(build(make).train(), TASK, examples(), twice=False)


@pytest.mark.parametrize("name", REFUSED_TWICE)
def test_what_cannot_be_differentiated_twice_is_refused_where_the_estimator_does_so(name):
    make, message = REFUSED_TWICE[name]

    examine(build(make).train(), TASK, examples(), twice=False)
    with pytest.raises(ModelError, match=message):
        examine(build(make).train(), TASK, examples(), twice=True)


def test_what_is_remembered_in_evaluation_mode_is_refused_there():
    model = build(lambda: Remembering("evaluation"))

    examine(model.train(), TASK, examples(), twice=True)
    with pytest.raises(ModelError, match=r"on 'weight' they do in the first call alone; keep nothing"):
        examine(model.eval(), TASK, examples())


@pytest.mark.parametrize("wrapped", [parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weight_norm_is_refused_where_torch_differentiates_it_wrongly(wrapped):
    """Its fused backward pass on a CPU loses second-order terms; the same formula in plain operations does not."""
    model = build(lambda: around(wrapped(nn.Linear(32, 32)), nn.Tanh()))

    with pytest.raises(ModelError, match="weight_norm is wrong"):
        examine(model.train(), TASK, examples(), twice=True)


@pytest.mark.parametrize(
    ("make", "draws", "in_evaluation"),
    [
        (lambda: around(nn.Tanh()), "nothing", "nothing"),
        (lambda: around(nn.Tanh(), nn.Dropout(0.5)), "torch", "nothing"),
        (lambda: Sequence(nn.LSTM(8, 16, 2, batch_first=True, dropout=0.3)), "torch", "nothing"),
        (lambda: Attention(dropout=0.2), "torch", "nothing"),
        (lambda: Encoder(dropout=0.1), "torch", "nothing"),
        (lambda: around(nn.RReLU()), "torch", "nothing"),
        (lambda: around_function(lambda x: F.dropout(x, 0.4)), "torch", "torch"),
        (lambda: around(InTraining(lambda x: x + torch.randn_like(x))), "torch", "nothing"),
        (lambda: around(InTraining(noise_of_numpy)), "anything", "nothing"),
        (lambda: around(InTraining(skips)), "anything", "nothing"),
    ],
)
def test_what_a_model_draws_from_is_seen_whatever_draws(make, draws, in_evaluation):
    model = build(make)

    found = examine(model.train(), TASK, examples(), twice=True), examine(model.eval(), TASK, examples())

    assert [traits.draws for traits in found] == [draws, in_evaluation]


@pytest.mark.parametrize(
    ("make", "kinks"),
    [
        (lambda: around_function(F.relu), ("relu",)),
        (lambda: around_function(lambda x: F.max_pool1d(x.relu_(), 2).repeat(1, 2)), ("max_pool", "relu")),
        (lambda: around_function(lambda x: x.clamp(min=0)), ("clamp",)),
        (lambda: around_function(F.normalize), ()),  # clamps a norm at 1e-12, which never happens
        (Encoder, ("relu",)),
        (lambda: Encoder(activation="gelu"), ()),
    ],
)
def test_kinks_of_functions_are_seen(make, kinks):
    assert examine(build(make).train(), TASK, examples()).kinks == kinks


def test_only_what_depends_on_one_example_alone_is_evaluated_in_parts():
    alone, mixing = (
        examine(build(make).eval(), TASK, examples())
        for make in (lambda: around(nn.LayerNorm(32)), lambda: around(nn.BatchNorm1d(32, track_running_stats=False)))
    )

    assert alone.most_rows > 10_000
    assert mixing.most_rows is None


@pytest.mark.parametrize(
    "words", ["cannot take {}", "mat1 and mat2 {}", "derivative for {}", "does not require grad {}"]
)
def test_nothing_of_the_examples_is_told(words):
    """Not even by whoever words an error as torch does."""
    secret = 987654.25
    given = Examples(torch.full((4, *SHAPE), secret), torch.zeros(4, dtype=torch.int64))

    class SecretError(Exception):
        pass

    def quote(inputs):
        raise (SecretError if words.startswith("cannot") else RuntimeError)(words.format(inputs.max()))

    with pytest.raises(ModelError, match=r"raised (RuntimeError|an exception of its own code)") as caught:
        examine(build(lambda: nn.Sequential(Called(quote), around())), TASK, given)

    assert "98765" not in str(caught.value)
    assert "Secret" not in str(caught.value)
