"""A small problem for each task and for each kind of model, with its loss written once more in torch's own words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name torch's own documentation uses
from torch import Tensor, nn

from nufed.common.examples import Examples, TaskInfo, TensorSpec
from nufed.common.rng import seeded_torch, torch_generator

IGNORED = -100
WIDTH, LENGTH, VOCABULARY = 5, 6, 9


@dataclass(frozen=True)
class Problem:
    """A model on a task.

    Attributes:
        info: the task.
        model: makes the module.
        examples: (number, generator) -> inputs and targets.
        reference: (outputs, targets) -> each example's loss, independent of the code under test.
        is_mapped: whether torch.vmap can map the model's loss over clients.
    """

    info: TaskInfo
    model: Callable[[], nn.Module]
    examples: Callable[[int, torch.Generator], tuple[Any, Any]]
    reference: Callable[[Tensor, Any], Tensor]
    is_mapped: bool = field(default=True)

    def build(self) -> nn.Module:
        with seeded_torch(3):
            return self.model().double()

    def draw(self, count: int, seed: int = 0) -> Examples:
        return Examples(*self.examples(count, torch_generator(seed, "test", "tasks")))


def floats(*shape):
    return lambda count, generator: torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def integers(high, *shape):
    return lambda count, generator: torch.randint(0, high, (count, *shape), generator=generator)


def both(inputs, targets):
    return lambda count, generator: (inputs(count, generator), targets(count, generator))


def dense(outputs):
    return lambda: nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, outputs))


def unmasked(targets):
    """Return targets of which about a third is padding; the first position of each example always counts."""

    def draw(count, generator):
        values = targets(count, generator)
        hidden = torch.rand(values.shape, generator=generator) < 0.3
        hidden.reshape(count, -1)[:, 0] = False
        return values.masked_fill(hidden, IGNORED)

    return draw


def token_losses(outputs, targets):
    each = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (targets != IGNORED).sum(1)
    return each.reshape(targets.shape).sum(1) / counts


def mask_losses(outputs, targets, weight=1.0):
    found = []
    for scores, mask in zip(outputs, targets, strict=True):
        kept = mask != IGNORED
        shares = scores.softmax(0)
        dice = [
            (2 * shares[k][kept & (mask == k)].sum() + 1) / (shares[k][kept].sum() + (kept & (mask == k)).sum() + 1)
            for k in range(len(scores))
        ]
        entropy = F.cross_entropy(scores[None], mask[None], ignore_index=IGNORED)
        found.append(entropy + weight * (1 - sum(dice) / len(dice)))
    return torch.stack(found)


def with_options(kind, outputs, **options):
    pairs = tuple(sorted((name.replace("_", "-"), value) for name, value in options.items()))
    return TaskInfo(kind, (WIDTH,), outputs, options=pairs)


values = both(floats(WIDTH), floats(2))
classes = both(floats(WIDTH), integers(3))
TASK_PROBLEMS = {
    "classification": Problem(
        TaskInfo("classification", (WIDTH,), 3),
        dense(3),
        classes,
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
    ),
    "label smoothing": Problem(
        with_options("classification", 3, label_smoothing=0.2),
        dense(3),
        classes,
        lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.2),
    ),
    "multi-label": Problem(
        TaskInfo("multi-label", (WIDTH,), 4),
        dense(4),
        both(floats(WIDTH), lambda n, g: integers(2, 4)(n, g).double()),
        lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1),
    ),
    "regression": Problem(
        TaskInfo("regression", (WIDTH,), 2),
        dense(2),
        values,
        lambda outputs, targets: 0.5 * F.mse_loss(outputs, targets, reduction="none").sum(1),
    ),
    "huber": Problem(
        with_options("regression", 2, loss="huber", huber_delta=0.7),
        dense(2),
        values,
        lambda outputs, targets: F.huber_loss(outputs, targets, reduction="none", delta=0.7).sum(1),
    ),
    "mae": Problem(
        with_options("regression", 2, loss="mae"),
        dense(2),
        values,
        lambda outputs, targets: F.l1_loss(outputs, targets, reduction="none").sum(1),
    ),
    "counts": Problem(
        TaskInfo("counts", (WIDTH,), 2),
        dense(2),
        both(floats(WIDTH), lambda n, g: integers(5, 2)(n, g).double()),
        lambda outputs, targets: (
            F.poisson_nll_loss(outputs, targets, reduction="none") - targets + torch.xlogy(targets, targets)
        ).mean(1),
    ),
    "segmentation": Problem(
        TaskInfo("segmentation", (1, 4, 4), 3, target_shape=(4, 4)),
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1)),
        both(floats(1, 4, 4), unmasked(integers(3, 4, 4))),
        mask_losses,
    ),
    "tokens": Problem(
        TaskInfo("tokens", (LENGTH,), 4, (), TensorSpec((LENGTH,), "integer"), (LENGTH,)),
        lambda: nn.Sequential(nn.Embedding(VOCABULARY, 5), nn.Tanh(), nn.Linear(5, 4)),
        both(integers(VOCABULARY, LENGTH), unmasked(integers(4, LENGTH))),
        token_losses,
    ),
}


# Models


class Encoder(nn.Module):
    """A transformer's encoder over ids with a padding mask, read at its first position."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids), src_key_padding_mask=padding)[:, 0])


