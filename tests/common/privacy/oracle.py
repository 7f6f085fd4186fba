"""ε of composed Gaussian mechanisms by paths that share nothing with nufed.common.privacy.accounting.

δ(ε) of K steps is the inverse Laplace transform of M(s)^K e^(-sε) / (s (s + 1)), where M(s) = ∫ p^(1+s) q^(-s) is the
moment generating function of one step's privacy loss (the transform of (1 - e^-y)+ is 1 / (s (s + 1))): integrated
here along a line through the saddle point, without a grid of losses (where units take part in ten steps or more: the
transform of fewer falls too slowly). One step and Gaussians without sampling have closed forms.
"""

import math

import numpy as np
from scipy import optimize, special, stats


def gaussian(noise, steps, delta):
    """Return ε of `steps` Gaussians that all units take part in (Balle & Wang, 2018, theorem 8)."""
    mu = math.sqrt(steps) / noise

    def delta_of(epsilon):
        second = stats.norm.logcdf(-mu / 2 - epsilon / mu) + epsilon
        return stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(min(second, 700))

    return _root(delta_of, delta)


def single(noise, rate, delta):
    """Return ε of one sampled Gaussian: the likelihood ratio is monotone, so the worst event is a half line."""

    def remove(epsilon):
        if math.exp(epsilon) <= 1 - rate:
            return -math.expm1(epsilon)
        threshold = noise**2 * math.log((math.exp(epsilon) - 1 + rate) / rate) + 0.5
        without, within = stats.norm.sf(threshold / noise), stats.norm.sf((threshold - 1) / noise)
        return (1 - rate) * without + rate * within - math.exp(epsilon) * without

    def add(epsilon):
        if math.exp(-epsilon) <= 1 - rate:
            return 0.0
        threshold = noise**2 * math.log((math.exp(-epsilon) - 1 + rate) / rate) + 0.5
        without, within = stats.norm.cdf(threshold / noise), stats.norm.cdf((threshold - 1) / noise)
        return without - math.exp(epsilon) * ((1 - rate) * without + rate * within)

    return max(_root(remove, delta), _root(add, delta))


def renyi(noise, rate, steps, delta):
    """Return the best bound by Rényi divergences of orders up to 64 (Mironov, 2017; Canonne et al., 2020, prop. 12)."""
    orders = np.concatenate([np.arange(1.1, 11, 0.1), np.arange(11, 64)])
    x = np.linspace(-14 * noise - 2, 14 * noise + 65, 6001)
    without = stats.norm.logpdf(x, 0, noise)
    within = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + stats.norm.logpdf(x, 1, noise))
    terms = orders[:, None] * within + (1 - orders[:, None]) * without
    divergences = steps * (special.logsumexp(terms, axis=1) + math.log(x[1] - x[0])) / (orders - 1)
    return float(np.min(divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)))


def deltas(noise, rate, steps, epsilons, *, truncated=(0, 0)):
    """Return δ at each of `epsilons` of `steps` sampled Gaussians; `truncated`: (population, cap) of capped ones."""
    x = np.linspace(-14 * noise - 2, 14 * noise + 2, 2401)

    def density(mean):
        return stats.norm.pdf(x, mean, noise)

    without, within = density(0), (1 - rate) * density(0) + rate * density(1)
    mixtures = [[(1.0, within, without)], [(1.0, without, within)]]
    if truncated[1]:
        share, given = _truncation(rate, *truncated)
        upper, lower = ((1 - given) * density(0) + given * density(side) for side in (2, -2))
        mixtures = [[(1 - share, *one[0][1:]), (share, upper, lower)] for one in mixtures]
    return np.max([_inverted(x, mixture, steps, epsilons) for mixture in mixtures], axis=0)


def _truncation(rate, population, cap):
    """Return the probability that `cap` others are drawn, and that one unit takes part when they are."""

    def drawn(n, k):
        ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
        return math.exp(ways + k * math.log(rate) + (n - k) * math.log1p(-rate))

    others = population - 1
    share = sum(drawn(others, k) for k in range(cap, others + 1))
    taking = sum(drawn(others, k) * rate * cap / (k + 1) for k in range(cap, others + 1))
    return share, taking / share


def _inverted(x, mixture, steps, epsilons):
    """Return the inverse transform at each of `epsilons` of the moments of `mixture`'s privacy losses."""
    width = x[1] - x[0]
    losses = [(weight * p * width, np.log(p) - np.log(q)) for weight, p, q in mixture]

    def log_moment(s):
        return np.log(sum(np.exp(s[:, None] * loss) @ mass for mass, loss in losses))

    def exponent(log_s):
        s = math.exp(log_s)
        return steps * log_moment(np.array([s]))[0] - s * epsilons[0] - math.log(s) - math.log1p(s)

    line = math.exp(optimize.minimize_scalar(exponent, bounds=(-6, 5), method="bounded", options={"xatol": 0.05}).x)
    near = line * np.array([1 - 1e-3, 1, 1 + 1e-3])
    curvature = steps * np.diff(log_moment(near), 2)[0] / (1e-3 * line) ** 2
    t = np.linspace(0, 10 / math.sqrt(curvature), 301)
    s = line + 1j * t
    moments = np.exp(steps * log_moment(s) - s * epsilons[0]) / (s * (s + 1))
    shifts = [epsilon - epsilons[0] for epsilon in epsilons]
    return [float(np.trapezoid((moments * np.exp(-s * shift)).real, t) / math.pi) for shift in shifts]


def _root(delta_of, delta):
    """Return the smallest ε at which the falling `delta_of` is `delta`."""
    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2
    return float(optimize.brentq(lambda epsilon: delta_of(epsilon) - delta, 0, high, xtol=1e-14))
