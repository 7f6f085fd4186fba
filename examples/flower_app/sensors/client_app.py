"""The client: descends on the loss after ν fine-tuning steps, and is judged after as many."""

from collections.abc import Mapping
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.func import functional_call

import nufed
from sensors.task import batches, build_model

LOCAL_STEPS, LOCAL_LR = 5, 0.05

app = ClientApp()
model = build_model()


def loss_fn(params: Mapping[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean squared error of the model with these parameters."""
    inputs, targets = batch
    return nn.functional.mse_loss(functional_call(model, dict(params), (inputs,)), targets)


def estimates(message: Message, context: Context, num_steps: int) -> tuple[dict[str, Tensor], float]:
    """Return the parameters after so many meta steps, and the mean loss after fine-tuning."""
    nu, inner_lr = int(context.run_config["num-inner-steps"]), float(context.run_config["inner-lr"])
    params: dict[str, Tensor] = message.content["arrays"].to_torch_state_dict()
    drawn = batches(int(context.node_config["partition-id"]), max(1, num_steps) * (nu + 1))
    losses = []
    for step in range(max(1, num_steps)):
        own = drawn[step * (nu + 1) : (step + 1) * (nu + 1)]
        estimate = nufed.meta_gradient(loss_fn, params, own, inner_lr=inner_lr)
        losses.append(float(estimate.outer_loss))
        if num_steps:
            params = {name: tensor - LOCAL_LR * estimate.gradient[name] for name, tensor in params.items()}
    return params, sum(losses) / len(losses)


def reply(message: Message, loss: float, **records: Any) -> Message:
    """Return an answer with the metrics that Flower's strategies expect."""
    metrics = MetricRecord({"num-examples": 20, "loss": loss})
    return Message(RecordDict({"metrics": metrics, **records}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer with the parameters after the local meta steps."""
    params, loss = estimates(message, context, LOCAL_STEPS)
    return reply(message, loss, arrays=ArrayRecord({name: torch.as_tensor(value) for name, value in params.items()}))


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Answer with the loss after ν steps from the server's parameters."""
    return reply(message, estimates(message, context, 0)[1])
