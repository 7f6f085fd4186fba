"""Published numbers beside ours, from the folders of finished experiments.

    python -m benchmarks.field RESULTS --markdown docs/field.md

RESULTS holds one folder for each suite, as `nufed experiment` makes them (`results/pfllib-fashion-mnist`, …). Each
table takes the place of its section between `begin` and `end` marks; a suite that is not there leaves its section.

The publications count test examples of all clients together, so a client weighs as many times as it has them. Ours is
pooled in the same way, after as many fine-tuning steps as the publication judges that method by; intervals are of t
over seeds.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nufed.common.durable_file import write_text
from nufed.common.examples import Group
from nufed.deploy.experiments.comparison import Comparison
from nufed.deploy.experiments.conduct import RECORD
from nufed.deploy.experiments.finished import ClientTable, FinishedRun
from nufed.deploy.experiments.report_documents import with_section
from nufed.deploy.experiments.report_markdown import markdown_table
from nufed.deploy.experiments.report_tables import TextTable
from nufed.deploy.experiments.statistics import Grain, Interval, t_interval
from nufed.deploy.experiments.story import read_story
from nufed.deploy.experiments.wording import estimate
from nufed.server.progress_lines import duration

MEASURE = "accuracy"


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        published: number as published, in percent; empty for none.
        method: of our suite; empty where we have none.
        step: fine-tuning steps after which the publication judges this method.
        label: what the publication calls it; empty for our name.
    """

    published: str
    method: str
    step: int = 0
    label: str = ""


@dataclass(frozen=True)
class Board:
    """A published table.

    Attributes:
        name: of the section.
        suite: of ours, and of the folder of its results.
        setting: of the suite.
        rows: methods that both have, or one of the two.
    """

    name: str
    suite: str
    setting: str
    rows: Sequence[Row]


def _pfllib(setting: str, best: tuple[str, str], numbers: Mapping[str, str]) -> Board:
    """Return one of PFLlib's tables of FashionMNIST.

    Args:
        setting: of our suite.
        best: the leader, and its number.
        numbers: as published, by our methods.
    """
    leader, its_number = best
    rows = (
        Row(its_number, "", label=f"{leader}, the best"),
        Row(numbers["fedavg"], "fedavg", label="FedAvg"),
        Row("", "fedavg", 5),
        Row(numbers["per-fedavg-fo"], "per-fedavg-fo", 1, "Per-FedAvg (FO)"),
        Row("", "per-fedavg-fo", 5, "Per-FedAvg (FO)"),
        Row(numbers["fedper"], "fedper", label="FedPer"),
        Row(numbers["fedbabu"], "fedbabu", 5, "FedBABU"),
        Row(numbers["ditto"], "ditto", label="Ditto"),
        Row("", "fo-2", 2),
        Row("", "meta-2", 2),
        Row("", "local-only"),
    )
    return Board(f"pfllib-{setting}", "pfllib-fashion-mnist", setting, rows)


