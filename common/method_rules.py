"""Which options of a method are computed for one client at a time only, and which ones make it another method."""

from nufed.common.config import RunConfig

_OTHER = {
    "method.objective",
    "method.step-sizes",
    "method.adapted-part",
    "method.trained-part",
    "method.client-state",
    "method.proximal-strength",
    "method.personal-strength",
    "federation.training",
}


def sequential_training(config: RunConfig) -> list[str]:
    """Return the options, as `method.objective=implicit`, for which clients train one at a time."""
    from nufed.common.meta.estimators import find_estimator  # loads PyTorch

    name = config.method.estimator
    private = ["privacy.dp=record"] if config.privacy.dp == "record" else []
    masked = ["privacy.secure-aggregation=true"] if config.privacy.secure_aggregation else []
    implicit = ["method.objective=implicit"] if config.method.objective == "implicit" else []
    estimator = [] if find_estimator(name).of_steps else [f"method.estimator={name}"]
    return [*implicit, *private, *masked, *estimator]


def sequential_evaluation(config: RunConfig) -> list[str]:
    """Return the options for which clients are evaluated one at a time: those by which they train for it so."""
    return sequential_training(config) if config.federation.training == "local" else []


def other_objectives(config: RunConfig) -> list[str]:
    """Return the options, as `method.objective=moreau`, of a method that is not plain local and fine-tuning steps."""
    plain, found = RunConfig().flat(), config.flat()
    return [f"{key}={found[key]}" for key in sorted(_OTHER) if found[key] != plain[key]]
