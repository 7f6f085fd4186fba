"""What contradicts what in a run with differential privacy or secure aggregation: refused before the run starts.

Each row is a combination of options that would run and not be what it says: a guarantee that does not hold, or an
option without a meaning. docs/privacy.md shows the same table.
"""

from collections.abc import Sequence

from nufed.common.config import RunConfig
from nufed.common.config.method import has_own_inner_steps
from nufed.common.errors import ConfigError
from nufed.common.privacy.contradiction import (
    Contradiction,
    differs,
    ends_early,
    has_dp,
    is_record,
    is_secure,
    publishes,
    scales_own_targets,
    scales_run_wide,
)
from nufed.common.privacy.publishing import published_names

SMALLEST_COHORT = 3
"""Clients in a round of secure aggregation: of two, each learns the other's model from the sum."""

CONTRADICTIONS: tuple[Contradiction, ...] = (
    Contradiction(
        "dp-without-clip",
        lambda config: has_dp(config) and not config.privacy.clip,
        "privacy.dp={privacy.dp} needs privacy.clip, the length C that bounds what one client or example can change",
        "Give --dp-clip C, about the length of a usual update (dp client) or gradient (dp record)",
        of_strategy=True,
    ),
    Contradiction(
        "dp-without-noise",
        lambda config: has_dp(config) and not config.privacy.noise and not config.privacy.epsilon,
        "privacy.dp={privacy.dp} without noise protects nobody: ε is infinite",
        "Give --dp-epsilon E, for which the noise is found, or --dp-noise z",
        of_strategy=True,
    ),
    Contradiction(
        "dp-options-without-dp",
        lambda config: not has_dp(config) and differs(config, "clip", "noise", "epsilon", "delta"),
        "privacy.clip, noise, epsilon and delta have no meaning without privacy.dp, and the run would protect nobody",
        "Give --dp client or --dp record, or leave them out",
        of_strategy=True,
    ),
    Contradiction(
        "hvp-clip-without-record-dp",
        lambda config: config.privacy.dp != "record" and differs(config, "hvp_clip"),
        "privacy.hvp-clip={privacy.hvp_clip:g} has no meaning with privacy.dp={privacy.dp}: only --dp record clips "
        "Hessian-vector products",
        "Leave it out",
        of_strategy=True,
    ),
    Contradiction(
        "cohort-cap-without-client-dp",
        lambda config: config.privacy.dp != "client" and differs(config, "cohort_cap"),
        "privacy.cohort-cap={privacy.cohort_cap:g} has no meaning with privacy.dp={privacy.dp}: only --dp client draws "
        "rounds of varying size",
        "Leave it out",
        of_strategy=True,
    ),
    Contradiction(
        "delta-too-large",
        lambda config: config.privacy.dp == "client" and config.privacy.delta * config.data.num_clients >= 1,
        "privacy.delta={privacy.delta:g} is not below 1/n for n = {data.num_clients} clients, and would allow that "
        "everything of one of them is published",
        "Leave --dp-delta out, which takes n^-1.1, or give a smaller one",
    ),
    Contradiction(
        "robust-means-with-client-dp",
        lambda config: config.privacy.dp == "client" and config.federation.aggregation != "mean",
        "privacy.dp=client contradicts federation.aggregation={federation.aggregation}: the noise is that of a sum of "
        "clipped updates, and one client can change a robust mean by more",
        "Set federation.aggregation to mean (clipping bounds what an attacker can do), or leave --dp client out",
        of_strategy=True,
    ),
    Contradiction(
        "example-weights-with-dp",
        lambda config: has_dp(config) and config.federation.weighting == "examples",
        "privacy.dp={privacy.dp} contradicts federation.weighting=examples: a client with many examples would count "
        "for more than the clipping length, and numbers of examples are not covered by ε",
        "Set --weighting uniform",
        of_strategy=True,
    ),
    Contradiction(
        "observed-step-sizes-with-client-dp",
        lambda config: config.privacy.dp == "client" and config.method.step_sizes == "observed",
        "privacy.dp=client contradicts method.step-sizes=observed: sums of squares are far smaller than the noise that "
        "covers the model, which would make them negative",
        "Set method.step-sizes to fixed or learned, or leave --dp client out",
    ),
    Contradiction(
        "early-end-of-rounds-with-client-dp",
        lambda config: config.privacy.dp == "client" and config.federation.min_reply_fraction < 1,
        "privacy.dp=client contradicts federation.min-reply-fraction={federation.min_reply_fraction:g}: one client "
        "more could decide whose late reply is left out, and so change the sum by more than its own clipped update",
        "Leave min-reply-fraction at 1, and give a round-timeout that does not depend on who has answered",
        of_strategy=True,
    ),
    Contradiction(
        "over-selection-with-client-dp",
        lambda config: config.privacy.dp == "client" and config.federation.over_selection > 0,
        "privacy.dp=client contradicts federation.over-selection={federation.over_selection:g}: whose update is in the "
        "sum would depend on who else was drawn, so that one client changes it by two clipped updates",
        "Leave over-selection at 0, and end rounds by a round-timeout",
        of_strategy=True,
    ),
    Contradiction(
        "buffered-mode-with-client-dp",
        lambda config: config.privacy.dp == "client" and config.federation.mode == "buffered",
        "privacy.dp=client contradicts federation.mode=buffered: ε counts on clients being drawn",
        "Set mode to synchronous, or choose --dp record",
        of_strategy=True,
    ),
    Contradiction(
        "local-training-with-dp",
        lambda config: has_dp(config) and config.federation.training == "local",
        "privacy.dp={privacy.dp} contradicts federation.training=local, where clients send no model to be protected",
        "Leave --dp out, or set federation.training to federated",
    ),
    Contradiction(
        "client-curves-outside-simulations",
        lambda config: has_dp(config) and config.data.source == "private" and publishes(config, "client-curves"),
        "privacy.publish=client-curves contradicts data.source=private: the curve of a client tells of its own data, "
        "and ε covers none of it",
        "Publish evaluation, which is means over clients, or nothing: each client finds its own curve in its log and "
        "personal model",
    ),
    Contradiction(
        "federated-statistics-with-dp",
        lambda config: has_dp(config) and config.data.scale == "federated" and not publishes(config, "statistics"),
        "privacy.dp={privacy.dp} contradicts data.scale=federated: what clients tell of their columns has no noise, "
        "and ε does not cover it",
        "Give data.feature-means and data.feature-scales that are known without these data, leave data.scale at given "
        "(with --dp client, each client may then scale by its own: scale=local in --data), or accept it with "
        "--publish statistics",
    ),
    Contradiction(
        "run-wide-scales-with-dp",
        lambda config: has_dp(config) and scales_run_wide(config) and not publishes(config, "statistics"),
        "privacy.dp={privacy.dp} contradicts data.input-scale={data.input_scale} with data.target-scale="
        "{data.target_scale}: run takes means and scales of all clients' data without noise, and they are part of the "
        "published model",
        "Set them to none and give data in a suitable unit, give data.target-means and data.target-scales that are "
        "known without these data, or accept it with --publish statistics",
    ),
    Contradiction(
        "counts-with-dp",
        lambda config: (
            has_dp(config) and config.evaluation.report_counts and not publishes(config, "evaluation", "examples")
        ),
        "privacy.dp={privacy.dp} contradicts evaluation.report-counts: counts of test examples have no noise, and ε "
        "does not cover them",
        "Leave report-counts out, or accept it with --publish evaluation,examples",
    ),
    Contradiction(
        "shots-with-dp",
        lambda config: (
            has_dp(config)
            and bool(config.evaluation.shots)
            and not publishes(config, "evaluation", "client-curves", "examples")
        ),
        "privacy.dp={privacy.dp} contradicts evaluation.shots={evaluation.shots}: its curves and tables tell of single "
        "clients and of how many examples they have",
        "Leave shots out, or, in a simulation, accept it with --publish evaluation,client-curves,examples",
    ),
    Contradiction(
        "target-with-dp",
        lambda config: (
            has_dp(config)
            and bool(config.evaluation.target_metric or config.evaluation.target_accuracy)
            and not publishes(config, "evaluation")
        ),
        "privacy.dp={privacy.dp} contradicts evaluation.target-metric and target-accuracy: evaluations are withheld, "
        "and nobody would see when the target is reached",
        "Leave the target out, or have evaluations shown, outside ε, with --publish evaluation",
    ),
    Contradiction(
        "hessian-free-with-record-dp",
        lambda config: is_record(config) and config.method.estimator == "hessian-free",
        "privacy.dp=record contradicts method.estimator=hessian-free: the difference of two noised gradients, divided "
        "by a small displacement, is nothing but noise",
        "Set --estimator exact, unrolled or first-order",
    ),
    Contradiction(
        "other-inner-steps-with-record-dp",
        lambda config: is_record(config) and has_own_inner_steps(config.method),
        "privacy.dp=record contradicts method.objective={method.objective} with method.step-sizes={method.step_sizes} "
        "and method.adapted-part={method.adapted_part}: clipped and noised inner steps exist of one size, for all "
        "parameters, in the fine-tuned objective",
        "Set objective=fine-tuned, step-sizes=fixed and adapted-part=all",
    ),
    Contradiction(
        "own-part-with-record-dp",
        lambda config: is_record(config) and config.method.client_state in ("head", "body"),
        "privacy.dp=record contradicts method.client-state={method.client_state}: a client's own part is fitted to its "
        "records without noise, and the gradients of the shared part, which are sent, depend on it",
        "Set client-state to none or model (a model of its own is never sent)",
    ),
    Contradiction(
        "untrained-part-with-client-dp",
        lambda config: (
            config.privacy.dp == "client"
            and (config.method.trained_part == "body" or config.method.client_state in ("head", "body"))
        ),
        "privacy.dp=client contradicts method.trained-part={method.trained_part} with method.client-state="
        "{method.client_state}: the server adds noise to the whole model, also to the part that no client trains for "
        "all, from which new clients start",
        "Set trained-part=all, and client-state to none or model",
    ),
    Contradiction(
        "compile-with-record-dp",
        lambda config: is_record(config) and config.method.compile == "on",
        "privacy.dp=record contradicts method.compile=on: what is compiled is the gradient of a whole batch, and "
        "examples are clipped one by one",
        "Leave --compile off",
    ),
    Contradiction(
        "class-weights-with-record-dp",
        lambda config: is_record(config) and config.task.class_weights != "none",
        "privacy.dp=record contradicts task.class-weights={task.class_weights}: weights are made 1 on average over a "
        "client's examples, so that one record changes those of all others",
        "Set task.class-weights to none",
    ),
    Contradiction(
        "local-target-scale-with-record-dp",
        lambda config: is_record(config) and scales_own_targets(config),
        "privacy.dp=record contradicts data.target-scale={data.target_scale}: each client scales values to predict by "
        "the mean and deviation of its own records, so that one of them changes the targets of all others",
        "Give data.target-means and data.target-scales that are known without these data, or set data.target-scale to "
        "none",
    ),
    Contradiction(
        "holdout-with-record-dp",
        lambda config: is_record(config) and config.method.outer_holdout_fraction > 0,
        "privacy.dp=record contradicts method.outer-holdout-fraction={method.outer_holdout_fraction:g}: ε counts each "
        "record in batches of every kind",
        "Leave method.outer-holdout-fraction at 0",
    ),
    Contradiction(
        "few-support-examples-with-record-dp",
        lambda config: is_record(config) and config.data.support_examples > 0,
        "privacy.dp=record contradicts data.support-examples={data.support_examples}: which records are among the few "
        "depends on the others",
        "Leave data.support-examples at 0",
    ),
    Contradiction(
        "robust-means-with-secure-aggregation",
        lambda config: is_secure(config) and config.federation.aggregation != "mean",
        "privacy.secure-aggregation contradicts federation.aggregation={federation.aggregation}: a robust mean "
        "compares clients' models, and the server sees their sum alone",
        "Set federation.aggregation to mean, or leave --secure-aggregation out",
        of_strategy=True,
    ),
    Contradiction(
        "small-cohort-with-secure-aggregation",
        lambda config: (
            is_secure(config) and config.federation.participation_fraction * config.data.num_clients < SMALLEST_COHORT
        ),
        "privacy.secure-aggregation needs 3 clients in a round, and participation-fraction="
        "{federation.participation_fraction:g} of {data.num_clients} clients are fewer: in a sum of two, each finds "
        "the other's model",
        "Ask more clients in a round (--fraction), or leave --secure-aggregation out",
    ),
    Contradiction(
        "early-end-of-rounds-with-secure-aggregation",
        lambda config: is_secure(config) and config.federation.min_reply_fraction < config.privacy.secure_threshold,
        "federation.min-reply-fraction={federation.min_reply_fraction:g} is below privacy.secure-threshold="
        "{privacy.secure_threshold:g}: a round that ends with so few models has no sum",
        "Raise min-reply-fraction, or lower secure-threshold, which stays above 0.5",
    ),
    Contradiction(
        "over-selection-with-secure-aggregation",
        lambda config: is_secure(config) and ends_early(config),
        "federation.over-selection={federation.over_selection:g} lets a round end with fewer of the clients "
        "asked than privacy.secure-threshold={privacy.secure_threshold:g}: it has no sum",
        "Lower over-selection, or secure-threshold, which stays above 0.5",
        of_strategy=True,
    ),
    Contradiction(
        "buffered-mode-with-secure-aggregation",
        lambda config: is_secure(config) and config.federation.mode == "buffered",
        "privacy.secure-aggregation contradicts federation.mode=buffered: masks cancel among clients of one round",
        "Set mode to synchronous, with over-selection against stragglers, or leave --secure-aggregation out",
        of_strategy=True,
    ),
    Contradiction(
        "local-training-with-secure-aggregation",
        lambda config: is_secure(config) and config.federation.training == "local",
        "privacy.secure-aggregation contradicts federation.training=local, where clients send no model to be summed",
        "Leave --secure-aggregation out, or set federation.training to federated",
    ),
    Contradiction(
        "secure-options-without-secure-aggregation",
        lambda config: not is_secure(config) and differs(config, "secure_threshold", "secure_neighbours"),
        "privacy.secure-threshold and secure-neighbours have no meaning without privacy.secure-aggregation, and the "
        "server would see every model",
        "Give --secure-aggregation, or leave them out",
        of_strategy=True,
    ),
)
"""In the order in which they are looked for."""


