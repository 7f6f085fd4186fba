"""Options of the data: where the examples come from and how they are dealt."""

import re
from typing import Literal

from pydantic import Field, field_validator

from nufed.common.config.lists import LIST
from nufed.common.config.section import Section
from nufed.common.errors import nearest_match_hint

_SHAPE, _TYPE = r"[1-9]\d{0,6}(,[1-9]\d{0,6})*", "(float|integer|boolean)"
_PART = rf"{_SHAPE}(:{_TYPE})?"
TASK_KINDS = ("classification", "regression", "multi-label", "counts", "segmentation", "tokens")
"""What `data.task` may say, beside python:module:function and what is given in Python."""


class DataConfig(Section):
    """Where the examples come from and how they are dealt to clients."""

    source: str = Field(
        "digits",
        description="name of a data source, csv:FILE?label=COLUMN&user=COLUMN, parquet:, images:, npz:PATH, "
        "python:module:function, or private: each client's own",
    )
    partition: Literal["iid", "dirichlet", "classes", "by-user", "per-fedavg"] = Field(
        "classes",
        description="how examples are dealt; sources that are federations by nature always use by-user",
    )
    dirichlet_alpha: float = Field(0.3, gt=0, le=1e6, description="Dirichlet concentration; small is heterogeneous")
    classes_per_client: int = Field(
        2, ge=1, le=10_000, description="classes that each client holds (partition classes)"
    )
    num_clients: int = Field(20, ge=1, le=1_000_000, description="participating clients, n")
    num_new_clients: int = Field(10, ge=0, le=1_000_000, description="clients that never take part in training")
    new_users: Literal["auto", "drawn"] = Field(
        "auto",
        description="who are the new clients of by-user: auto takes users that the source has for that (x_new), drawn "
        "draws them from the same users as participating ones",
    )
    transform: Literal["none", "rotate", "permute-labels", "two-groups"] = Field(
        "none", description="what each client sees its examples through, drawn for each client"
    )
    transform_strength: float = Field(
        1.0, ge=0, le=1, description="how far transforms differ between clients: of ±180 degrees, or of the classes"
    )
    test_fraction: float = Field(0.25, gt=0, lt=1, description="share of each client's data kept for the test")
    validation_fraction: float = Field(
        0.15, ge=0, lt=1, description="share of each client's remaining data kept for validation"
    )
    support_examples: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="examples that a participating client trains on, per class where there are classes; 0 takes all",
    )
    new_support_examples: int = Field(
        0, ge=0, le=1_000_000, description="examples that a new client adapts to, likewise; 0 takes all"
    )
    input_scale: Literal["auto", "none", "run"] = Field(
        "auto",
        description="whether a simulation scales arrays run-wide (npz, python, Python); auto where inputs are large",
    )
    target_scale: Literal["auto", "none", "run", "local"] = Field(
        "auto",
        description="how values to predict are scaled: run-wide, by each client's support split, or not; auto chooses",
    )
    target_means: str = Field(
        "",
        json_schema_extra={LIST: "numbers"},
        description="mean of each value to predict, comma-separated or a list, for scaling run-wide",
    )
    target_scales: str = Field(
        "",
        json_schema_extra={LIST: "numbers"},
        description="standard deviation of each; given with target-means",
    )
    task: str = Field(
        "classification",
        description="what the data are for: classification, regression, multi-label, counts, segmentation, tokens, or "
        "python:module:function; arrays that say nothing are classes if whole numbers and else values",
    )
    input_shape: str = Field(
        "",
        pattern=rf"^({_PART}|[A-Za-z_]\w*:({_PART}|:{_TYPE})(;[A-Za-z_]\w*:({_PART}|:{_TYPE}))*)?$",
        json_schema_extra={LIST: "numbers"},
        description="shape of one input, e.g. 13 or 1,28,28, or of several, e.g. ids:16:integer;mask:16:boolean "
        "(source private); empty counts feature-names",
    )
    target_shape: str = Field(
        "",
        pattern=rf"^({_SHAPE})?$",
        json_schema_extra={LIST: "numbers"},
        description="shape of one target (source private) of segmentation and tokens; empty takes it from the input",
    )
    input_type: Literal["auto", "float", "integer"] = Field(
        "auto",
        description="what whole numbers in one array of inputs become: auto keeps them as ids where task=tokens",
    )
    num_outputs: int = Field(
        0,
        ge=0,
        le=10_000_000,
        description="classes or predicted values (source private, or where arrays cannot tell all classes); 0 counts "
        "class-names, or is 1",
    )
    class_names: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="names of the classes in label order, comma-separated or a list (source private)",
    )
    feature_names: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="columns that are the inputs, in order, comma-separated or a list (source private)",
    )
    categories: str = Field(
        "",
        json_schema_extra={LIST: "table"},
        description="columns to encode one-hot, e.g. sex:f|m;thal:3|6|7 or a table, with their values (source private)",
    )
    indicators: str = Field(
        "",
        json_schema_extra={LIST: "names"},
        description="columns of feature-names with a further input, 1 where the cell is empty (source private)",
    )
    scale: Literal["given", "federated"] = Field(
        "given",
        description="where feature-means and feature-scales come from: as given, or from statistics that clients tell "
        "before round 1 (source private)",
    )
    statistics_min_count: int = Field(
        10, ge=2, le=1_000_000, description="examples that everything a client tells then is made of, at least"
    )
    feature_means: str = Field(
        "",
        json_schema_extra={LIST: "numbers"},
        description="mean of each column of feature-names without categories, for scaling (source private)",
    )
    feature_scales: str = Field(
        "",
        json_schema_extra={LIST: "numbers"},
        description="standard deviation of each such column; given with feature-means (source private)",
    )

    @property
    def keeps_integers(self) -> bool:
        """Return whether whole numbers in one array of inputs stay ids, instead of becoming numbers like any other."""
        return self.input_type == "integer" or (self.input_type == "auto" and self.task == "tokens")

    @field_validator("task")
    @classmethod
    def _task_is_known(cls, value: str) -> str:
        if value not in TASK_KINDS and not re.fullmatch(r"python:[\w.]+:\w+|given:[0-9a-f]{16}", value):
            raise ValueError(
                f"task={value!r} is unknown.{nearest_match_hint(value, TASK_KINDS)} Or python:module:function"
            )
        return value
