"""Options of the evaluation: the adaptation curve and when it is drawn."""

from typing import Self

from pydantic import Field, model_validator

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section

MOST_SHOTS = 32
"""Numbers of support examples that one evaluation can draw curves for."""


class EvaluationConfig(Section):
    """Adaptation curves: fine-tune the server model on the support split, judge it on the test split."""

    num_adapt_steps: int = Field(10, ge=0, le=10_000, description="S, steps of the adaptation curve")
    adapt_lr: float = Field(0.0, ge=0, le=1e3, description="step size at test time; 0 is inner-lr")
    adapt_batch_size: int = Field(
        0, ge=0, le=1_000_000, description="examples in a step at test time; 0 takes all of the support split"
    )
    primary_step: int = Field(5, ge=0, le=10_000, description="s*, the step that single numbers are quoted at")
    interval: int = Field(
        10, ge=0, le=10_000_000, description="rounds between evaluations; 0 evaluates at the end only"
    )
    num_clients: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="clients of each group that judge the model, the same along the run; 0 asks all",
    )
    metrics: str = Field("auto", min_length=1, max_length=500, description="what models are judged by, e.g. auto,f1")
    primary_metric: str = Field(
        "auto", min_length=1, max_length=100, description="the metric that single numbers, targets and tuning are about"
    )
    target_metric: float = Field(
        0.0, ge=-1e9, le=1e9, description="primary metric at s* whose first round is reported; 0 reports none"
    )
    target_accuracy: float = Field(0.0, ge=0, le=1, description="target-metric where the primary metric is accuracy")
    report_counts: bool = Field(
        False, description="have clients report how many test examples of each class they take for each"
    )
    global_examples: int = Field(
        0,
        ge=0,
        le=100_000,
        description="test examples of all participating clients together that each fine-tuned model is judged on too, "
        "at the end: what fine-tuning costs in global skill (simulations); 0 judges on none",
    )
    shots: str = Field(
        "",
        pattern=r"^( *[1-9]\d{0,6} *(, *[1-9]\d{0,6} *)*)?$",
        json_schema_extra={LIST: "numbers"},
        description="numbers of support examples, per class where there are classes, e.g. 1,2,5,10: the final "
        "evaluation draws a curve for each",
    )

    @property
    def shot_sizes(self) -> tuple[int, ...]:
        """Return the numbers of `shots`, the smallest first."""
        return tuple(sorted(int(size) for size in self.shots.split(","))) if self.shots.strip() else ()

    @model_validator(mode="after")
    def _shots_are_distinct(self) -> Self:
        sizes = self.shot_sizes
        if len(set(sizes)) < len(sizes) or len(sizes) > MOST_SHOTS:
            raise ValueError(
                f"shots={self.shots!r} is refused: expected at most {MOST_SHOTS} numbers, each once; correct the list"
            )
        return self

    @model_validator(mode="after")
    def _primary_step_is_on_the_curve(self) -> Self:
        if self.primary_step > self.num_adapt_steps:
            raise ValueError(
                f"primary-step={self.primary_step} lies beyond the curve, which ends at "
                f"num-adapt-steps={self.num_adapt_steps}; raise num-adapt-steps or lower primary-step"
            )
        return self

    @model_validator(mode="after")
    def _there_is_one_target(self) -> Self:
        if self.target_metric and self.target_accuracy and self.target_metric != self.target_accuracy:
            raise ValueError(
                f"target-accuracy={self.target_accuracy:g} contradicts target-metric={self.target_metric:g}; leave one "
                "of them out"
            )
        return self

    def target(self, measure: str) -> float:
        """Return the target of what a run is judged by; 0 for none."""
        return self.target_metric or (self.target_accuracy if measure == "accuracy" else 0.0)
