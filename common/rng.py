"""Seeded random streams: one per purpose, the same on every machine and in any order of execution.

Nothing outside this module touches a global generator.
"""

import hashlib
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


@contextmanager
def seeded_torch(seed: int, devices: tuple[torch.device, ...] = ()) -> Iterator[None]:
    """Seed torch's default generators inside the block and put them back after it.

    For code that offers no generator argument: parameter initialization and dropout masks.
    """
    with torch.random.fork_rng(devices=[d for d in devices if d.type == "cuda"]):
        torch.manual_seed(seed)
        yield
