"""What a simulated population costs: start-up, memory and seconds per round, of 1,000 and of 100,000 clients.

100 clients are asked in each round, and 100 judge the models at the end; each run in a process of its own.
`python -m benchmarks.population [--quick] [--clock cpu|wall]`. Start is from the process's beginning, imports included,
to the first round; of a round the median is told. Where there are more clients than `nufed.common.data.on_demand.MANY`,
a round makes the data of those that it asks for the first time.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import Report, in_fresh_process, parse_options
from nufed.common.config import RunConfig
from nufed.common.events import EventStream, Phase
from nufed.deploy.simulation.engines import simulate_checked
from nufed.server.options import ServerOptions

CLIENTS, ASKED = (1_000, 100_000), 100
SOURCES, ENGINES = ("sinusoid", "quadratic"), ("local", "cohort")


def measure(source: str, engine: str, num_clients: int, num_rounds: int) -> None:
    """Print seconds to the first round and per round, of the processor and of the wall, and MiB at most."""
    begun, phases = (0.0, time.perf_counter() - time.process_time()), []

    def note(event: object) -> None:
        if isinstance(event, Phase) and event.phase == "training":
            phases.append((time.process_time(), time.perf_counter()))

    options = {
        "data.source": source,
        "data.num-clients": num_clients,
        "data.num-new-clients": 0,
        "model.name": "linear" if source == "quadratic" else "mlp",
        "method.local-lr": 0.001,
        "federation.num-rounds": num_rounds,
        "federation.participation-fraction": ASKED / num_clients,
        "evaluation.interval": 0,
        "evaluation.num-clients": ASKED,
    }
    with tempfile.TemporaryDirectory() as folder, EventStream() as events:
        events.listen(note)
        simulate_checked(RunConfig().updated(options), ServerOptions(Path(folder), events=events), engine=engine)
    rounds = [
        [end - start for start, end in zip(*pair, strict=True)] for pair in zip(phases[::2], phases[1::2], strict=True)
    ]
    first, memory = phases[0], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {
        clock: {"start": first[index] - begun[index], "round": statistics.median(each[index] for each in rounds)}
        for index, clock in enumerate(("cpu", "wall"))
    }
    print(json.dumps({**found, "memory": memory}))


def main() -> None:
    """Measure every source and engine, and print the table."""
    options = parse_options(__doc__, repeats=1)
    report = Report.start("population", options)
    num_rounds, sources = (4, SOURCES[:1]) if options.quick else (10, SOURCES)
    rows = []
    for source in sources:
        for engine in ENGINES[1:] if options.quick else ENGINES:
            few, many = (
                in_fresh_process("benchmarks.population", "measure", source, engine, str(number), str(num_rounds))
                for number in CLIENTS
            )
            for number, found in zip(CLIENTS, (few, many), strict=True):
                own = found[options.clock]
                ratio = own["round"] / few[options.clock]["round"]
                rows.append([source, engine, number, own["start"], found["memory"], own["round"], ratio])
    header = ["source", "engine", "clients", "first round after (s)", "MiB", "s per round", "÷ 1,000 clients"]
    report.add(f"{ASKED} clients asked in a round, {num_rounds} rounds, {options.clock} time", header, rows)
    report.write()


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
