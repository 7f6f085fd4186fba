"""Each preset's whole runs against plain loops with torch.autograd, written from its paper, on all-batch problems."""

import json

import pytest
import torch

from nufed.common.client_states import StateFile
from nufed.common.config import RunConfig
from nufed.common.data import load_federation
from nufed.common.methods import METHODS
from nufed.common.models import build_model
from nufed.common.params import model_params
from nufed.common.settings import Settings
from nufed.deploy.simulation.engines import simulate
from nufed.server.client_states import FOLDER
from nufed.server.run import ServerOptions
from nufed.server.run_folder import load_model

ALPHA, BETA, TAU, ROUNDS, STEPS = 0.07, 0.2, 3, 3, 3
HEAD = frozenset({"3.weight", "3.bias"})
COMMON = {
    "data.num-clients": 5,
    "data.num-new-clients": 2,
    "data.partition": "dirichlet",
    "data.dirichlet-alpha": 1.0,
    "model.hidden-sizes": "6",
    "model.dtype": "float64",
    "method.inner-lr": ALPHA,
    "method.local-lr": BETA,
    "method.num-local-steps": TAU,
    "method.batch-size": 0,
    "federation.num-rounds": ROUNDS,
    "federation.participation-fraction": 0.6,
    "evaluation.interval": 0,
    "evaluation.num-adapt-steps": STEPS,
    "evaluation.primary-step": STEPS,
}


def loss(w, examples):
    hidden = torch.nn.functional.elu(examples.inputs.flatten(1) @ w["1.weight"].T + w["1.bias"])
    logits = hidden @ w["3.weight"].T + w["3.bias"]
    return -torch.log_softmax(logits, 1)[torch.arange(len(examples.targets)), examples.targets].mean()


def gradient(f, w, names=None, create_graph=False):
    at = {name: value if create_graph else value.detach().requires_grad_() for name, value in w.items()}
    names = list(names or w)
    found = torch.autograd.grad(f(at), [at[name] for name in names], create_graph=create_graph)
    return dict(zip(names, found, strict=True))


def descended(w, direction, size):
    return {name: value - size * direction[name] if name in direction else value for name, value in w.items()}


def squared_distance(w, anchor):
    return sum((w[name] - anchor[name]).square().sum() for name in w)


def unrolled(f, w, nu, names=None):
    """Return ∇F, differentiated through ν steps of the parameters named."""
    start = {name: value.detach().requires_grad_() for name, value in w.items()}
    point = dict(start)
    for _ in range(nu):
        point = descended(point, gradient(f, point, names, create_graph=True), ALPHA)
    return dict(zip(start, torch.autograd.grad(f(point), list(start.values())), strict=True))


class FedAvg:
    """McMahan et al., Algorithm 1, with clients counted equally; fine-tuned by plain gradient descent."""

    server_lr = 1.0

    def __init__(self, **changes):
        self.changes = changes

    def meta_gradient(self, f, w, w_server):
        return gradient(f, w)

    def round(self, f, w, state):
        point = dict(w)
        for _ in range(TAU):
            point = descended(point, self.meta_gradient(f, point, w), BETA)
        return point, None

    def shared(self, w, w_clients):
        return {
            name: w[name] + self.server_lr * (sum(each[name] for each in w_clients) / len(w_clients) - w[name])
            for name in w
        }

    def curve(self, f, w, state):
        point = dict(w)
        yield point
        for _ in range(STEPS):
            point = descended(point, gradient(f, point), ALPHA)
            yield point


class Meta(FedAvg):
    """Jamali, Saber and Bae; ν = 1 is Fallah, Mokhtari and Ozdaglar, Algorithm 1."""

    def __init__(self, nu):
        super().__init__()
        self.nu = nu

    def meta_gradient(self, f, w, w_server):
        return unrolled(f, w, self.nu)


class FirstOrder(FedAvg):
    def meta_gradient(self, f, w, w_server):
        return gradient(f, descended(w, gradient(f, w), ALPHA))


class HessianFree(FedAvg):
    """Fallah, Mokhtari and Ozdaglar, section 4: the product by [∇f(w + δv) - ∇f(w - δv)] / 2δ."""

    DELTA = 1e-4

    def __init__(self):
        super().__init__(**{"method.hessian-free-delta": self.DELTA, "method.hessian-free-displacement": "absolute"})

    def meta_gradient(self, f, w, w_server):
        v = gradient(f, descended(w, gradient(f, w), ALPHA))
        above, below = (gradient(f, descended(w, v, -sign * self.DELTA)) for sign in (1, -1))
        return {name: v[name] - ALPHA * (above[name] - below[name]) / (2 * self.DELTA) for name in w}


