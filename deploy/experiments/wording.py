"""Numbers and verdicts in words, the same in the terminal, in HTML and in Markdown."""

import math
from collections.abc import Mapping

from nufed.common.metric_looks import look_of
from nufed.deploy.experiments.cells import ending_of
from nufed.deploy.experiments.statistics import MIN_SEEDS, Corrected, Interval


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
    """Return `87.3 ± 1.2 %`, as ends where they lie beyond what the measure can be, or `87.3 % (seeds 86 to 88)`.

    An interval that covers everything that the measure can be, or whose half is larger than the number itself, is no
    finding: what the seeds gave is shown instead.
    """
    mean, look = interval.mean, look_of(measure)
    if not math.isfinite(mean):
        return without_number(measure)
    half = interval.half_width
    low, high = max(interval.low, look.low), min(interval.high, look.high)
    bounded = math.isfinite(look.low) and math.isfinite(look.high)
    says_nothing = (low <= look.low and high >= look.high) if bounded else half > abs(mean)
    if not math.isfinite(half) or says_nothing:
        return f"{number(mean, measure)}{_seeds(interval, measure)}"
    if low > interval.low or high < interval.high:
        return f"{number(mean, measure)} {_ends(low, high, measure)}"
    if look.is_share:
        return f"{100 * mean:.1f} ± {100 * half:.1f} %"
    return f"{mean:.3g} ± {half:.2g}"


def _ends(low: float, high: float, measure: str) -> str:
    if look_of(measure).is_share:
        return f"[{100 * low:.1f}, {100 * high:.1f}]"
    return f"[{low:.3g}, {high:.3g}]"


def _seeds(interval: Interval, measure: str) -> str:
    """Return what the seeds gave, as ` (seeds 86.2 to 88.1)`; nothing for a single one."""
    if interval.num < 2 or not math.isfinite(interval.most - interval.least):
        return ""
    if look_of(measure).is_share:
        return f" (seeds {100 * interval.least:.1f} to {100 * interval.most:.1f})"
    return f" (seeds {interval.least:.3g} to {interval.most:.3g})"


def span(interval: Interval, measure: str) -> str:
    """Return `7.3 % (5.1 to 9.0)`, for intervals that are not symmetric, cut to what the measure can be."""
    if not math.isfinite(interval.low) or not math.isfinite(interval.high):
        return number(interval.mean, measure)
    if look_of(measure).is_share:
        low, high = max(interval.low, 0.0), min(interval.high, 1.0)
        return f"{100 * interval.mean:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
    return f"{interval.mean:.3g} ({interval.low:.3g} to {interval.high:.3g})"


def difference(interval: Interval, measure: str) -> str:
    """Return `+1.2 points [0.3, 2.1]`, or for a loss `+0.12 [0.03, 0.21]`; positive is better.

    Ends are cut to what a difference can be. Without an interval, the seeds' differences are shown.
    """
    mean, look = interval.mean, look_of(measure)
    if not math.isfinite(mean):
        return without_number(measure)
    scale, unit, digits = (100.0, " points", ".1f") if look.is_share else (1.0, "", ".3f")
    text = f"{scale * mean:+{digits}}{unit}"
    reach = look.high - look.low if math.isfinite(look.high - look.low) else math.inf
    if not math.isfinite(interval.low) or (interval.low <= -reach and interval.high >= reach):
        if interval.num < 2 or not math.isfinite(interval.most - interval.least):
            return text
        return f"{text} (seeds {scale * interval.least:+{digits}} to {scale * interval.most:+{digits}})"
    low, high = max(interval.low, -reach), min(interval.high, reach)
    return f"{text} [{scale * low:{digits}}, {scale * high:{digits}}]"


def no_verdict(num: int) -> str:
    """Return that so few seeds allow no verdict."""
    return f"no verdict: {num} seed{'' if num == 1 else 's'}"


def judgement(corrected: Corrected) -> str:
    """Return whether a corrected difference is one."""
    interval = corrected.interval
    if interval.num < MIN_SEEDS:
        return no_verdict(interval.num)
    if not math.isfinite(interval.mean):
        return "no verdict: without a number"
    if not math.isfinite(interval.low):
        return "no verdict: all seeds equal"
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
