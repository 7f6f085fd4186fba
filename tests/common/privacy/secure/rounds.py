"""Rounds of secure aggregation for tests: clients, and a server whose every message passes through bytes."""

import zlib
from functools import cache

import torch
from cryptography.hazmat.primitives.asymmetric import ec

from nufed.common.privacy.secure import (
    AdvertisedKeys,
    ClientPolicy,
    CohortKeys,
    Confirmation,
    ConfirmedSurvivors,
    DeliveredShares,
    EncryptedShares,
    Identity,
    MaskedInput,
    RevealedShares,
    Roster,
    SecureClient,
    SecureServer,
    Survivors,
    plan_task,
)

MODEL = bytes(range(32))
SIZES = {"bias": 3, "weight": 70}
STAGES = ("advertise", "share", "mask", "confirm", "reveal")


@cache
def identity(name):
    return Identity(name, ec.generate_private_key(ec.SECP384R1()))


def roster(names):
    return Roster({name: identity(name).key.public_key() for name in names})


def names_of(count):
    return [f"client-{number:03}" for number in range(count)]


def make_task(num_asked, **options):
    values = {"run_id": "run", "round": 4, "num_asked": num_asked, "total_weight": num_asked, "model_digest": MODEL}
    return plan_task(**(values | options))


def integers(name, sizes=SIZES):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return {key: torch.randint(-(2**55), 2**55, (size,), generator=generator) for key, size in sizes.items()}


class Round:
    """One round, stage by stage; `gone` says which clients leave before which stage."""

    def __init__(
        self,
        task,
        gone=None,
        order=lambda names: names,
        sums=integers,
        weight=lambda name: 1,
        policy=ClientPolicy(),  # noqa: B008 - frozen
    ):
        names = names_of(task.num_asked)
        self.task, self.sums, self.weight, self.order = task, sums, weight, order
        self.roster = roster(names)
        self.clients = {name: SecureClient(task, identity(name), self.roster, policy=policy) for name in names}
        self.server = SecureServer(task, self.roster, {key: each.numel() for key, each in sums(names[0]).items()})
        self.gone = gone or {}
        self.alive = list(names)
        self.parcels = {}

    def present(self, stage):
        self.alive = [name for name in self.alive if name not in self.gone.get(stage, ())]
        return self.order(list(self.alive))

    def advertise(self):
        for name in self.present("advertise"):
            self.server.add_keys(AdvertisedKeys.from_bytes(self.clients[name].advertise().to_bytes()))
        return CohortKeys.from_bytes(self.server.close_keys().to_bytes())

    def share(self, cohort):
        for name in self.present("share"):
            shares = EncryptedShares.from_bytes(self.clients[name].share(cohort).to_bytes())
            self.parcels[name] = shares
            self.server.add_shares(shares)
        delivered = self.server.close_shares()
        return {name: DeliveredShares.from_bytes(each.to_bytes()) for name, each in delivered.items()}

    def masked(self, name, delivered):
        made = self.clients[name].mask(delivered[name], self.sums(name), self.weight(name), MODEL)
        return MaskedInput.from_bytes(made.to_bytes(), made.arrays)

    def mask(self, delivered):
        for name in self.present("mask"):
            self.server.add_masked(self.masked(name, delivered))
        return Survivors.from_bytes(self.server.close_masked().to_bytes())

    def confirm(self, survivors):
        for name in self.present("confirm"):
            confirmation = self.clients[name].confirm(survivors)
            self.server.add_confirmation(Confirmation.from_bytes(confirmation.to_bytes()))
        return ConfirmedSurvivors.from_bytes(self.server.close_confirmations().to_bytes())

    def reveal(self, confirmed):
        for name in self.present("reveal"):
            revealed = self.clients[name].reveal(confirmed)
            self.server.add_revealed(RevealedShares.from_bytes(revealed.to_bytes()))

    def until(self, stage):
        """Go on up to a stage, and return what its clients are sent."""
        told = None
        for each in STAGES[: STAGES.index(stage)]:
            told = self.advertise() if each == "advertise" else getattr(self, each)(told)
        return told

    def run(self):
        self.reveal(self.until("reveal"))
        return self.server.unmask()


def plain_sum(names, sums=integers):
    parts = [sums(name) for name in names]
    return {key: sum(part[key] for part in parts) for key in parts[0]}