class FedProx(FedAvg):
    MU = 0.3

    def __init__(self):
        super().__init__(**{"method.proximal-strength": self.MU})

    def meta_gradient(self, f, w, w_server):
        return gradient(lambda x: f(x) + self.MU / 2 * squared_distance(x, w_server), w)


class Reptile(FedAvg):
    server_lr = 0.5


class PFedMe(FedAvg):
    """T. Dinh, Tran and Nguyen, Algorithm 1, as their code has it: θ goes on where the local round before left it."""

    LAMBDA, K = 2.0, 5
    server_lr = 0.8

    def __init__(self):
        super().__init__(**{"federation.server-lr": self.server_lr})

    def step(self, f, theta, w):
        return descended(theta, gradient(lambda x: f(x) + self.LAMBDA / 2 * squared_distance(x, w), theta), ALPHA)

    def round(self, f, w, state):
        point, theta = dict(w), dict(w)
        for _ in range(TAU):
            for _ in range(self.K):
                theta = self.step(f, theta, point)
            point = {name: point[name] - BETA * self.LAMBDA * (point[name] - theta[name]) for name in point}
        return point, theta

    def curve(self, f, w, state):
        theta = dict(state or w)
        yield theta
        for _ in range(STEPS):
            theta = self.step(f, theta, w)
            yield theta


class Ditto(PFedMe):
    """Li, Hu, Beirami and Smith, Algorithm 1: s steps of v_k held to w^t, beside FedAvg."""

    LAMBDA, S = 0.5, 4
    server_lr = 1.0

    def __init__(self):
        FedAvg.__init__(self, **{"method.num-personal-steps": self.S})

    def round(self, f, w, state):
        v = dict(state or w)
        for _ in range(self.S):
            v = self.step(f, v, w)
        return FedAvg.round(self, f, w, None)[0], v


class Anil(FedAvg):
    def meta_gradient(self, f, w, w_server):
        return unrolled(f, w, 3, HEAD)

    def curve(self, f, w, state):
        point = {**w, **(state or {})}
        yield point
        for _ in range(STEPS):
            point = descended(point, gradient(f, point, HEAD), ALPHA)
            yield point


class FedRep(Anil):
    """Collins et al., Algorithm 1: τ_h steps of the client's own head, then τ steps of the representation."""

    def round(self, f, w, state):
        point = {**w, **(state or {})}
        for _ in range(5):
            point = descended(point, gradient(f, point, HEAD), ALPHA)
        head = {name: point[name] for name in HEAD}
        for _ in range(TAU):
            point = descended(point, gradient(f, point, w.keys() - HEAD), BETA)
        return {**point, **{name: w[name] for name in HEAD}}, head


class FedPer(FedAvg):
    """Arivazhagan et al.: SGD on base and personal layers together; the server averages the base layers."""

    own = HEAD

    def round(self, f, w, state):
        point, _ = super().round(f, {**w, **(state or {})}, None)
        return {**point, **{name: w[name] for name in self.own}}, {name: point[name] for name in self.own}

    def curve(self, f, w, state):
        return super().curve(f, {**w, **(state or {})}, None)


class LgFedAvg(FedPer):
    own = frozenset({"1.weight", "1.bias"})


class FedBabu(FedAvg):
    """Oh, Kim and Yun, Algorithm 1: the head stays as it was drawn, and is fine-tuned with the body at the end."""

    def meta_gradient(self, f, w, w_server):
        return gradient(f, w, w.keys() - HEAD)


class MetaSgd(FedAvg):
    """Li, Zhou, Chen and Li, Algorithm 1: w and the step sizes a descend together."""

    def round(self, f, w, state):
        point = dict(w)
        for _ in range(TAU):
            both = {name: value.detach().requires_grad_() for name, value in point.items()}
            model = {name: value for name, value in both.items() if not name.startswith("step-size/")}
            first = gradient(f, model, create_graph=True)
            adapted = {name: value - both[f"step-size/{name}"] * first[name] for name, value in model.items()}
            found = torch.autograd.grad(f(adapted), list(both.values()))
            point = {name: (value - BETA * g).detach() for (name, value), g in zip(both.items(), found, strict=True)}
        return point, None

    def curve(self, f, w, state):
        point = {name: value for name, value in w.items() if not name.startswith("step-size/")}
        yield point
        for _ in range(STEPS):
            found = gradient(f, point)
            point = {name: value - w[f"step-size/{name}"] * found[name] for name, value in point.items()}
            yield point


class Alone(FedAvg):
    """No server: as many steps as a client is asked for on average, r K τ, before it is judged."""

    def curve(self, f, w, state):
        for _ in range(TAU * round(0.6 * ROUNDS)):
            w = descended(w, gradient(f, w), BETA)
        return super().curve(f, w, None)


