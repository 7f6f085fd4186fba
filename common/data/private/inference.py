"""What a run would have to declare of data that lie here: columns, categories, classes and means, guessed from all.

For `nufed draft`, which writes it for a person to look at, and for simulations, which hold everybody's data anyway.
A deployed client infers nothing: the run declares what everybody's data are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nufed.common.data.pool import Array
from nufed.common.data.private.cells import MISSING_WORDS, Cells, Markers, parse_number
from nufed.common.data.private.images import find_form, image_files, is_of_sites, subfolders
from nufed.common.data.private.readers import open_table
from nufed.common.data.private.rows import listed, refusal
from nufed.common.data.private.spec import PrivateSpec
from nufed.common.data.private.task import canonical, parse_categories
from nufed.common.errors import ConfigError, DataError
from nufed.common.statistics import mean_and_scale

MOST_CATEGORIES = 100
"""Values that a column of text may have to be taken for categories, and a label for classes."""

MOST_NUMBERED_CLASSES = 20
"""Whole numbers that a label may have to be taken for a class."""

OPTIONS = (
    *("task", "input_shape", "num_outputs", "class_names", "feature_names", "categories"),
    *("feature_means", "feature_scales", "target_means", "target_scales"),
)
"""Fields of `DataConfig` that describe data."""


@dataclass(frozen=True)
class Inferred:
    """What was found.

    Attributes:
        options: values of `OPTIONS`, by field, as `DataConfig` takes them: lists where lists are meant.
        num_examples: that it was found in.
        reasons: field -> why the value is what it is, for a person.
    """

    options: Mapping[str, Any]
    num_examples: int
    reasons: Mapping[str, str] = field(default_factory=dict)


def infer(spec: PrivateSpec, task: str | None = None, inputs: Sequence[str] = ()) -> Inferred:
    """Return what a run would have to declare of the data that a spec names.

    Args:
        spec: of kind csv, parquet or images.
        task: kind of the task; None guesses it.
        inputs: names of a table's columns that are the inputs, in order; none takes all that are nothing else.

    Raises:
        ConfigError: the spec names no label, or a column that can be neither a number nor a category.
        DataError: the data cannot be read, or there are none.
    """
    if spec.kind in ("csv", "parquet"):
        return _infer_table(spec, task, inputs)
    if spec.kind == "images":
        return _infer_images(spec)
    raise ConfigError(f"--data: nothing can be inferred of {spec.kind}:. Name a csv or parquet file, or images.")


class _Column:
    """What a column holds, seen part by part: its numbers, as long as all cells are some, and its first names."""

    def __init__(self, name: str, markers: Markers) -> None:
        """Begin with no cell."""
        self.name = name
        self.are_numbers = True
        self.names: dict[str, None] = {}
        self.num_known = 0
        self._markers = markers
        self._parts: list[Array] = []

    def add(self, cells: Cells) -> None:
        """Look at some cells."""
        numbers = []
        for cell in cells:
            text = "" if cell is None else cell.strip()
            number = parse_number(text, self._markers.numerals)
            if text in MISSING_WORDS or self._markers.number(text, number):
                continue
            self.num_known += 1
            if number is None:
                self.are_numbers = False
            elif self.are_numbers:
                numbers.append(number)
            if len(self.names) <= MOST_CATEGORIES:
                self.names.setdefault(canonical(text))
        self._parts = [*self._parts, np.array(numbers)] if self.are_numbers else []

    @property
    def numbers(self) -> Array:
        """All its numbers [M], if all its cells are some."""
        return np.concatenate([np.zeros(0), *self._parts])

    @property
    def sorted_names(self) -> list[str]:
        """Its names in the order of their numbers, or of the alphabet."""
        return sorted(self.names, key=lambda name: (parse_number(name) if self.are_numbers else 0, name))

    @property
    def are_whole(self) -> bool:
        """Whether all its numbers are whole ones."""
        return self.are_numbers and bool(np.equal(np.mod(self.numbers, 1), 0).all())


def _infer_table(spec: PrivateSpec, task: str | None, named: Sequence[str]) -> Inferred:
    labels, aside = (
        spec.names("label"),
        {name for kind in ("group", "split", "user", "ignore") for name in spec.names(kind)},
    )
    if not labels:
        raise refusal(ConfigError, "--data names no label. Type ?label=COLUMN behind the path.")
    if both := [name for name in labels if name in aside]:
        raise ConfigError(
            f"--data names the column {both[0]!r} as the label and as something else (group=, split=, user=, ignore=). "
            "Correct it."
        )
    given = parse_categories(spec.options.get("categories", ""), "--data: categories")
    with open_table(spec) as table:
        markers = Markers(spec.names("na"), table.dialect.numerals)
        wanted = [name for name in table.header if (name in {*labels, *named} if named else name not in aside)]
        columns = {name: _Column(name, markers) for name in wanted}
        if absent := [name for name in named if name not in columns]:
            raise ConfigError(
                f"data.feature-names: {absent[0]!r} is no column of {spec.path}. It has: {listed(table.header)}."
            )
        if lacking := [name for name in labels if name not in columns]:
            raise ConfigError(
                f"--data: label={lacking[0]!r} is no column of {spec.path}. It has: {listed(table.header)}."
            )
        num_rows, positions = 0, {name: table.header.index(name) for name in wanted}
        for part in table.parts(sorted(positions.values())):
            num_rows += len(part.numbers)
            for name, column in columns.items():
                column.add(part.cells[positions[name]])
    if not num_rows:
        raise refusal(DataError, "expected examples, but there are none; check --data")
    inputs = [columns[name] for name in named or [each for each in columns if each not in labels]]
    options, reasons = _of_labels([columns[name] for name in labels], spec, task)
    return Inferred({**options, **_of_inputs(inputs, given, num_rows)}, num_rows, reasons)


def _of_inputs(columns: Sequence[_Column], given: Mapping[str, tuple[str, ...]], num_rows: int) -> dict[str, Any]:
    """Return what a run declares of the input columns."""
    if not columns:
        raise refusal(DataError, "expected columns beside the label, but there are none; check --data")
    empty = [column.name for column in columns if not column.num_known and column.name not in given]
    text = [column for column in columns if not column.are_numbers and column.name not in given]
    many = [column.name for column in text if len(column.names) > min(MOST_CATEGORIES, max(2, num_rows // 2))]
    if empty or many:
        what = "hold no value" if empty else "hold text of too many kinds to be categories"
        raise ConfigError(
            f"--data: the columns {listed(empty or many)} {what}. Leave them out with ignore=COLUMN,COLUMN, or declare "
            "their values with categories=COLUMN:VALUE|VALUE."
        )
    categories = {column.name: list(given.get(column.name, column.sorted_names)) for column in text}
    categories |= {name: list(values) for name, values in given.items()}
    numbers = [column for column in columns if column.name not in categories]
    scaling = [mean_and_scale(column.numbers) for column in numbers]
    return {
        "feature_names": [column.name for column in columns],
        "categories": categories,
        "feature_means": [mean for mean, _ in scaling],
        "feature_scales": [scale for _, scale in scaling],
    }


def _of_labels(labels: Sequence[_Column], spec: PrivateSpec, task: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a run declares of what is predicted, and why."""
    numbered = spec.options.get("labels") == "numbers"
    kind, reason = (task, "as typed") if task else _guess(labels, numbered=numbered)
    text = [column.name for column in labels if not column.are_numbers]
    if kind != "classification":
        if text:
            raise ConfigError(
                f"--data: the label {text[0]!r} holds text, which is nothing for {kind}. Name a column of numbers."
            )
        scaling = [mean_and_scale(column.numbers) for column in labels] if kind == "regression" else []
        return {
            "task": kind,
            "num_outputs": len(labels),
            **({"class_names": [column.name for column in labels]} if kind == "multi-label" else {}),
            "target_means": [mean for mean, _ in scaling],
            "target_scales": [scale for _, scale in scaling],
        }, {"task": reason}
    if len(labels) > 1:
        raise ConfigError(f"--data: expected one label column for classes, got {len(labels)}. Name one.")
    label = labels[0]
    if numbered:
        return {"task": kind, "num_outputs": int(label.numbers.max(initial=0)) + 1}, {"task": reason}
    if len(label.names) > MOST_CATEGORIES:
        raise ConfigError(
            f"--data: the label {label.name!r} has more than {MOST_CATEGORIES} values, too many for classes. Name "
            "another column, or type --task regression."
        )
    return {"task": kind, "class_names": label.sorted_names}, {"task": reason}