BOARDS = (
    _pfllib(
        "dirichlet",
        ("FedCP", "97.89 ± 0.05"),
        {
            "fedavg": "85.85 ± 0.19",
            "per-fedavg-fo": "95.10 ± 0.10",
            "fedper": "97.44 ± 0.06",
            "fedbabu": "97.46 ± 0.07",
            "ditto": "97.47 ± 0.04",
        },
    ),
    _pfllib(
        "two-classes",
        ("GPFL", "99.85 ± 0.08"),
        {
            "fedavg": "80.41 ± 0.08",
            "per-fedavg-fo": "99.18 ± 0.08",
            "fedper": "99.47 ± 0.03",
            "fedbabu": "99.41 ± 0.05",
            "ditto": "99.44 ± 0.06",
        },
    ),
    Board(
        "fedu-mnist",
        "fedu-mnist",
        "",
        (
            Row("97.84 ± 0.02", "", label="FedU, the best"),
            Row("95.38 ± 0.09", "", label="pFedMe"),
            Row("90.14 ± 0.61", "fedavg", label="FedAvg"),
            Row("", "fedavg", 5),
            Row("91.77 ± 0.23", "per-fedavg-short", 1, "Per-FedAvg, five short steps"),
            Row("", "per-fedavg-short", 5, "Per-FedAvg, five short steps"),
            Row("", "per-fedavg", 1),
            Row("", "per-fedavg", 5),
            Row("", "meta-2", 2),
            Row("", "fo-5", 5),
            Row("", "local-only"),
        ),
    ),
    Board(
        "pfl-bench-femnist",
        "pfl-bench-femnist",
        "",
        (
            Row("79.9", "", label="FedEM, the best"),
            Row("78.6", "fedavg", label="FedAvg"),
            Row("75.3", "fedavg", 5, "FedAvg + fine-tuning"),
            Row("71.0", "local-only", label="local only"),
            Row("", "per-fedavg-fo", 1),
            Row("", "per-fedavg-fo", 5),
            Row("", "fedper"),
            Row("", "ditto"),
            Row("", "meta-2", 5),
        ),
    ),
)


def pooled(table: ClientTable, step: int) -> float:
    """Return the share of right answers among all clients' test examples after a step; NaN if a client diverged."""
    return float(np.average(table.curves(MEASURE)[:, step], weights=table.num_test))


def over_seeds(runs: Sequence[FinishedRun], group: Group, step: int) -> Interval:
    """Return the pooled accuracy, mean over seeds with its interval."""
    tables = [run.groups[group] for run in runs]
    example = float(np.mean([1 / table.num_test.sum() for table in tables]))
    return t_interval([pooled(table, step) for table in tables], grain=Grain(example))


def board_table(board: Board, comparison: Comparison) -> TextTable:
    """Return the published table with ours beside it, on participating and on new clients."""
    return TextTable(["method", "s", "published", "ours", "ours, new clients"], list(_cells(board, comparison)))


def _cells(board: Board, comparison: Comparison) -> Iterator[list[str]]:
    groups: tuple[Group, Group] = ("participating", "new")
    for row in board.rows:
        runs = [run for _, run in sorted(comparison.runs.get(row.method, {}).items())]
        if not runs:
            if row.published:
                yield [row.label, "", row.published, "not run" if row.method else "", ""]
            continue
        label = row.label or comparison.labels[row.method]
        ours = [
            estimate(over_seeds(runs, group, row.step), MEASURE) if group in comparison.groups else ""
            for group in groups
        ]
        yield [label, str(row.step), row.published, *ours]


def _provenance(comparison: Comparison, record: dict[str, object]) -> str:
    federation, method = comparison.first.config.federation, comparison.first.config.method
    return (
        f"`{record['command']}`; {len(comparison.seeds)} seeds, {federation.num_rounds} rounds of "
        f"{method.num_local_steps} local steps; {record['processor']}, one thread; final runs "
        f"{duration(float(str(record['final_run_seconds'])))} in all; torch {record['torch']}, flwr {record['flwr']}."
    )


def sections(root: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the Markdown of each table whose suite was run to its end below `root`."""
    stories = {
        board.suite: read_story(root / board.suite) for board in BOARDS if (root / board.suite / RECORD).is_file()
    }
    for board in BOARDS:
        if board.suite not in stories:
            continue
        story = stories[board.suite]
        for graded in story.settings:
            if graded.name == board.setting:
                text = markdown_table(board_table(board, graded.comparison))
                yield board.name, f"{text}\n\n{_provenance(graded.comparison, dict(story.record))}"


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder with one folder of results for each suite")
    parser.add_argument("--markdown", type=Path, required=True, help="document whose sections are written")
    options = parser.parse_args()
    document = options.markdown.read_text(encoding="utf-8")
    for name, text in sections(options.results):
        document = with_section(document, name, text)
    write_text(options.markdown, document)


if __name__ == "__main__":
    main()
