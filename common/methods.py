"""The methods by name: each is a preset of run options over one and the same client and server code.

A preset decides the options of `DEFINING_OPTIONS`, which tell methods apart, so that nothing of another method is left
over from a configuration file, and what it names beside them. All else (step sizes, batches, rounds, the server's step,
and the estimator where the method leaves it open) stays as it is. docs/methods.md compares the methods and says how
each differs from its paper.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from nufed.common.config import RunConfig, Scalar, option_descriptions
from nufed.common.registry import find_registered

INNER_STEPS, ESTIMATOR = "method.num-inner-steps", "method.estimator"
CLIENT_STATE = "method.client-state"
PROXIMAL, PERSONAL, SERVER_LR = "method.proximal-strength", "method.personal-strength", "federation.server-lr"
SERVER_OPTIMIZER = "federation.server-optimizer"
INNER_LR, BATCH_SIZE = "method.inner-lr", "method.batch-size"

DEFINING_OPTIONS = (
    INNER_STEPS,
    "method.objective",
    "method.step-sizes",
    "method.adapted-part",
    "method.trained-part",
    CLIENT_STATE,
    PROXIMAL,
    PERSONAL,
    "federation.training",
    SERVER_OPTIMIZER,
)
"""Options that every preset decides: they have their defaults where it does not say otherwise.

