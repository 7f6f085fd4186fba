"""Options of the method: the objective, the clients' local training, and which of them go together."""

from typing import Literal, Self

from pydantic import Field, model_validator

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section, to_kebab

_OWN_INNER_STEPS = {
    ("objective", "implicit"): "whose gradient solves a system instead of differentiating fine-tuning steps",
    ("objective", "moreau"): "whose gradient λ(w - ŵ) differentiates no fine-tuning step",
    ("step-sizes", "observed"): "whose fine-tuning steps have a size for each parameter",
    ("step-sizes", "learned"): "whose inner steps have a size for each parameter",
    ("adapted-part", "head"): "whose inner steps leave the body alone",
}

_OF_OPTIMIZERS = {"local_momentum": "momentum", "local_beta1": "adam", "local_beta2": "adam", "local_eps": "adam"}

_OF_LEARNED_SIZES = ("exact", "unrolled", "first-order")  # any other would not be called (nufed.common.meta.objective)


class MethodConfig(Section):
    """The objective and the clients' local training."""

    num_inner_steps: int = Field(
        3, ge=0, le=1000, description="ν, fine-tuning steps inside the objective; 0 is FedAvg, 1 Per-FedAvg"
    )
    inner_lr: float = Field(0.05, ge=0, le=1e3, description="α, step size of a fine-tuning step")
    inner_schedule: str = Field(
        "constant",
        json_schema_extra={LIST: "numbers"},
        description="sizes of the ν fine-tuning steps: constant, linear or cosine decay of inner-lr, or a list of ν",
    )
    estimator: str = Field("exact", description="how the meta-gradient is computed")
    objective: Literal["fine-tuned", "moreau", "implicit"] = Field(
        "fine-tuned",
        description="loss after ν fine-tuning steps, Moreau envelope solved in ν steps (pFedMe), or loss at the "
        "minimum beside the server's model that ν steps look for (implicit: iMAML)",
    )
    cg_steps: int = Field(5, ge=1, le=1000, description="conjugate-gradient steps of objective=implicit")
    cg_damping: float = Field(
        0.0, ge=0, le=1e6, description="δ in (1 + δ) I + H/λ, which objective=implicit solves with"
    )
    step_sizes: Literal["fixed", "learned", "observed"] = Field(
        "fixed",
        description="fine-tuning steps of size inner-lr, or of a size for each parameter, learned (Meta-SGD) or "
        "observed from how far clients move it (ARUBA)",
    )
    observed_zeta: float = Field(
        0.01, gt=0, le=1e6, description="ζ, weight of inner-lr in step-sizes=observed: that of one gradient of length ζ"
    )
    adapted_part: Literal["all", "head"] = Field(
        "all", description="what fine-tuning changes, also at test time: all parameters, or the last layer's"
    )
    trained_part: Literal["all", "body"] = Field(
        "all", description="what meta steps change: all parameters, or all but the last layer's"
    )
    head: str = Field(
        "",
        description="modules or parameters that are the head, separated by commas; empty for the last layer that runs",
    )
    client_state: Literal["none", "head", "body", "model"] = Field(
        "none",
        description="what a client keeps to itself between rounds: nothing, its head (FedRep, FedPer), its body "
        "(LG-FedAvg), or a model of its own beside the shared one (Ditto, pFedMe)",
    )
    num_personal_steps: int = Field(
        0,
        ge=0,
        le=100_000,
        description="steps of a client's own model in a round, of size inner-lr (Ditto); 0 makes num-local-steps",
    )
    proximal_strength: float = Field(
        0.0, ge=0, le=1e6, description="μ, pull of meta steps towards the server's model (FedProx); 0 turns it off"
    )
    personal_strength: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="λ, pull towards the server's model at test time (Ditto), and in the Moreau envelope; 0 is off",
    )
    num_local_steps: int = Field(5, ge=1, le=100_000, description="τ, meta steps on a client in one round")
    local_lr: float = Field(0.1, gt=0, le=1e3, description="β, step size of a meta step")
    local_optimizer: Literal["sgd", "momentum", "adam"] = Field(
        "sgd", description="what a client makes of its meta-gradients, in steps of local-lr; begun anew in each round"
    )
    local_momentum: float = Field(0.9, ge=0, lt=1, description="momentum of local-optimizer=momentum")
    local_beta1: float = Field(0.9, ge=0, lt=1, description="β1 of local-optimizer=adam, for the meta-gradient")
    local_beta2: float = Field(0.999, ge=0, lt=1, description="β2 of local-optimizer=adam, for its square")
    local_eps: float = Field(
        1e-8, gt=0, le=1e3, description="ε of local-optimizer=adam, beside the root of the second moment"
    )
    max_grad_norm: float = Field(
        0.0, ge=0, le=1e9, description="norm that longer meta-gradients are scaled down to; 0 leaves them as they are"
    )
    batch_size: int = Field(20, ge=0, le=1_000_000, description="D, examples in an inner batch; 0 takes all of them")
    outer_batch_size: int = Field(
        -1, ge=-1, le=1_000_000, description="D', examples in the outer batch; -1 is batch-size, 0 all"
    )
    hessian_batch_size: int = Field(
        -1, ge=-1, le=1_000_000, description="D'', examples in a Hessian batch; -1 is batch-size, 0 all"
    )
    hessian_batches: Literal["fresh", "inner"] = Field(
        "fresh", description="fresh draws them independently (the theory); inner reuses the inner batches"
    )
    outer_holdout_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the support split kept for outer batches alone; 0 draws both from all of it",
    )
    hessian_free_delta: float = Field(
        0.0, ge=0, le=10, description="size of the displacement; 0 takes the measured default"
    )
    hessian_free_displacement: Literal["normalized", "absolute", "relative"] = Field(
        "normalized",
        description="displace by δ v/‖v‖, by δ v as Per-FedAvg does, or by δ (1 + ‖w‖) v/‖v‖",
    )
    hessian_free_difference: Literal["central", "forward"] = Field(
        "central", description="both sides of the point, or one side: fewer gradients, larger error"
    )
    hessian_free_dtype: Literal["same", "float64"] = Field(
        "same", description="precision of hessian-free: the model's, or float64 whatever the model's"
    )
    memory: Literal["low", "fast", "auto"] = Field(
        "auto",
        description="graphs of inner steps kept for coupled batches: one, all, or (unrolled) what fits in 256 MiB",
    )
    compile: Literal["off", "on", "auto"] = Field(
        "off", description="compile the inner step: equal to rounding only; auto where it saves more than it costs"
    )

    @model_validator(mode="after")
    def _coupled_batches_have_one_size(self) -> Self:
        if self.hessian_batches == "inner" and self.hessian_batch_size not in (-1, self.batch_size):
            raise ValueError(
                "hessian-batch-size contradicts hessian-batches=inner, which reuses the inner batches; "
                "leave hessian-batch-size at -1"
            )
        return self

    @model_validator(mode="after")
    def _options_are_of_the_local_optimizer(self) -> Self:
        for name, optimizer in _OF_OPTIMIZERS.items():
            value = getattr(self, name)
            if self.local_optimizer != optimizer and value != type(self).model_fields[name].default:
                raise ValueError(
                    f"{to_kebab(name)}={value:g} has no meaning with local-optimizer={self.local_optimizer}; leave it "
                    f"out, or choose {optimizer}"
                )
        return self

    @model_validator(mode="after")
    def _a_schedule_is_of_the_inner_steps(self) -> Self:
        if problem := _schedule_problem(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _parts_of_the_method_agree(self) -> Self:
        if problem := _observation_problem(self) or _contradiction(self):
            raise ValueError(problem)
        return self


def rounded(value: float) -> float:
    """Return a step size with three digits, which is how one that was searched for is tried and written down."""
    return float(f"{value:.3g}")


def has_own_inner_steps(method: MethodConfig) -> bool:
    """Return whether inner steps are others than w - α ∇f(w), of all parameters by one size."""
    values = method.model_dump(by_alias=True)
    return any(values[key] == value for key, value in _OWN_INNER_STEPS)


def _schedule_problem(method: MethodConfig) -> str | None:
    """Return what is wrong with a schedule of inner steps, and what to do; None if nothing is."""
    given = method.inner_schedule
    if given == "constant":
        return None
    if method.num_inner_steps == 0:
        return f"num-inner-steps=0 contradicts inner-schedule={given}, which is of those steps; leave it at constant"
    if method.step_sizes != "fixed":
        return (
            f"inner-schedule={given} contradicts step-sizes={method.step_sizes}, which has sizes of its own; leave one "
            "out"
        )
    if method.compile == "on":
        return f"compile=on contradicts inner-schedule={given}: one size is compiled; leave compile at off"
    if given in ("linear", "cosine"):
        return None
    try:
        sizes = [float(part) for part in given.split(",")]
    except ValueError:
        return f"inner-schedule={given} is none; give constant, linear, cosine or ν sizes such as 0.1,0.05"
    if len(sizes) != method.num_inner_steps:
        return f"inner-schedule={given} has {len(sizes)} sizes for {method.num_inner_steps} inner steps; give as many"
    if not all(0 <= size <= 1000 for size in sizes):
        return f"inner-schedule={given} has a size out of range; give numbers from 0 to 1000"
    return None


def has_listed_sizes(method: MethodConfig) -> bool:
    """Return whether the sizes of the inner steps are a list, so that no α is read."""
    return method.inner_schedule not in ("constant", "linear", "cosine")


def _observation_problem(method: MethodConfig) -> str | None:
    """Return what contradicts step sizes that are observed, and what to do; None if nothing does."""
    if method.step_sizes != "observed" and method.observed_zeta != 0.01:
        return (
            f"observed-zeta={method.observed_zeta:g} has no meaning with step-sizes={method.step_sizes}; leave it out, "
            "or choose observed"
        )
    if method.step_sizes == "observed" and method.num_inner_steps:
        return (
            f"num-inner-steps={method.num_inner_steps} contradicts step-sizes=observed, which are observed on plain "
            "local steps; set it to 0"
        )
    return None


def _contradiction(method: MethodConfig) -> str | None:
    """Return what contradicts what, and what to do; None where a method's options go together."""
    values = method.model_dump(by_alias=True)
    if problem := _state_contradiction(method):
        return problem
    own = [f"{key}={value}" for key, value in _OWN_INNER_STEPS if values[key] == value]
    if len(own) > 1:
        return f"{own[0]} contradicts {own[1]}; choose one"
    if method.objective != "fine-tuned":
        return _solved_contradiction(method)
    if (method.cg_steps, method.cg_damping) != (5, 0.0):
        return "cg-steps and cg-damping have no meaning with objective=fine-tuned; leave them out, or choose implicit"
    if not own:
        return None
    why = next(text for (key, value), text in _OWN_INNER_STEPS.items() if values[key] == value)
    if method.step_sizes == "learned" and method.num_inner_steps == 0:
        return "num-inner-steps=0 contradicts step-sizes=learned, which are learned from inner steps; set it above 0"
    if method.step_sizes == "learned" and method.trained_part == "body":
        return "trained-part=body contradicts step-sizes=learned, which are learned for every layer; choose one"
    is_not_read = method.step_sizes == "learned" and method.estimator not in _OF_LEARNED_SIZES
    if method.estimator == "hessian-free" or is_not_read:
        return f"estimator={method.estimator} contradicts {own[0]}, {why}; choose exact, unrolled or first-order"
    if method.compile == "on":
        return f"compile=on contradicts {own[0]}, {why}; leave compile at off"
    return None


def alternates(method: MethodConfig) -> bool:
    """Return whether a round is ν steps of the client's own head, then τ steps of the shared body (FedRep)."""
    return method.client_state == "head" and method.trained_part == "body"


def _state_contradiction(method: MethodConfig) -> str | None:
    """Return what contradicts `client-state`; None where nothing does."""
    kept = f"client-state={method.client_state}"
    if method.num_personal_steps and (method.client_state != "model" or method.objective == "moreau"):
        return (
            f"num-personal-steps={method.num_personal_steps} has a meaning for client-state=model with "
            "objective=fine-tuned (Ditto) alone; leave it at 0"
        )
    if method.client_state == "none":
        return None
    if method.step_sizes != "fixed":
        return f"step-sizes={method.step_sizes} contradicts {kept}, as they are of a model that all share; choose one"
    if method.client_state == "model":
        part = next((name for name in ("adapted", "trained") if getattr(method, f"{name}_part") != "all"), "")
        return f"{part}-part contradicts {kept}, which is a whole model; set {part}-part=all" if part else None
    if method.objective != "fine-tuned":
        return f"objective={method.objective} contradicts {kept}; set client-state=none, or model (pFedMe)"
    if method.client_state == "body" and method.trained_part == "body":
        return f"trained-part=body contradicts {kept}: nothing would be shared; set trained-part=all"
    if not alternates(method):
        return None
    if method.num_inner_steps == 0:
        return f"num-inner-steps=0 contradicts {kept} with trained-part=body, whose head is fitted in so many steps"
    if method.adapted_part != "head" or method.estimator != "first-order":
        return (
            f"{kept} with trained-part=body (FedRep) fits the head, then the body with the head as it is; set "
            "adapted-part=head and estimator=first-order"
        )
    return None


def _solved_contradiction(method: MethodConfig) -> str | None:
    objective = f"objective={method.objective}"
    if method.objective == "moreau" and (method.cg_steps, method.cg_damping) != (5, 0.0):
        return "cg-steps and cg-damping have no meaning with objective=moreau; leave them out, or choose implicit"
    if method.num_inner_steps == 0:
        return f"num-inner-steps=0 contradicts {objective}, which is solved in so many steps; set it above 0"
    if method.personal_strength == 0:
        return f"personal-strength=0 contradicts {objective}, whose minimum is held to w by it; set it above 0"
    if method.estimator != "exact":
        return f"estimator={method.estimator} contradicts {objective}, which has none; leave estimator at exact"
    if method.compile == "on":
        return f"compile=on contradicts {objective}, which is not compiled; leave compile at off"
    return None
