"""Which options of a method are computed for one client at a time only."""

from nufed.common.config import RunConfig

_SEQUENTIAL = {
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
    """Return the options for which clients train one at a time: those of `sequential_options`, and others."""
    from nufed.common.meta.estimators import find_estimator  # loads PyTorch

    name = config.method.estimator
    private = ["privacy.dp=record"] if config.privacy.dp == "record" else []
    masked = ["privacy.secure-aggregation=true"] if config.privacy.secure_aggregation else []
    estimator = [] if find_estimator(name).of_steps else [f"method.estimator={name}"]
    return [*sequential_options(config), *private, *masked, *estimator]


def sequential_options(config: RunConfig) -> list[str]:
    """Return the options, as `method.objective=moreau`, that the computation of many clients at once does not know."""
    plain = RunConfig().flat()
    return sorted(
        f"{key}={value}" for key, value in config.flat().items() if key in _SEQUENTIAL and value != plain[key]
    )