An option belongs here if a method without it is another method, whatever its value is tuned to. What one method alone
is about (the server's step of Reptile, step size and batch of iMAML) is in that preset's `overrides`, and is left alone
by all others.
"""


@dataclass(frozen=True)
class Method:
    """A method as a preset.

    Attributes:
        summary: one line.
        source: authors, year, and where in the paper.
        overrides: flat option key -> value, where it differs from the default or must not be changed by a file.
        tuned: those of `overrides` that the method leaves to its user; it stays the same method while they are not 0.
    """

    summary: str
    source: str
    overrides: Mapping[str, Scalar] = field(default_factory=dict)
    tuned: frozenset[str] = frozenset()

    def options(self) -> dict[str, Scalar]:
        """Return flat option key -> value for all options that the preset decides."""
        described = option_descriptions()
        return {**{key: described[key][0] for key in DEFINING_OPTIONS}, **self.overrides}

    def departures(self, config: RunConfig) -> dict[str, tuple[Scalar, Scalar]]:
        """Return key -> (what the method has, what the configuration has) where the two are not the same method."""
        found = config.flat()
        return {
            key: (value, found[key])
            for key, value in self.options().items()
            if found[key] != value and not (key in self.tuned and found[key])
        }


FALLAH = "Fallah, Mokhtari and Ozdaglar 2020, Algorithm 1"
JAMALI = "Jamali, Saber and Bae 2025"
REDDI, HSU = "Reddi et al. 2021, Algorithm 2", "Hsu, Qi and Brown 2019, FedAvgM"


def _meta_fedavg(num_inner_steps: int) -> Method:
    summary = f"mean loss after ν = {num_inner_steps} fine-tuning steps, by any --estimator"
    return Method(summary, JAMALI, {INNER_STEPS: num_inner_steps})


def _server_optimizer(name: str, summary: str, source: str, server_lr: float = 1.0) -> Method:
    options: dict[str, Scalar] = {INNER_STEPS: 0, SERVER_OPTIMIZER: name, SERVER_LR: server_lr}
    return Method(
        f"FedAvg whose server goes along the clients' mean change {summary}, η = --set federation.server-lr",
        source,
        options,
        frozenset({SERVER_LR}),
    )


METHODS: dict[str, Method] = {
    "fedavg": Method(
        "mean loss over clients, ν = 0; fine-tuned at test time like all others",
        "McMahan et al. 2017, Algorithm 1, whose weights are --weighting examples",
        {INNER_STEPS: 0},
    ),
    "per-fedavg": Method(
        "mean loss after one fine-tuning step, exact Hessian products", FALLAH, {INNER_STEPS: 1, ESTIMATOR: "exact"}
    ),
    "per-fedavg-fo": Method("the same without Hessians", f"{FALLAH}, FO", {INNER_STEPS: 1, ESTIMATOR: "first-order"}),
    "per-fedavg-hf": Method(
        "the same with Hessian products by differences of gradients",
        f"{FALLAH}, HF",
        {INNER_STEPS: 1, ESTIMATOR: "hessian-free"},
    ),
    "meta-fedavg-2": _meta_fedavg(2),
    "meta-fedavg-3": _meta_fedavg(3),
    "meta-fedavg-5": _meta_fedavg(5),
    "meta-fedavg-10": _meta_fedavg(10),
    "local-only": Method(
        "no server: each client, known or new, trains alone for as many local steps before it is judged",
        "the baseline `local` of Li, Hu, Beirami and Smith 2021",
        {INNER_STEPS: 0, "federation.training": "local"},
    ),
    "fedprox": Method(
        "FedAvg whose local steps are pulled towards the server's model, μ = --set method.proximal-strength",
        "Li et al. 2020, MLSys, Algorithm 2",
        {INNER_STEPS: 0, PROXIMAL: 0.1},
        frozenset({PROXIMAL}),
    ),
    "reptile": Method(
        "τ plain local steps; the server goes ε = --set federation.server-lr towards their mean",
        "Nichol, Achiam and Schulman 2018, Algorithm 2",
        {INNER_STEPS: 0, SERVER_LR: 0.5},
        frozenset({SERVER_LR}),
    ),
    "pfedme": Method(
        "Moreau envelopes: ν steps to ŵ, which the client keeps, then λ (w - ŵ), λ = --set method.personal-strength",
        "T. Dinh, Tran and Nguyen 2020, Algorithm 1",
        {
            INNER_STEPS: 5,
            ESTIMATOR: "exact",
            "method.objective": "moreau",
            CLIENT_STATE: "model",
            PERSONAL: 2.0,
        },
        frozenset({INNER_STEPS, PERSONAL}),
    ),
    "ditto": Method(
        "FedAvg, and each client's own model beside it, held to it by λ = --set method.personal-strength",
        "Li, Hu, Beirami and Smith 2021, Algorithm 1",
        {INNER_STEPS: 0, CLIENT_STATE: "model", PERSONAL: 0.5},
        frozenset({PERSONAL}),
    ),
    "anil": Method(
        "ν = 3 fine-tuning steps of the head alone, in the objective and at test time",
        "Raghu et al. 2020, section 4",
        {INNER_STEPS: 3, ESTIMATOR: "exact", "method.adapted-part": "head"},
        frozenset({INNER_STEPS}),
    ),
    "fedrep": Method(
        "each client keeps its head: ν = 5 steps of it, then τ steps of the shared body",
        "Collins et al. 2021, Algorithm 1",
        {
            INNER_STEPS: 5,
            ESTIMATOR: "first-order",
            "method.adapted-part": "head",
            "method.trained-part": "body",
            CLIENT_STATE: "head",
        },
        frozenset({INNER_STEPS}),
    ),
    "fedper": Method(
        "FedAvg on the body alone, while each client keeps and trains its head",
        "Arivazhagan et al. 2019, Algorithms 1 and 2",
        {INNER_STEPS: 0, CLIENT_STATE: "head"},
    ),
    "lg-fedavg": Method(
        "FedAvg on the head alone, while each client keeps and trains its body",
        "Liang et al. 2020, Algorithm 1",
        {INNER_STEPS: 0, CLIENT_STATE: "body"},
    ),
    "fedbabu": Method(
        "FedAvg on the body alone, the head staying as it was drawn; all is fine-tuned at test time",
        "Oh, Kim and Yun 2022, Algorithm 1",
        {INNER_STEPS: 0, "method.trained-part": "body"},
    ),
    "meta-sgd": Method(
        "a learned fine-tuning step size for each parameter, ν = 1, used at test time too",
        "Li, Zhou, Chen and Li 2017, Algorithm 1",
        {INNER_STEPS: 1, ESTIMATOR: "exact", "method.step-sizes": "learned"},
        frozenset({INNER_STEPS}),
    ),
    "imaml": Method(
        "the minimum near w in ν steps, and its gradient by conjugate gradients, λ = --set method.personal-strength",
        "Rajeswaran et al. 2019, Algorithm 2",
        {
            INNER_STEPS: 10,
            ESTIMATOR: "exact",
            "method.objective": "implicit",
            PERSONAL: 10.0,
            INNER_LR: 0.02,  # in steps of the default of 0.05 the search for the minimum diverges on digits
            BATCH_SIZE: 0,
        },
        frozenset({INNER_STEPS, PERSONAL, INNER_LR, BATCH_SIZE}),
    ),
    "aruba": Method(
        "FedAvg, and a fine-tuning step size for each parameter, observed from how far clients move it",
        "Khodak, Balcan and Talwalkar 2019, Algorithm 2",
        {INNER_STEPS: 0, ESTIMATOR: "exact", "method.step-sizes": "observed"},
    ),
    "fedavgm": _server_optimizer("momentum", "with momentum 0.9", HSU),
    "fedadagrad": _server_optimizer("adagrad", "divided by the root of its summed squares", REDDI, 0.1),
    "fedadam": _server_optimizer("adam", "divided by the root of its mean square", REDDI, 0.01),
    "fedyogi": _server_optimizer("yogi", "as fedadam, with a mean square that falls more slowly", REDDI, 0.01),
}


def find_method(name: str) -> Method:
    """Return the registered method.

    Raises:
        ConfigError: the name is unknown.
    """
    return find_registered(METHODS, name, what="method", option="--method; `nufed methods` lists them")


def preset_notes(name: str, given: Mapping[str, Scalar], config: RunConfig, *, typed: Collection[str]) -> list[str]:
    """Return what a user must be told of a preset's place between other options; nothing where it changes no mind.

    Args:
        name: of the method.
        given: flat key -> value of the options that were given below the preset, e.g. by a file.
        config: of the run, with what was given above the preset.
        typed: keys of what was given above the preset, e.g. by flags.

    Raises:
        ConfigError: the name is unknown.
    """
    method, found = find_method(name), config.flat()
    decided = method.options()
    lost = [
        f"{key} {given[key]} → {value}"
        for key, value in decided.items()
        if key in given and given[key] != value == found[key]
    ]
    notes = [f"method {name} overrides what was given: {', '.join(lost)}"] if lost else []
    described = option_descriptions()
    of_others = (
        {key for other in METHODS.values() for key in other.overrides}
        - decided.keys()
        - {ESTIMATOR, INNER_LR, BATCH_SIZE}
    )
    kept = [f"{key}={found[key]}" for key in sorted(of_others & given.keys()) if found[key] != described[key][0]]
    if kept:
        notes.append(f"{', '.join(kept)} stays as given: method {name} leaves it open")
    if departures := {key: both for key, both in method.departures(config).items() if key in typed}:
        changed = ", ".join(f"{key}={ours} instead of {theirs}" for key, (theirs, ours) in departures.items())
        other = next((known for known, each in METHODS.items() if not each.departures(config)), None)
        notes.append(f"{changed}: this is no longer {name}" + (f", but {other}" if other else ""))
    return notes
