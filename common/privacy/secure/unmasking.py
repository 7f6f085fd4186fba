"""Secrets from shares, each held to its commitment: seeds of those that stayed, mask keys of those that are gone."""

from collections.abc import Mapping, Sequence

from nufed.common.errors import WireError
from nufed.common.privacy.secure.failures import RoundFailedError
from nufed.common.privacy.secure.keys import AgreementKey, commitment, derived
from nufed.common.privacy.secure.messages import AdvertisedKeys, EncryptedShares, RevealedShares, SecureTask
from nufed.common.privacy.secure.sharing import Recombination
from nufed.common.privacy.secure.transcript import PAIRWISE, SEED, SELF, SHARE_OF_KEY, SHARE_OF_SEED
from nufed.common.untrusted import shown


class Unmasking:
    """Holds a round's keys and commitments while masks are recomputed.

    Args:
        task: of the round.
        cohort: digest of the task and all keys.
        keys: by name, of all clients.
        shares: by name, of all clients that shared.
    """

    def __init__(
        self,
        task: SecureTask,
        cohort: bytes,
        keys: Mapping[str, AdvertisedKeys],
        shares: Mapping[str, EncryptedShares],
    ) -> None:
        self._task, self._cohort, self._keys, self._shares = task, cohort, keys, shares
        self._keepers = {name: [each.peer for each in message.parcels] for name, message in shares.items()}
        self._recombinations: dict[tuple[int, ...], Recombination] = {}

    def masks(self, survivors: Sequence[str], revealed: Sequence[RevealedShares]) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of the masks that are left in the sum: those added by clients, and those subtracted.

        Raises:
            RoundFailedError: a secret cannot be reconstructed.
        """
        given: dict[str, dict[str, bytes]] = {name: {} for name in self._shares}
        for message in revealed:
            for name, share in message.shares:
                if name in given:
                    given[name][message.name] = share
        plus = [derived(self._seed(name, given[name]), SELF, self._cohort) for name in survivors]
        minus: list[bytes] = []
        for gone in sorted(self._shares.keys() - set(survivors)):
            key = self._mask_key(gone, given[gone])
            for name in survivors:
                if gone in self._keepers[name] or name in self._keepers[gone]:
                    pairwise = self._pairwise(key, name)
                    (plus if name < gone else minus).append(pairwise)
        return plus, minus

    def _seed(self, name: str, given: Mapping[str, bytes]) -> bytes:
        secret = self._secret(name, given, SHARE_OF_SEED)
        if commitment(SEED, secret) != self._keys[name].seed_commitment:
            raise _dealt_wrongly(name)
        return secret

    def _mask_key(self, name: str, given: Mapping[str, bytes]) -> AgreementKey:
        key = AgreementKey(self._secret(name, given, SHARE_OF_KEY))
        if key.public != self._keys[name].mask_key:
            raise _dealt_wrongly(name)
        return key

    def _pairwise(self, key: AgreementKey, name: str) -> bytes:
        try:
            return key.derive(self._keys[name].mask_key, PAIRWISE, self._cohort)
        except WireError:
            raise _dealt_wrongly(name) from None

    def _secret(self, name: str, given: Mapping[str, bytes], kind: str) -> bytes:
        """Return a client's secret of the first shares that are as it committed to."""
        points, shares = [], []
        for point, parcel in enumerate(self._shares[name].parcels):
            committed = parcel.seed_commitment if kind == SHARE_OF_SEED else parcel.key_commitment
            share = given.get(parcel.peer)
            if share is not None and commitment(kind, share) == committed:
                points.append(point)
                shares.append(share)
        threshold = self._task.share_threshold
        if len(shares) < threshold:
            raise RoundFailedError(
                f"Expected {threshold} shares of a secret of {shown(name)}, got {len(shares)} that are as it committed "
                "to. Start another round; revoke that client if it comes again."
            )
        places = tuple(points[:threshold])
        if places not in self._recombinations:
            self._recombinations[places] = Recombination(places)
        secret = self._recombinations[places].secret(shares[:threshold])
        if secret is None:
            raise _dealt_wrongly(name)
        return secret


def _dealt_wrongly(name: str) -> RoundFailedError:
    return RoundFailedError(
        f"Expected shares of {shown(name)} that give the secret it committed to, got others: that client deals wrong "
        "shares. Revoke it, and start another round."
    )
