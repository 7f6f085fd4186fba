"""`quadratic`: each client's loss is a quadratic that is known, so that every quantity has a closed form.

f_i(w) = ½ (w - c_i)ᵀ A_i (w - c_i), on the support, validation and test split alike, as half the mean squared error of
a linear model without bias. A split has `DIMENSION` = d examples, the rows of X = √d Q A_i^½ with the targets X c_i;
Q is a random orthogonal matrix, another one for each split, so that no example is in two splits although
1/(2d) ‖X(w - c_i)‖² is the same function. A_i has eigenvalues log-uniform in [0.1, 1] and random axes; c_i is
standard normal. Closed forms: Fallah et al. 2020 for one step, this project's algorithm notes for ν steps.

Losses are exact on whole splits: use `model.name=linear`, `method.batch-size=0` and `model.dtype=float64`. No units, no
licence (made from the run's seed). The fractions of the data section do not apply.
"""

import numpy as np
import torch
from torch import Tensor

from nufed.common.data.dealt_client import client_name
from nufed.common.data.pool import Array, DealtFederation, SourceRequest
from nufed.common.examples import ClientData, Examples, TaskInfo
from nufed.common.rng import NumpyGenerator, numpy_generator

DIMENSION = 6
_TASK = TaskInfo("regression", (DIMENSION,), 1)


def describe(_request: SourceRequest) -> TaskInfo:
    """Return the task."""
    return _TASK


def load(request: SourceRequest) -> DealtFederation:
    """Return clients with d examples in every split; no validation split for new clients, or if its fraction is 0."""

    def make_client(partition_id: int, dtype: torch.dtype) -> ClientData:
        name, group = client_name(partition_id, request.config)
        eigenvalues, axes, center = _problem(request.seed, partition_id)
        root = (axes * np.sqrt(eigenvalues)) @ axes.T

        def split(purpose: str) -> Examples:
            rotation = _orthogonal(numpy_generator(request.seed, "data", "quadratic", partition_id, purpose))
            inputs = np.sqrt(DIMENSION) * rotation @ root
            return Examples(torch.from_numpy(inputs).to(dtype), torch.from_numpy(inputs @ center[:, None]).to(dtype))

        nothing = Examples(torch.zeros(0, DIMENSION, dtype=dtype), torch.zeros(0, 1, dtype=dtype))
        validated = group == "participating" and request.config.validation_fraction > 0
        validation = split("validation") if validated else nothing
        return ClientData(name, group, split("support"), validation, split("test"))

    return DealtFederation(
        _TASK, request.num_total, make_client, identify=lambda index: client_name(index, request.config)
    )


def quadratic_problems(num_clients: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return (A [num_clients, d, d], c [num_clients, d]) of the first clients in partition order, in float64."""
    matrices, centers = [], []
    for partition_id in range(num_clients):
        eigenvalues, axes, center = _problem(seed, partition_id)
        matrices.append(torch.from_numpy((axes * eigenvalues) @ axes.T))
        centers.append(torch.from_numpy(center))
    return torch.stack(matrices), torch.stack(centers)


def _problem(seed: int, partition_id: int) -> tuple[Array, Array, Array]:
    """Return (eigenvalues [d], eigenvectors in columns [d, d], center [d])."""
    rng = numpy_generator(seed, "data", "quadratic", partition_id, "problem")
    eigenvalues = 10.0 ** rng.uniform(-1.0, 0.0, DIMENSION)
    return eigenvalues, _orthogonal(rng), rng.standard_normal(DIMENSION)


def _orthogonal(rng: NumpyGenerator) -> Array:
    """Return a d x d orthogonal matrix, uniformly distributed (Mezzadri 2007: QR with the signs of R taken out)."""
    q, r = np.linalg.qr(rng.standard_normal((DIMENSION, DIMENSION)))
    return q * np.sign(np.diag(r))
