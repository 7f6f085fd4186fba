"""What every benchmark shares: interleaved timing, peak memory in a fresh process, the table and the JSON beside it.

Variants are timed in turns, so that a change in the machine's load meets all of them, and compared by the median of
their paired ratios: the ratio within each turn, then the median over turns.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}


@dataclass(frozen=True)
class Options:
    """What the command line of every benchmark takes.

    Attributes:
        quick: fewer points and repeats, under 30 s.
        threads: threads of torch.
        clock: `cpu` (time of this process over all its threads; fair on a busy machine at one thread) or `wall`.
        repeats: turns that every variant is timed in.
        out: folder that the JSON is written to.
    """

    quick: bool
    threads: int
    clock: str
    repeats: int
    out: Path


def parse_options(
    description: str, *, repeats: int = 7, clock: str = "cpu", arguments: Sequence[str] | None = None
) -> Options:
    """Return the options of the command line (or of `arguments`), with torch's threads set accordingly."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--quick", action="store_true", help="fewer points and repeats, under 30 s")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--clock", choices=CLOCKS, default=clock, help="process CPU time, or wall time")
    parser.add_argument("--repeats", type=int, default=0, help=f"turns for each variant ({repeats}; quick: 3)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    turns = given.repeats or (3 if given.quick else repeats)
    return Options(given.quick, given.threads, given.clock, turns, given.out)


@dataclass(frozen=True)
class Samples:
    """Seconds per call of each variant, one number per turn; the same turn of two variants is a pair."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median seconds per call of a variant."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, to: str) -> float:
        """Return the median over turns of (seconds of `name` / seconds of `to` in the same turn)."""
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[to], strict=True))

    def fastest(self, names: Sequence[str]) -> str:
        """Return which of `names` has the smallest median."""
        return min(names, key=self.median)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 7,
    clock: str = "cpu",
    min_seconds: float = 0.02,
    max_calls: int = 1000,
) -> Samples:
    """Time variants in turns.

    Args:
        variants: name -> what to time; called once beforehand, which is not timed.
        repeats: turns; every second one goes through the variants backwards.
        clock: `cpu` or `wall`.
        min_seconds: a turn repeats a variant until a call of it takes about this long together.
        max_calls: limit on the calls in a turn.
    """
    now = CLOCKS[clock]
    calls = {name: _calls_per_turn(run, now, min_seconds, max_calls) for name, run in variants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    collecting = gc.isenabled()
    gc.freeze()  # libraries have a million objects, which each collection between turns would look through again
    for turn in range(repeats):
        for name in list(variants)[:: 1 if turn % 2 == 0 else -1]:
            run, count = variants[name], calls[name]
            gc.collect()
            gc.disable()
            started = now()
            for _ in range(count):
                run()
            seconds[name].append(max(now() - started, 1e-9) / count)
            if collecting:
                gc.enable()
    gc.unfreeze()
    return Samples(seconds)


def _calls_per_turn(run: Callable[[], object], now: Callable[[], float], min_seconds: float, max_calls: int) -> int:
    run()
    started = now()
    run()
    return max(1, min(max_calls, round(min_seconds / max(now() - started, 1e-6))))


def peak_memory(work: Callable[[], object]) -> int:
    """Return by how many bytes the resident set of this process exceeded, at its highest, its size before `work`.

    Meant for a process of its own (`in_fresh_process`): memory that the allocator kept from earlier work hides later
    work.
    """
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark (proc(5))
    before = _status_bytes("VmRSS")
    work()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}: peak memory needs Linux")


def in_fresh_process(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Any:
    """Run `python -m module arguments` in a process of its own and return the JSON on its last line of output."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table with aligned columns; floats have three significant digits, None is a dash."""
    cells = [list(header), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def machine(options: Options) -> dict[str, Any]:
    """Return what the numbers depend on: processor, cores, load, threads, clock and versions."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "threads": torch.get_num_threads(),
        "clock": options.clock,
        "repeats": options.repeats,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def describe_machine(options: Options) -> str:
    """Return one line for the head of a table."""
    facts = machine(options)
    return (
        f"{facts['processor']}, {facts['cores']} cores, load {facts['load'][0]}, torch {facts['torch']}, "
        f"{facts['threads']} thread(s), {facts['clock']} time, medians of {facts['repeats']} interleaved turns"
    )


@dataclass(frozen=True)
class Report:
    """A benchmark's tables: printed as they are added, written as JSON at the end."""

    name: str
    options: Options
    tables: list[dict[str, Any]]

    @classmethod
    def start(cls, name: str, options: Options) -> "Report":
        """Print the head and return an empty report."""
        print(f"# {name}\n\n{describe_machine(options)}", flush=True)
        return cls(name, options, [])

    def add(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table and keep it."""
        print(f"\n## {title}\n\n{table(header, rows)}", flush=True)
        self.tables.append({"title": title, "header": list(header), "rows": [list(row) for row in rows]})

    def write(self, **extra: Any) -> Path:
        """Write `NAME.json` (or `NAME-quick.json`) and return its path."""
        self.options.out.mkdir(parents=True, exist_ok=True)
        path = self.options.out / f"{self.name}{'-quick' if self.options.quick else ''}.json"
        content = {"name": self.name, "machine": machine(self.options), "tables": self.tables, **extra}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"\nwritten: {path}", flush=True)
        return path
