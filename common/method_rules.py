"""Which options of a method go together, and which of them are computed for one client at a time only."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nufed.common.config import MethodConfig, RunConfig

_OWN_INNER_STEPS = {
    ("objective", "moreau"): "whose gradient λ(w - ŵ) differentiates no fine-tuning step",
    ("step-sizes", "learned"): "whose inner steps have a size for each parameter",
    ("adapted-part", "head"): "whose inner steps leave the body alone",
}
_SEQUENTIAL = {
    "method.objective",
    "method.step-sizes",
    "method.adapted-part",
    "method.trained-part",
    "method.proximal-strength",
    "method.personal-strength",
    "federation.aggregation",
}


def method_contradiction(method: "MethodConfig") -> str | None:
    """Return what contradicts what, and what to do; None where a method's options go together."""
    values = method.model_dump(by_alias=True)
    own = [f"{key}={value}" for key, value in _OWN_INNER_STEPS if values[key] == value]
    if len(own) > 1:
        return f"{own[0]} contradicts {own[1]}; choose one"
    if method.objective == "moreau":
        return _moreau_contradiction(method)
    if not own:
        return None
    why = next(text for (key, value), text in _OWN_INNER_STEPS.items() if values[key] == value)
    if method.step_sizes == "learned" and method.num_inner_steps == 0:
        return "num-inner-steps=0 contradicts step-sizes=learned, which are learned from inner steps; set it above 0"
    if method.step_sizes == "learned" and method.trained_part == "body":
        return "trained-part=body contradicts step-sizes=learned, which are learned for every layer; choose one"
    if method.estimator == "hessian-free":
        return f"estimator=hessian-free contradicts {own[0]}, {why}; choose exact, unrolled or first-order"
    if method.compile == "on":
        return f"compile=on contradicts {own[0]}, {why}; leave compile at off"
    return None


def _moreau_contradiction(method: "MethodConfig") -> str | None:
    if method.num_inner_steps == 0:
        return "num-inner-steps=0 contradicts objective=moreau, which is solved in so many steps; set it above 0"
    if method.personal_strength == 0:
        return "personal-strength=0 contradicts objective=moreau, whose gradient is 0 without it; set it above 0"
    if method.estimator != "exact":
        return f"estimator={method.estimator} contradicts objective=moreau, which has none; leave estimator at exact"
    if method.compile == "on":
        return "compile=on contradicts objective=moreau, which is not compiled; leave compile at off"
    return None


def has_own_inner_steps(method: "MethodConfig") -> bool:
    """Return whether inner steps are others than w - α ∇f(w), of all parameters by one size."""
    values = method.model_dump(by_alias=True)
    return any(values[key] == value for key, value in _OWN_INNER_STEPS)


def sequential_options(config: "RunConfig") -> list[str]:
    """Return the options, as `method.objective=moreau`, that the computation of many clients at once does not know."""
    plain = type(config)().flat()
    return sorted(
        f"{key}={value}" for key, value in config.flat().items() if key in _SEQUENTIAL and value != plain[key]
    )
