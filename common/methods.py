"""The methods by name: each is a preset of run options over one and the same client and server code.

A preset sets every option that tells methods apart (`METHOD_KEYS`), so that nothing of another method is left over from
a configuration file; what is tuned (step sizes, batches, rounds, and the estimator where the method leaves it open)
stays as it is. docs/methods.md compares them and says how each differs from its paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nufed.common.config import Scalar, option_descriptions
from nufed.common.errors import ConfigError, nearest_match_hint


@dataclass(frozen=True)
class Method:
    """A method as a preset.

    Attributes:
        summary: one line.
        source: authors, year, and where in the paper.
        overrides: flat option key -> value, where it differs from the default or must not be changed by a file.
    """

    summary: str
    source: str
    overrides: Mapping[str, Scalar] = field(default_factory=dict)

    def options(self) -> dict[str, Scalar]:
        """Return flat option key -> value for all options that the preset decides."""
        described = option_descriptions()
        return {**{key: described[key][0] for key in METHOD_KEYS}, **self.overrides}


INNER_STEPS, ESTIMATOR = "method.num-inner-steps", "method.estimator"
FALLAH = "Fallah, Mokhtari and Ozdaglar 2020, Algorithm 1"
JAMALI = "Jamali, Saber and Bae 2025"


def _meta_fedavg(num_inner_steps: int) -> Method:
    summary = f"mean loss after ν = {num_inner_steps} fine-tuning steps, by any --estimator"
    return Method(summary, JAMALI, {INNER_STEPS: num_inner_steps})


METHODS: dict[str, Method] = {
    "fedavg": Method(
        "mean loss, ν = 0; fine-tuned at test time like all others",
        "McMahan et al. 2017, Algorithm 1",
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
        {INNER_STEPS: 0, "federation.aggregation": "none"},
    ),
    "fedprox": Method(
        "FedAvg whose local steps are pulled towards the server's model, μ = --set method.proximal-strength",
        "Li et al. 2020, MLSys, Algorithm 2",
        {INNER_STEPS: 0, "method.proximal-strength": 0.1},
    ),
    "reptile": Method(
        "τ plain local steps; the server goes ε = --set federation.server-lr towards their mean",
        "Nichol, Achiam and Schulman 2018, Algorithm 2",
        {INNER_STEPS: 0, "federation.server-lr": 0.5},
    ),
    "pfedme": Method(
        "Moreau envelopes: ν steps to ŵ, then λ (w - ŵ), λ = --set method.personal-strength; ŵ at test time too",
        "T. Dinh, Tran and Nguyen 2020, Algorithm 1",
        {
            INNER_STEPS: 5,
            ESTIMATOR: "exact",
            "method.objective": "moreau",
            "method.personal-strength": 2.0,
        },
    ),
    "ditto": Method(
        "FedAvg, and a personal model held to it by λ = --set method.personal-strength at test time",
        "Li, Hu, Beirami and Smith 2021, Algorithm 1",
        {INNER_STEPS: 0, "method.personal-strength": 0.5},
    ),
    "anil": Method(
        "ν = 3 fine-tuning steps of the last layer alone, in the objective and at test time",
        "Raghu et al. 2020, section 4",
        {INNER_STEPS: 3, ESTIMATOR: "exact", "method.adapted-part": "head"},
    ),
    "fedrep": Method(
        "the head is fitted in ν = 5 steps from one shared start, then the body takes a meta step",
        "Collins et al. 2021, Algorithm 1",
        {
            INNER_STEPS: 5,
            ESTIMATOR: "first-order",
            "method.adapted-part": "head",
            "method.trained-part": "body",
        },
    ),
    "meta-sgd": Method(
        "a learned fine-tuning step size for each parameter, ν = 1, used at test time too",
        "Li, Zhou, Chen and Li 2017, Algorithm 1",
        {INNER_STEPS: 1, ESTIMATOR: "exact", "method.step-sizes": "learned"},
    ),
}

METHOD_KEYS = sorted({key for method in METHODS.values() for key in method.overrides} - {ESTIMATOR})
"""Options that every preset sets, to their defaults where it does not say otherwise."""


def find_method(name: str) -> Method:
    """Return the registered method.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in METHODS:
        raise ConfigError(f"Unknown method {name!r} (--method).{nearest_match_hint(name, METHODS)}")
    return METHODS[name]
