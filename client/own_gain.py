"""What a client learns of its own fine-tuning where the run withholds evaluations: told at home, and to nobody else."""

from collections.abc import Mapping

from torch import Tensor

from nufed.client.personalize import adaptation_curves
from nufed.client.workplace import Workplace
from nufed.common.data.private.rows import tell_here
from nufed.common.metrics import judging


def tell_own_gain(place: Workplace, params: Mapping[str, Tensor]) -> None:
    """Log what the run's model gets on this client's test split before and after fine-tuning."""
    name, step = judging(place.config.evaluation, place.task).primary, place.config.evaluation.primary_step
    curve = adaptation_curves(place, params)[f"test-{name}"]
    tell_here(
        "%s: %s on %d test examples of its own is %.4g before and %.4g after %d fine-tuning steps; nobody else is told",
        *(place.data.client_id, name, len(place.data.test), curve[0], curve[step], step),
    )
