"""Seeded random streams: one per purpose, the same on every machine and in any order of execution.

Nothing outside this module touches a global generator.
"""

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

NumpyGenerator = np.random.Generator


def derive_seed(run_seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on the run's seed and on what the stream is for.

    Examples:
        >>> derive_seed(0, "client", "client-003", "round", 7, "step", 0)
        5381554818276651805
    """
    text = "/".join([str(run_seed), *map(str, purpose)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(run_seed: int, *purpose: str | int) -> NumpyGenerator:
    """Return an independent NumPy generator for one purpose."""
    return np.random.Generator(np.random.Philox(derive_seed(run_seed, *purpose)))


def torch_generator(run_seed: int, *purpose: str | int) -> torch.Generator:
    """Return an independent CPU torch generator for one purpose."""
    return torch.Generator().manual_seed(derive_seed(run_seed, *purpose))


GLOBAL_STATE = threading.RLock()
"""Held while a global generator is seeded, or a model has other parameters than its own: threads share both."""


@contextmanager
def seeded_torch(seed: int, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Seed torch's default generators inside the block and put them back after it; other threads wait.

    For code that offers no generator argument: parameter initialization and dropout masks.
    """
    gpus = [device for device in devices if device.type == "cuda"]
    with GLOBAL_STATE, torch.random.fork_rng(devices=gpus):
        # torch.manual_seed also seeds every kind of device that there might be, which takes 300 times as long.
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield


@contextmanager
def seeded_generators(seed: int, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Seed the global generators of torch, NumPy and Python inside the block and put them back after it.

    For the code of others, which may draw from any of them. What torch draws is what it draws in `seeded_torch`.
    """
    with seeded_torch(seed, devices):
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - it is the global one that others draw from
        np.random.seed(seed % 2**32)  # noqa: NPY002 - it is the global one that others draw from
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002 - it is the global one that others draw from
            random.setstate(python_state)


def generator_states(device: torch.device) -> dict[str, bytes]:
    """Return the states of the global generators of `torch` (also the device's own), `numpy` and `python`."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
    _, keys, *position = np.random.get_state(legacy=True)  # noqa: NPY002 - it is the global one that others draw from
    return {
        "torch": b"".join(state.numpy().tobytes() for state in states),
        "numpy": np.asarray(keys).tobytes() + repr(position).encode(),
        "python": repr(random.getstate()).encode(),
    }


def state_of(generator: object) -> str | None:
    """Return the state of a generator of torch's, NumPy's or Python's; None of anything else."""
    if isinstance(generator, torch.Generator):
        return repr(generator.get_state().tolist())
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if isinstance(generator, np.random.RandomState):
        return repr([np.asarray(part).tolist() for part in generator.get_state(legacy=True)])
    if isinstance(generator, random.Random) and not isinstance(generator, random.SystemRandom):
        return repr(generator.getstate())
    return None