def check_scales(config: RunConfig, found: Sequence[str]) -> None:
    """Refuse means and scales that a simulation has taken of all clients' data, unless they are published by name.

    Args:
        config: the run's options as they were given.
        found: which there are, e.g. `data.target-means`.

    Raises:
        ConfigError: there are some, and ε covers none of them.
    """
    if found and has_dp(config) and not publishes(config, "statistics"):
        raise ConfigError(
            f"privacy.dp={config.privacy.dp} contradicts {' and '.join(found)} of all clients' data, which have no "
            "noise and would be part of the published model. Give means and scales that are known without these data "
            "(0 and 1 leave values as they are), set data.input-scale and data.target-scale to none, or accept it with "
            "--publish statistics."
        )


def check_attack(config: RunConfig, attack: str) -> None:
    """Refuse an attack on models that nobody sees under secure aggregation.

    Raises:
        ConfigError: with what to change.
    """
    if is_secure(config) and attack != "label-flip":
        raise ConfigError(
            f"--attack {attack} contradicts privacy.secure-aggregation: it changes models on their way to the server, "
            "and what is on its way is masked. Choose --attack label-flip, which changes what clients train on, or "
            "leave --secure-aggregation out."
        )


def check_privacy(config: RunConfig) -> None:
    """Refuse a run whose options of privacy contradict each other or the rest, before it starts.

    Raises:
        ConfigError: with the reason and what to change.
    """
    _check(config, CONTRADICTIONS)


def check_strategy_privacy(config: RunConfig) -> None:
    """Refuse what contradicts in the arguments of a strategy, which knows options of privacy and federation alone.

    Raises:
        ConfigError: with the reason and what to change.
    """
    _check(config, [row for row in CONTRADICTIONS if row.of_strategy])


def _check(config: RunConfig, rows: "tuple[Contradiction, ...] | list[Contradiction]") -> None:
    published_names(config)
    for row in rows:
        if row.applies(config):
            raise ConfigError(row.message(config))
