"""Bytes on the wire in a round, by type of message: real messages of a real round, as Flower serializes them.

    python -m benchmarks.wire [--quick]

Also what the codec costs: milliseconds to write and to read one model.
"""

from collections import Counter

from flwr.app import Message
from flwr.common.serde import message_to_proto

from benchmarks.federations import initial_model, make_grid, paper_config
from benchmarks.harness import Report, interleave, parse_options
from nufed.common.config import RunConfig
from nufed.common.model_arrays import arrays_to_params, params_to_arrays
from nufed.common.params import num_bytes
from nufed.common.wire import EvaluateRequest, TrainRequest

MODELS = {"80,60": "MLP 784-80-60-10", "2048,2048": "MLP 784-2048-2048-10"}


def main() -> None:
    """Serialize everything and print the tables."""
    options = parse_options(__doc__.splitlines()[0])
    report = Report.start("wire", options)
    sizes, costs = [], []
    for hidden, name in list(MODELS.items())[: 1 if options.quick else None]:
        config = paper_config(model__hidden_sizes=hidden, method__num_local_steps=1)
        params = initial_model(config)
        content = num_bytes(params)
        for kind, count, total in message_sizes(config):
            has_model = kind in ("train request", "train reply", "evaluate request")
            overhead = total / count - content if has_model else None
            sizes.append([name, kind, count, total / count, content if has_model else None, overhead, total])
        arrays = params_to_arrays(params)
        variants = {
            "write": lambda params=params: params_to_arrays(params),
            "read": lambda arrays=arrays: arrays_to_params(arrays),
        }
        samples = interleave(variants, repeats=options.repeats, clock=options.clock)
        costs.append([name, content, *(1e3 * samples.median(kind) for kind in variants)])
    header = ["model", "message", "number", "bytes each", "of them parameters", "overhead", "bytes in all"]
    report.add("A round of 10 of 50 clients, and an evaluation of all 50", header, sizes)
    report.add("Codec, milliseconds per model", ["model", "bytes", "write", "read"], costs)
    report.write()


def message_sizes(config: RunConfig) -> list[tuple[str, int, int]]:
    """Return (kind, messages, serialized bytes of all of them) for query, a round and an evaluation."""
    grid, params = make_grid("cohort", config), initial_model(config)
    nodes = list(grid.get_node_ids())
    query, train, evaluate = (
        ("query", nodes, None),
        ("train", nodes[:10], TrainRequest(params, 1).to_records()),
        ("evaluate", nodes, EvaluateRequest(params, 1).to_records()),
    )
    counts, totals = Counter[str](), Counter[str]()
    for kind, asked, records in (query, train, evaluate):
        messages = [Message(records, node, kind) if records else _empty(node, kind) for node in asked]
        replies = list(grid.send_and_receive(messages))
        for direction, sent in (("request", messages), ("reply", replies)):
            counts[f"{kind} {direction}"] += len(sent)
            totals[f"{kind} {direction}"] += sum(message_to_proto(message).ByteSize() for message in sent)
    return [(kind, counts[kind], totals[kind]) for kind in counts]


def _empty(node: int, kind: str) -> Message:
    from flwr.app import RecordDict

    return Message(RecordDict(), node, kind)


if __name__ == "__main__":
    main()
