"""Where examples come from and how they are dealt to clients.

| `data.source` | what it is | inputs | licence |
|---|---|---|---|
| `digits` | handwritten digits of 13 writers, with scikit-learn | [1, 8, 8] in [0, 1] | CC BY 4.0 |
| `mnist` | handwritten digits | [1, 28, 28] in [0, 1] | CC BY-SA 3.0 |
| `fashion-mnist` | articles of clothing | [1, 28, 28] in [0, 1] | MIT |
| `emnist` | handwritten digits and letters, 47 classes | [1, 28, 28] in [0, 1] | none stated |
| `cifar10`, `cifar100` | photographs | [3, 32, 32] in [0, 1] | none stated |
| `omniglot` | handwritten symbols of 50 alphabets, each client's own | [1, 28, 28] in [0, 1] | MIT |
| `npz:PATH` | a NumPy archive of the user's own | as in the file | the file's |
| `sinusoid` | one sine wave for each client, to regress on | [1] in [-5, 5] | made here |
| `sensors` | activities seen through each client's own sensors | [12] | made here |
| `quadratic` | one known quadratic loss for each client | [6] | made here |
| `python:module:function` | a federation made by the user's own function | as made | the user's |
| `private` | what each deployed client brings itself (`private.py`) | as declared | the clients' |

Origins, units and file layouts are in the docstring of each source's module.

| `data.partition` | who holds what |
|---|---|
| `iid` | equal random parts |
| `dirichlet` | shares of each class from a Dirichlet distribution with `data.dirichlet-alpha` |
| `classes` | `data.classes-per-client` classes each |
| `by-user` | each client is one user of the source; those made here, `omniglot` and `python` always are |
| `per-fedavg` | half of the clients hold five classes, the others two, as in Per-FedAvg's experiments |

| `data.transform` | how clients differ beside what they hold |
|---|---|
| `none` | not at all |
| `rotate` | each client's images are turned by an angle of its own |
| `permute-labels` | each client calls the classes by names of its own |
| `two-groups` | every second client has dimmer inputs, and the classes are called otherwise in its group |

Adding a source: a module with `load` and `describe`, a line in `registry.SOURCES`, and a small stand-in in the tests.
"""

from nufed.common.data.federation import (
    SharedScaling,
    describe_task,
    forget_federations,
    list_clients,
    load_client,
    load_federation,
    shared_scaling,
    task_of_run,
)
from nufed.common.data.quadratic import quadratic_problems
from nufed.common.data.registry import SOURCES, Source

__all__ = [
    "SOURCES",
    "SharedScaling",
    "Source",
    "describe_task",
    "forget_federations",
    "list_clients",
    "load_client",
    "load_federation",
    "quadratic_problems",
    "shared_scaling",
    "task_of_run",
]
