"""What the parts of secure aggregation cost one client and the server: masks, shares, and a round's small messages.

    python -m benchmarks.secure_parts [--quick]

One client of a cohort is timed through all stages with arrays of a single element, so without masks of a model's size;
masks are timed on their own.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from benchmarks.harness import CLOCKS, Options, Report, interleave, parse_options
from nufed.common.privacy.secure import Identity, Roster, SecureClient, SecureServer, keys, plan_task
from nufed.common.privacy.secure.masks import add_masks
from nufed.common.privacy.secure.sharing import Recombination, split

MODEL = bytes(32)
BLOCK = 2**16


def chacha_masks(target: torch.Tensor, key: bytes) -> None:
    """Add a mask as `add_masks` does, but of ChaCha20."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
    zeros, scratch = memoryview(bytes(8 * BLOCK)), bytearray(8 * BLOCK)
    integers = torch.frombuffer(scratch, dtype=torch.int64)
    for start in range(0, target.numel(), BLOCK):
        block = target[start : start + BLOCK]
        stream.update_into(zeros[: 8 * block.numel()], scratch)
        block.add_(integers[: block.numel()])


def folded_masks(target: torch.Tensor, key: bytes) -> None:
    """Add what a 32-bit seed gives: no mask, only what the cheapest generator at hand costs."""
    generator = torch.Generator().manual_seed(int.from_bytes(key[:4]))
    target.add_(torch.randint(-(2**62), 2**62, (target.numel(),), generator=generator))


def masks(report: Report, options: Options) -> None:
    """Time the masks of models."""
    rows = []
    for size in (1_000_000,) if options.quick else (1_000_000, 10_000_000):
        target, key = torch.zeros(size, dtype=torch.int64), os.urandom(32)
        ten = [os.urandom(32) for _ in range(10)]
        variants: dict[str, Callable[[], object]] = {
            "AES-256-CTR, ours": partial(add_masks, {"model": target}, 1, [key]),
            "ten of ours, each": partial(add_masks, {"model": target}, 1, ten),
            "ChaCha20": partial(chacha_masks, target, key),
            "torch.randint, no mask": partial(folded_masks, target, key),
        }
        samples = interleave(variants, repeats=options.repeats, clock=options.clock)
        for name in variants:
            seconds = samples.median(name) / (10 if name.startswith("ten") else 1)
            rows.append([f"{size:,}", name, 1e3 * seconds, 8 * size / seconds / 1e9])
    report.add("Adding one mask", ["parameters", "stream", "ms", "GB/s"], rows)


def shares(report: Report, options: Options) -> None:
    """Time Shamir's sharing of one secret among a cohort, and its reconstruction."""
    rows = []
    for count in (10, 100) if options.quick else (10, 100, 1000):
        threshold = -(-67 * count // 100)
        secret = os.urandom(32)
        made = split(secret, count, threshold, os.urandom)
        points = list(range(threshold))
        factors = Recombination(points)
        variants: dict[str, Callable[[], object]] = {
            "split": partial(split, secret, count, threshold, os.urandom),
            "factors": partial(Recombination, points),
            "secret": partial(factors.secret, made[:threshold]),
        }
        samples = interleave(variants, repeats=options.repeats, clock=options.clock)
        rows.append([f"{threshold} of {count}", *(1e3 * samples.median(name) for name in variants)])
    header = ["shares", "split, ms", "factors of a set of keepers, ms", "one secret of that set, ms"]
    report.add("Shamir's sharing of 32 bytes", header, rows)


class Watched:
    """Holds the seconds and bytes of one client, of the others and of the server while a round goes on."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.client = self.server = self.others = 0.0
        self.up = self.down = 0

    def __call__(self, who: str, work: Callable[..., Any], *arguments: Any) -> Any:
        """Do the work on somebody's account."""
        started = self.now()
        made = work(*arguments)
        setattr(self, who, getattr(self, who) + self.now() - started)
        return made

    def carry(self, down: Any, up: Any) -> None:
        """Count a stage's bytes of the watched client."""
        self.down, self.up = self.down + len(down.to_bytes()), self.up + len(up.to_bytes())


def one_round(count: int, now: Callable[[], float]) -> list[object]:
    """Return what the protocol costs the first client and the server in a round of `count`, without a model's masks."""
    signing = {f"site-{number:05}": ec.generate_private_key(ec.SECP384R1()) for number in range(count)}
    roster = Roster({name: key.public_key() for name, key in signing.items()})
    task = plan_task(run_id="run", round=1, num_asked=count, total_weight=count, model_digest=MODEL)
    clients = {name: SecureClient(task, Identity(name, key), roster) for name, key in signing.items()}
    server, first, watched = SecureServer(task, roster, {"model": 1}), next(iter(signing)), Watched(now)

    def stage(ask: str, take: str, told: Callable[[str], Any]) -> None:
        for name, client in clients.items():
            arguments = [told(name)] if told(name) is not None else []
            if ask == "mask":
                arguments += [{"model": torch.zeros(1, dtype=torch.int64)}, 1, MODEL]
            if name == first:
                keys._is_signed.cache_clear()  # on a machine of its own it has checked no signature yet
            answer = watched("client" if name == first else "others", getattr(client, ask), *arguments)
            watched("server", getattr(server, take), answer)
            if name == first:
                watched.carry(told(name) if told(name) is not None else task, answer)

    stage("advertise", "add_keys", lambda _name: None)
    cohort = watched("server", server.close_keys)
    stage("share", "add_shares", lambda _name: cohort)
    delivered = watched("server", server.close_shares)
    stage("mask", "add_masked", delivered.__getitem__)
    survivors = watched("server", server.close_masked)
    stage("confirm", "add_confirmation", lambda _name: survivors)
    confirmed = watched("server", server.close_confirmations)
    stage("reveal", "add_revealed", lambda _name: confirmed)
    watched("server", server.unmask)
    neighbours = task.neighbours or count - 1
    return [
        count,
        neighbours,
        task.share_threshold,
        watched.client,
        watched.server,
        watched.up / 1e3,
        watched.down / 1e3,
    ]


def rounds(report: Report, options: Options) -> None:
    """Time whole rounds of clients that have no model."""
    counts = (10, 100) if options.quick else (10, 100, 1000)
    header = [
        "clients",
        "neighbours",
        "shares needed",
        "a client, s",
        "the server, s",
        "a client sends, kB",
        "gets, kB",
    ]
    report.add("A round without its model", header, [one_round(count, CLOCKS[options.clock]) for count in counts])


def main() -> None:
    """Measure everything and print the tables."""
    options = parse_options(__doc__.splitlines()[0])
    report = Report.start("secure_parts", options)
    masks(report, options)
    shares(report, options)
    rounds(report, options)
    report.write()


if __name__ == "__main__":
    main()