STRAIGHT = {
    "fedavg": FedAvg(),
    "per-fedavg": Meta(1),
    "per-fedavg-fo": FirstOrder(),
    "per-fedavg-hf": HessianFree(),
    **{f"meta-fedavg-{nu}": Meta(nu) for nu in (2, 3, 5, 10)},
    "local-only": Alone(),
    "fedprox": FedProx(),
    "reptile": Reptile(),
    "pfedme": PFedMe(),
    "ditto": Ditto(),
    "anil": Anil(),
    "fedrep": FedRep(),
    "fedper": FedPer(),
    "lg-fedavg": LgFedAvg(),
    "fedbabu": FedBabu(),
    "meta-sgd": MetaSgd(),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_a_run_is_what_its_paper_says(name, tmp_path):
    """Model, what clients keep, and the curves of both groups, after rounds in which some clients were not asked."""
    method = STRAIGHT[name]
    config = RunConfig().updated({**COMMON, **METHODS[name].options(), **method.changes})

    simulate(config, ServerOptions(out=tmp_path), engine="local")

    (folder,) = tmp_path.iterdir()
    params, _ = load_model(folder)
    rounds = [json.loads(line)["clients"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    federation = load_federation(config.data, seed=config.seed, dtype=torch.float64, settings=Settings())
    clients = {client.client_id: client for client in federation.clients}
    w, states = initial(config, federation, method), {}
    for asked in rounds:
        updates = []
        for client_id in sorted(asked):
            own = clients[client_id].support
            update, states[client_id] = method.round(lambda x, own=own: loss(x, own), w, states.get(client_id))
            updates.append(update)
        w = method.shared(w, updates)
    assert len(rounds) == (0 if name == "local-only" else ROUNDS)
    assert len({client_id for asked in rounds for client_id in asked}) > 3 or name == "local-only"
    torch.testing.assert_close(params, w, rtol=0, atol=1e-10)
    check_states(folder, clients, {client_id: state for client_id, state in states.items() if state is not None})
    summary = json.loads((folder / "summary.json").read_text())
    for group in ("participating", "new"):
        curves = [
            [float(loss(point, client.test)) for point in method.curve(on(client), w, states.get(client.client_id))]
            for client in clients.values()
            if client.group == group
        ]
        assert summary[group]["loss"] == pytest.approx(
            torch.tensor(curves, dtype=torch.float64).mean(0), rel=0, abs=1e-10
        )


def on(client):
    return lambda x: loss(x, client.support)


def initial(config, federation, method):
    w = model_params(build_model(config.model, federation.task, seed=config.seed))
    if isinstance(method, MetaSgd):
        w |= {f"step-size/{name}": torch.full_like(value, ALPHA) for name, value in w.items()}
    return w


def check_states(folder, clients, expected):
    files = sorted((folder / FOLDER).iterdir()) if (folder / FOLDER).exists() else []
    found = {list(clients)[int(path.name.partition("-")[0])]: StateFile.read(path).versions for path in files}
    assert found.keys() == expected.keys()
    for client_id, versions in found.items():
        (kept,) = versions.values()
        torch.testing.assert_close(kept, {name: expected[client_id][name] for name in kept}, rtol=0, atol=1e-10)
        assert kept.keys() == expected[client_id].keys()


def test_weights_by_examples_are_those_of_mcmahan(tmp_path):
    """`fedavg` counts clients equally; --weighting examples gives w = Σ n_k w_k / Σ n_k, which is another model."""
    config = RunConfig().updated({**COMMON, **METHODS["fedavg"].options(), "federation.weighting": "examples"})

    simulate(config, ServerOptions(out=tmp_path), engine="local")

    (folder,) = tmp_path.iterdir()
    federation = load_federation(config.data, seed=config.seed, dtype=torch.float64, settings=Settings())
    clients = {client.client_id: client for client in federation.clients}
    w = initial(config, federation, STRAIGHT["fedavg"])
    equal = dict(w)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        asked = [clients[name] for name in json.loads(line)["clients"]]
        total = sum(len(client.support) for client in asked)
        updates = [(len(client.support) / total, FedAvg().round(on(client), w, None)[0]) for client in asked]
        w = {name: sum(share * update[name] for share, update in updates) for name in w}
        equal = FedAvg().shared(equal, [FedAvg().round(on(client), equal, None)[0] for client in asked])
    params, _ = load_model(folder)
    torch.testing.assert_close(params, w, rtol=0, atol=1e-10)
    assert max(float((w[name] - equal[name]).abs().max()) for name in w) > 1e-3