class Recurrent(nn.Module):
    """A GRU over series of different lengths, read where each ends."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.head = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, series: Tensor, mask: Tensor) -> Tensor:
        states, _ = self.states(series)
        last = mask.long().sum(1) - 1
        return self.head(states[torch.arange(len(series)), last])


class Pair(nn.Module):
    """An embedding of a code beside numbers, as a tuple of inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4 + WIDTH, 3)

    def forward(self, code: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.codes(code), numbers], 1).tanh())


TINY = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
DROPS_NOTHING = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def visual():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**TINY, **DROPS_NOTHING, image_size=4, patch_size=2, num_channels=1, num_labels=3)
    return ViTForImageClassification(config)


def bert():
    from transformers import BertConfig, BertForTokenClassification

    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "num_labels": 4}
    return BertForTokenClassification(BertConfig(**TINY, **DROPS_NOTHING, **sizes))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 8, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))


def mask(count, generator):
    lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
    return torch.arange(LENGTH) < lengths


def texts(count, generator):
    shown = mask(count, generator)
    return {"attention_mask": shown.long(), "input_ids": integers(VOCABULARY, LENGTH)(count, generator)}


def next_tokens(count, generator):
    given = texts(count, generator)
    targets = given["input_ids"].roll(-1, 1).masked_fill(given["attention_mask"].roll(-1, 1) == 0, IGNORED)
    targets[:, -1] = IGNORED
    return given, targets


def spec(**forms):
    return tuple(sorted((name, TensorSpec(shape, dtype)) for name, (shape, dtype) in forms.items()))


def of_classes(input_spec):
    return TaskInfo("classification", (), 3, input_spec=input_spec)


cross_entropy = TASK_PROBLEMS["classification"].reference
TEXT = spec(attention_mask=((LENGTH,), "integer"), input_ids=((LENGTH,), "integer"))
MODEL_PROBLEMS = {
    "encoder": Problem(
        of_classes(spec(ids=((LENGTH,), "integer"), padding=((LENGTH,), "boolean"))),
        Encoder,
        lambda n, g: (
            {"ids": integers(VOCABULARY, LENGTH)(n, g), "padding": ~mask(n, g)},
            integers(3)(n, g),
        ),
        cross_entropy,
        is_mapped=False,
    ),
    "GRU with a mask": Problem(
        of_classes(spec(mask=((LENGTH,), "boolean"), series=((LENGTH, 3), "float"))),
        Recurrent,
        lambda n, g: ({"mask": mask(n, g), "series": floats(LENGTH, 3)(n, g)}, integers(3)(n, g)),
        cross_entropy,
        is_mapped=False,
    ),
    "embedding": Problem(
        of_classes((TensorSpec((), "integer"), TensorSpec((WIDTH,)))),
        Pair,
        lambda n, g: ((integers(VOCABULARY)(n, g), floats(WIDTH)(n, g)), integers(3)(n, g)),
        cross_entropy,
    ),
    "ViT": Problem(
        TaskInfo("classification", (1, 4, 4), 3),
        visual,
        both(floats(1, 4, 4), integers(3)),
        cross_entropy,
        is_mapped=False,
    ),
    "BERT": Problem(
        TaskInfo("tokens", (), 4, (), TEXT, (LENGTH,)),
        bert,
        both(texts, unmasked(integers(4, LENGTH))),
        token_losses,
        is_mapped=False,
    ),
    "GPT-2": Problem(
        TaskInfo("tokens", (), VOCABULARY, (), TEXT, (LENGTH,)), gpt2, next_tokens, token_losses, is_mapped=False
    ),
}
PROBLEMS = {**TASK_PROBLEMS, **MODEL_PROBLEMS}
