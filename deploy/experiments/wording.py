"""Numbers and verdicts in words, the same in the terminal, in HTML and in Markdown."""

import math
from collections.abc import Mapping

from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.cells import ending_of
from nufed.deploy.experiments.statistics import Corrected, Interval


def number(value: float, measure: str) -> str:
    """Return `87.3 %` or a loss of three digits; `diverged` or `undefined` for what is not finite."""
    if not math.isfinite(value):
        return without_number(measure)
    return f"{100 * value:.1f} %" if look_of(measure).is_share else f"{value:.3g}"


def without_number(measure: str) -> str:
    """Return why there is no finite number of a measure."""
    return "diverged or undefined" if look_of(measure).may_be_undefined else "diverged"


def left_out(problems: Mapping[str, str]) -> str:
    """Return which runs have no results and how they ended, from their problems by name."""
    names: dict[str, list[str]] = {}
    for name, problem in problems.items():
        names.setdefault(ending_of(problem), []).append(name)
    return "Left out: " + "; ".join(f"{', '.join(runs)} ({ending})" for ending, runs in names.items()) + "."


def estimate(interval: Interval, measure: str) -> str:
    """Return `87.3 ± 1.2 %`, without ± for a single observation."""
    if not math.isfinite(interval.mean):
        return without_number(measure)
    if not math.isfinite(interval.half_width):
        return number(interval.mean, measure)
    if look_of(measure).is_share:
        return f"{100 * interval.mean:.1f} ± {100 * interval.half_width:.1f} %"
    return f"{interval.mean:.3g} ± {interval.half_width:.2g}"


def span(interval: Interval, measure: str) -> str:
    """Return `7.3 % (5.1 to 9.0)`, for intervals that are not symmetric."""
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return number(interval.mean, measure)
    if look_of(measure).is_share:
        return f"{100 * interval.mean:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def difference(interval: Interval, measure: str) -> str:
    """Return `+1.2 points [0.3, 2.1]`, or for a loss `0.12 less [0.03, 0.21]`; positive is better."""
    if not math.isfinite(interval.mean):
        return without_number(measure)
    scale, unit, digits = (100.0, " points", ".1f") if look_of(measure).is_share else (1.0, "", ".3f")
    text = f"{scale * interval.mean:+{digits}}{unit}"
    if not math.isfinite(interval.low):
        return text
    return f"{text} [{scale * interval.low:{digits}}, {scale * interval.high:{digits}}]"


def judgement(corrected: Corrected) -> str:
    """Return whether a corrected difference is one."""
    interval = corrected.interval
    if interval.num < 2:
        return "one seed, no interval"
    if interval.low > 0:
        return "better"
    return "worse" if interval.high < 0 else "no difference shown"


def p_value(value: float) -> str:
    """Return `p = 0.031`, `p < 0.001`, or nothing if there is none."""
    if math.isnan(value):
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def steps(count: int) -> str:
    """Return `1 step` or `5 steps`."""
    return f"{count} step" if count == 1 else f"{count} steps"
