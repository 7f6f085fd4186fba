"""The methods by name: each is a preset of run options over one and the same client and server code.

A preset sets every option that tells methods apart (`METHOD_KEYS`), so that nothing of another method is left over from
a configuration file; what is tuned (step sizes, batches, rounds, and the estimator where the method leaves it open)
stays as it is. docs/methods.md compares them and says how each differs from its paper.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from common.config import Scalar, option_descriptions
from common.errors import ConfigError, nearest_match_hint


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
