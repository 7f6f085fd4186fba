"""What a report explains: the words of its methods and its statistics, and the notes of its sections."""

import re
from collections.abc import Iterable

from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.statistics import MIN_SEEDS

_WORDS = (
    (r"ν|FedAvg", "ν: how many fine-tuning steps training looks ahead; ν = 0 is FedAvg, ν = 1 Per-FedAvg."),
    (r"\bFO\(|first-order", "FO(ν): first order, trained through ν steps as if their curvature were 0."),
    (r"\bHF\(|hessian-free", "HF(ν): Hessian-free, curvature taken from differences of gradients."),
    (r"α['′]", "α′: the inner step size of a control that takes one step of this length in training instead of ν."),
    (r"τ['′]", "τ′: the local steps of a control that may compute as much as the method that it is held against."),
)
_HOLM = (
    "Holm: p-values and intervals are corrected for how many methods are looked at together, so that one of many does "
    "not look better by chance alone."
)


def glossary(labels: Iterable[str], *, is_single: bool = False) -> list[str]:
    """Return a sentence on each term that the methods' names use, and on Holm's correction where methods compete."""
    text = " ".join(labels)
    words = [sentence for pattern, sentence in _WORDS if re.search(pattern, text)]
    return words if is_single else [*words, _HOLM]


def how_sure(comparison: Comparison) -> str:
    """Return what ±, [ ] and a verdict mean in this comparison."""
    num = len(comparison.seeds)
    seeds = f"{num} seed{'s' if num > 1 else ''}"
    signs = "" if comparison.sign > 0 else f" Differences of {comparison.measure} are signed so that + is better: less."
    if num < MIN_SEEDS:
        return (
            f"{seeds}: too few for an interval or a verdict, for which {MIN_SEEDS} are needed. Shown are means"
            f"{' and what each seed gave' if num > 1 else ''}.{signs}"
        )
    return (
        f"{seeds}; ± and [ ] are 95 % intervals over seeds, at least as wide as one test example makes them; "
        f"differences are paired by seed. “Better” only where the corrected interval excludes 0.{signs}"
    )


ONE_RUN = (
    "One run. Nothing here says what another seed, or another split of the data, would give: differences between "
    "methods need several runs of each, by nufed experiment, or by nufed report with several run folders."
)
STANDING = (
    "Best first. Against the best: paired by seed. Worst tenth and sd over clients: bootstrap over seeds and clients."
)
METRICS = (
    "Means over clients and seeds after s* steps. The same answer: the commonest of each client's support split, or "
    "its mean, given to every test example; a model that is no better has learned nothing that helps."
)
CLIENTS_TABLE = "[ ]: 95 % interval, where a client was judged on fewer than 100 examples. Worst first."
ADAPTATION = "Each client starts from the same model and takes s full steps on its own support data."
SHOTS = (
    "Each client fine-tuned on k of its support examples for each class (of each client, where there are no classes)."
)
PROGRESS = "Mean over seeds and participating clients."
PRIVACY = "Each setting with its own ε; none: the same run without clipping and noise."
MATRIX = "Exact methods (ν = 0 is FedAvg). Darker is better within a column; the best of each column is bold."
CLIENTS = "A mean can hide clients that are served badly."
WORSE_OFF = (
    "Share of the clients that do worse after s* steps than the same client, in a run of the same seed, under the "
    "method named; ties are not worse. Alone: each client trains by itself. With few test examples a share near one "
    "half is what chance alone gives."
)
GLOBAL_SKILL = (
    "Every client's model as it adapts, on its own test examples and on a sample of everybody's: what personalization "
    "gives at home, and costs elsewhere. The change is from s = 0 to s*; negative is forgotten."
)
TARGETS = (
    "Median over seeds (range). “>” means not reached within the run. Gradients: equivalents of one client that takes "
    "part in every round. Bytes: sent and received by the server."
)
DIFFERENCES = "Positive is better."
FINDINGS = "Positive differences speak for a statement. Open one to see its comparisons."
TUNING = (
    "Chosen on validation data of participating clients with seeds of their own; every method had as many points, "
    "but those that take over another method's inner step size."
)


def caption(name: str, *, is_single: bool) -> str:
    """Return the caption of a figure."""
    if is_single and name in _OF_ONE_RUN:
        return _OF_ONE_RUN[name]
    return _CAPTIONS[name]


_CAPTIONS = {
    "adaptation-new": "New clients, never in training. Band: 95 % interval over seeds, for up to six methods.",
    "adaptation-participating": "Participating clients. Band: 95 % interval over seeds, for up to six methods.",
    "privacy-new": "New clients after s* steps, against ε. Bars: lowest and highest seed.",
    "privacy-participating": "Participating clients after s* steps, against ε. Bars: lowest and highest seed.",
    "progress-rounds": "Participating clients after s* steps, against rounds: what communication costs.",
    "progress-gradients": "The same against computation (logarithmic): larger ν costs more for each round.",
    "progress-bytes": "The same against bytes.",
    "clients": "All clients of all seeds after s* steps. Box: middle half; whiskers: 5 and 95 %; line: median.",
    "differences": "Paired differences after s* steps, with Holm-corrected 95 % intervals.",
}
_OF_ONE_RUN = {
    "adaptation-new": "New clients, never in training: mean after each fine-tuning step.",
    "adaptation-participating": "Participating clients: mean after each fine-tuning step.",
    "progress-gradients": "The same against computation (logarithmic).",
    "clients": "All clients after s* steps. Box: middle half; whiskers: 5 and 95 %; line: median.",
}
