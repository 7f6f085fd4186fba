"""Which options of a method are computed for one client at a time only."""

from nufed.common.config import RunConfig

_SEQUENTIAL = {
    "method.objective",
    "method.step-sizes",
    "method.adapted-part",
    "method.trained-part",
    "method.proximal-strength",
    "method.personal-strength",
    "federation.training",
}


def sequential_options(config: RunConfig) -> list[str]:
    """Return the options, as `method.objective=moreau`, that the computation of many clients at once does not know."""
    plain = RunConfig().flat()
    return sorted(
        f"{key}={value}" for key, value in config.flat().items() if key in _SEQUENTIAL and value != plain[key]
    )
