"""Simulated time to a target accuracy with slow clients: synchronous rounds, over-selection and buffered steps.

    python -m benchmarks.stragglers                    digits, three seeds: some minutes on one core
    python -m benchmarks.stragglers --dataset mnist --data-root data
    python -m benchmarks.stragglers --quick            one seed, few rounds, nothing is written

Two of 20 clients take ten times as long as the others. Every way takes the same number of replies, and is
judged after every ten of them, by all clients after five fine-tuning steps. The tables go into docs/stragglers.md.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nufed.common.config import RunConfig
from nufed.common.events import EventStream
from nufed.common.settings import environment
from nufed.deploy.simulation.engines import clock_of, simulate_checked
from nufed.server.options import ServerOptions

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "stragglers.md"
REPLIES = 10
"""Replies that a synchronous round needs, and between two evaluations of every way."""
TARGETS = {"digits": 0.9, "mnist": 0.9}

BASE = {
    "data.num-clients": 20,
    "data.num-new-clients": 0,
    "data.partition": "classes",
    "federation.participation-fraction": REPLIES / 20,
    "federation.client-speeds": "slow:0.1:10",
    "evaluation.primary-step": 5,
    "evaluation.num-adapt-steps": 5,
}
OF_DATASET = {"digits": {"data.source": "digits"}, "mnist": {"data.source": "mnist"}}


@dataclass(frozen=True)
class Way:
    """A way of meeting slow clients.

    Attributes:
        name: in the tables.
        replies: that a step is made of.
        options: what it sets.
    """

    name: str
    replies: int
    options: dict[str, str | int | float]


def buffered(size: int) -> Way:
    """Return buffered steps of so many replies, with as many clients at work as a round asks."""
    return Way(f"buffered, b = {size}", size, {"federation.mode": "buffered", "federation.buffer-size": size})


WAYS = (
    Way("synchronous", REPLIES, {}),
    Way("over-selection 0.3", REPLIES, {"federation.over-selection": 0.3}),
    buffered(2),
    buffered(5),
    buffered(10),
)


@dataclass(frozen=True)
class Outcome:
    """What one run came to.

    Attributes:
        seconds: simulated time until the target was reached; None if it was not.
        total: simulated time of the whole run.
        after: mean accuracy of all clients at the end, after five fine-tuning steps.
        slow: that of the slow clients.
    """

    seconds: float | None
    total: float
    after: float
    slow: float


def run(dataset: str, way: Way, num_inner_steps: int, seed: int, num_replies: int) -> Outcome:
    """Return what one run came to."""
    options = {**BASE, **OF_DATASET[dataset], **way.options, "seed": seed, "method.num-inner-steps": num_inner_steps}
    options |= {"federation.num-rounds": num_replies // way.replies, "evaluation.interval": REPLIES // way.replies}
    config = RunConfig.parse(options)
    clock = clock_of(config)
    with tempfile.TemporaryDirectory() as folder, EventStream() as events:
        simulate_checked(config, ServerOptions(out=Path(folder), events=events), engine="cohort")
        (left,) = Path(folder).iterdir()
        records = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((left / "summary.json").read_text())
        rows = list(csv.DictReader((left / "clients.csv").open()))
    longest = max(clock.seconds)
    slow = {index for index, seconds in enumerate(clock.seconds) if seconds == longest}
    names = sorted(row["client_id"] for row in rows)
    now, reached = 0.0, None
    for record in records:
        now += record["simulated_seconds"]
        judged = (record["evaluation"] or {}).get("participating")
        if judged and reached is None and judged["accuracy"][5] >= TARGETS[dataset]:
            reached = now
    accuracies = [float(row["accuracy_5"]) for row in rows if names.index(row["client_id"]) in slow]
    return Outcome(reached, now, summary["participating"]["accuracy"][5], statistics.fmean(accuracies))


def table(dataset: str, seeds: Sequence[int], num_replies: int, inner_steps: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a dataset's table."""
    yield f"| ν | way | time to {TARGETS[dataset]:.0%} | ÷ synchronous | time of all | all clients | slow clients |"
    yield "| ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for nu in inner_steps:
        reference: list[float | None] = []
        for way in WAYS:
            found = [run(dataset, way, nu, seed, num_replies) for seed in seeds]
            times = [each.seconds for each in found]
            reference = reference or times
            ratios = [a / b for a, b in zip(times, reference, strict=True) if a is not None and b]
            shown = f"{statistics.fmean(ratios):.2f}" if len(ratios) == len(times) else "–"
            line = (
                f"| {nu} | {way.name} | {seconds_of(times)} | {shown} "
                f"| {statistics.fmean(each.total for each in found):.0f} s "
                f"| {percent([each.after for each in found])} | {percent([each.slow for each in found])} |"
            )
            print(line, flush=True)
            yield line


def seconds_of(times: Sequence[float | None]) -> str:
    """Return a mean with the least and the most, or how many runs reached the target."""
    known = [each for each in times if each is not None]
    if len(known) < len(times):
        return f"reached by {len(known)} of {len(times)}"
    return f"{statistics.fmean(known):.0f} s ({min(known):.0f} to {max(known):.0f})"


def percent(values: Sequence[float]) -> str:
    """Return a mean share in percent, with the least and the most."""
    return f"{100 * statistics.fmean(values):.1f} % ({100 * min(values):.1f} to {100 * max(values):.1f})"


def write(dataset: str, lines: Sequence[str]) -> None:
    """Put a dataset's table in its place in the docs, or at the page's end."""
    begin, end = f"<!-- begin {dataset} -->", f"<!-- end {dataset} -->"
    text, section = PAGE.read_text(encoding="utf-8"), "\n".join([begin, "", *lines, "", end])
    if begin in text:
        text = text[: text.index(begin)] + section + text[text.index(end) + len(end) :]
    else:
        text = f"{text.rstrip()}\n\nThe same on {dataset}:\n\n{section}\n"
    PAGE.write_text(text, encoding="utf-8")


def main() -> None:
    """Run the comparison and write its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=TARGETS, default="digits")
    data_root = os.environ.get("NUFED_DATA_ROOT", "data")
    parser.add_argument("--data-root", default=data_root, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--replies", type=int, default=300, help="replies that every run takes")
    parser.add_argument("--quick", action="store_true", help="one seed, 60 replies, nothing is written")
    given = parser.parse_args()
    with environment({**os.environ, "NUFED_DATA_ROOT": given.data_root}):
        if given.quick:
            list(table(given.dataset, [0], 60, [1]))
            return
        write(given.dataset, list(table(given.dataset, range(given.seeds), given.replies, [0, 1, 3])))


if __name__ == "__main__":
    main()
