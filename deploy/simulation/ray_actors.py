"""What runs on the nodes of the engine `ray`: actors that take clients' turns, on data that each node has once.

The federation's arrays lie in Ray's object store, which has one copy on a node, and actors read them where they lie.
"""

import io
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict

from nufed.common.errors import ConfigError, NufedError
from nufed.common.settings import process_settings
from nufed.deploy.flower_runtime.wire import make_message
from nufed.deploy.simulation.actor_turns import ActorTurns, Done
from nufed.deploy.simulation.process_worker import load_client_app

Answer = Done | NufedError


@dataclass(frozen=True)
class Packed:
    """A value whose arrays are beside it, so that Ray's object store holds them as they are.

    Attributes:
        content: the pickled value.
        arrays: what it refers to, in its order.
    """

    content: bytes
    arrays: list[Any]

    @classmethod
    def of(cls, value: Any) -> "Packed":
        """Return a value with the memory of its tensors and arrays apart."""
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Packer(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        return cls(stream.getvalue(), [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers])

    def value(self) -> Any:
        """Return the value, its tensors sharing memory with the arrays; they are not to be written to."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return pickle.loads(self.content, buffers=self.arrays)  # noqa: S301 - packed by the run's own program


class _Packer(cloudpickle.Pickler):  # type: ignore[misc] # cloudpickle is not typed
    """Pickles tensors of the processor as NumPy arrays; functions of notebooks and closures too."""

    def reducer_override(self, value: Any) -> Any:
        """Return how to make a tensor of an array; leave the rest to cloudpickle."""
        if type(value) is torch.Tensor and value.device.type == "cpu" and _as_numpy(value):
            return torch.from_numpy, (value.detach().contiguous().numpy(),)
        return super().reducer_override(value)


def _as_numpy(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and tensor.dtype != torch.bfloat16 and not tensor.requires_grad


@dataclass(frozen=True)
class Setup:
    """What every actor of a run is told first.

    Attributes:
        client_app: `module:name` of the ClientApp.
        variables: environment of the clients.
        given: files by name that data, models and functions given in Python are read from; empty where the actors are
            on the machine of the run.
        together: whether an actor computes the clients that it is given at a time at once.
        data: a packed function without arguments that makes the clients' data known; None where each actor loads them.
    """

    client_app: str
    variables: Mapping[str, str] = field(default_factory=dict)
    given: Mapping[str, bytes] = field(default_factory=dict)
    data: Packed | None = None
    together: bool = False


class ClientActor:
    """Takes turns of clients in a process of a node; holds what takes them."""

    def __init__(self) -> None:
        """Do nothing yet: Ray would wrap what is raised here."""
        self._turns: ActorTurns | None = None

    def prepare(self, setup: Setup) -> NufedError | None:
        """Make ready to take turns; return what is wrong, with the node's name, since Ray would rewrite exceptions."""
        os.environ.update(setup.variables)
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.append(here)
        try:
            if setup.given:
                os.environ["NUFED_GIVEN"] = str(_written(setup.given))
            _check_device(process_settings().device)
            self._turns = ActorTurns(load_client_app(setup.client_app), together=setup.together)
            if setup.data is not None:
                setup.data.value()()
        except NufedError as error:
            return _on_this_node(error)
        except ImportError as error:
            return _on_this_node(NufedError(f"Expected to import what the run needs, but {error}. Install it there."))
        return None

    def take_turns(self, letters: Sequence["Letter"], contexts: Sequence[Context], *shared: ArrayRecord) -> Answer:
        """Return what became of these clients' turns, or the app's own explanation of what is wrong.

        Args:
            letters: a message for each client.
            contexts: of each client.
            shared: arrays that several clients are sent.
        """
        if self._turns is None:
            raise AssertionError("an actor is prepared before its first turn")
        messages = [letter.message(shared) for letter in letters]
        try:
            return self._turns.do(list(zip(messages, contexts, strict=True)))
        except NufedError as error:
            return _on_this_node(error)


@dataclass(frozen=True)
class Letter:
    """A message on its way to an actor.

    Attributes:
        metadata: the message's.
        records: by name; a number stands for one of the arrays that travel apart from it.
    """

    metadata: Any
    records: Sequence[tuple[str, Any]]

    def message(self, shared: Sequence[ArrayRecord]) -> Message:
        """Return the message."""
        content = RecordDict({name: shared[each] if isinstance(each, int) else each for name, each in self.records})
        return make_message(self.metadata, content)


def _check_device(device: str) -> None:
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    kind, _, index = device.partition(":")
    if device != "cpu" and (kind != "cuda" or int(index or 0) >= num_gpus):
        raise ConfigError(
            f"Expected the device {device!r} where a client computes, but torch finds {num_gpus} GPUs there. Give each "
            "client a GPU with --gpus-per-client, or take --device cpu."
        )


def _written(files: Mapping[str, bytes]) -> Path:
    """Write files into a folder of this node that Ray removes after the run, if another actor has not done so."""
    folder = Path.cwd() / ".given"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        if not (folder / name).exists():
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
                file.write(content)
            Path(file.name).replace(folder / name)
    return folder


def _on_this_node(error: NufedError) -> NufedError:
    """Return the error, told where it was raised if that is another machine than the user's."""
    import ray

    context = ray.get_runtime_context()
    if context.runtime_env.get("working_dir"):  # of a running cluster alone
        host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        error.args = (f"{error} (On node {host} of the Ray cluster, which reads its own files.)",)
    return error