def _guess(labels: Sequence[_Column], *, numbered: bool) -> tuple[str, str]:
    """Return the kind of a task, and why."""
    if numbered:
        return "classification", "labels=numbers"
    if len(labels) > 1:
        return "regression", f"guessed: {len(labels)} label columns"
    label = labels[0]
    if not label.are_numbers:
        return "classification", f"guessed: the label is text of {len(label.names)} kinds"
    if label.are_whole and len(label.names) <= MOST_NUMBERED_CLASSES:
        return "classification", f"guessed: the label has {len(label.names)} whole numbers"
    return "regression", "guessed: the label is numbers"


def _infer_images(spec: PrivateSpec) -> Inferred:
    if not spec.path.is_dir():
        raise refusal(
            DataError,
            "expected a folder of images where --data says, but there is no such folder; check --data",
            "there is no folder %s",
            spec.path,
        )
    sites = [spec.path] if "user" in spec.options or not is_of_sites(spec.path) else subfolders(spec.path)
    classes = [path for site in sites for path in subfolders(site)]
    names = sorted({canonical(path.name) for path in classes}, key=lambda name: (parse_number(name) or 0, name))
    if not names:
        raise refusal(DataError, "expected one folder of images per class, but there are none; check --data")
    options = {"task": "classification", "input_shape": list(find_form(spec, classes)), "class_names": names}
    return Inferred(options, sum(len(image_files(path)) for path in classes), {"task": "folders are classes"})
