"""What a client keeps of a round: two key pairs, the seed of its self mask, and the shares that others gave it."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from nufed.common.errors import WireError
from nufed.common.privacy.secure.failures import UnsafeRoundError
from nufed.common.privacy.secure.graph import draw
from nufed.common.privacy.secure.keys import AgreementKey, Entropy, Secret, commitment, derived
from nufed.common.privacy.secure.messages import CIPHERTEXT, KEY, SHARE, AdvertisedKeys, Parcel, SecureTask
from nufed.common.privacy.secure.sharing import split
from nufed.common.privacy.secure.transcript import (
    PAIRWISE,
    PARCEL,
    SEED,
    SELF,
    SHARE_OF_KEY,
    SHARE_OF_SEED,
    parcel_context,
)
from nufed.common.untrusted import shown

_NONCE = bytes(12)  # each parcel's key encrypts that parcel alone


class RoundSecrets:
    """Holds the secrets of one client and round until `erase`.

    Attributes:
        mask_key: of pairwise masks.
        share_key: with which shares are encrypted.
        seed_commitment: SHA-256 of the seed of the self mask.
        keepers: those to whom this client's shares went, in order, without itself.
    """

    def __init__(self, task: SecureTask, name: str, entropy: Entropy) -> None:
        self._task, self._name, self._entropy = task, name, entropy
        self.mask_key = AgreementKey(entropy(KEY))
        self.share_key = AgreementKey(entropy(KEY))
        self._seed = Secret(entropy(KEY))
        self.seed_commitment = commitment(SEED, self._seed.reveal())
        self.keepers: tuple[str, ...] = ()
        self._kept: dict[str, tuple[Secret, Secret]] = {}
        self._is_held = True

    def check_held(self) -> None:
        """Raise UnsafeRoundError once the secrets were erased."""
        if not self._is_held:
            raise UnsafeRoundError(
                f"Expected a round that goes on, but round {self._task.round} is over. Start another round."
            )

    def draw_keepers(self, others: Sequence[str], count: int) -> tuple[str, ...]:
        """Draw, keep and return those that are to keep this client's shares beside itself."""
        self.keepers = draw(others, count, self._entropy)
        return self.keepers

    def parcels(self, cohort: bytes, members: Mapping[str, AdvertisedKeys]) -> tuple[Parcel, ...]:
        """Return the two shares for each keeper, encrypted, in the order of names.

        Raises:
            UnsafeRoundError: a keeper's key hides nothing.
        """
        names = sorted({*self.keepers, self._name})
        threshold = self._task.share_threshold
        of_key = split(self.mask_key.private_bytes(), len(names), threshold, self._entropy)
        of_seed = split(self._seed.reveal(), len(names), threshold, self._entropy)
        made = []
        for name, key_share, seed_share in zip(names, of_key, of_seed, strict=True):
            commitments = commitment(SHARE_OF_KEY, key_share), commitment(SHARE_OF_SEED, seed_share)
            if name == self._name:
                self._kept[name] = Secret(key_share), Secret(seed_share)
                made.append(Parcel(name, b"", *commitments))
                continue
            context = parcel_context(cohort, self._name, name, *commitments)
            cipher = self._cipher(members[name], cohort, self._name, name)
            made.append(Parcel(name, cipher.encrypt(_NONCE, key_share + seed_share, context), *commitments))
        return tuple(made)

    def keep(self, cohort: bytes, members: Mapping[str, AdvertisedKeys], parcels: Sequence[Parcel]) -> tuple[str, ...]:
        """Decrypt and keep others' shares; return whose cannot be opened, or are not as committed.

        Raises:
            UnsafeRoundError: a sender's key hides nothing.
        """
        unreadable = []
        for parcel in parcels:
            commitments = parcel.key_commitment, parcel.seed_commitment
            context = parcel_context(cohort, parcel.peer, self._name, *commitments)
            cipher = self._cipher(members[parcel.peer], cohort, parcel.peer, self._name)
            try:
                content = cipher.decrypt(_NONCE, parcel.ciphertext, context)
            except InvalidTag:
                content = b""
            key_share, seed_share = content[:SHARE], content[SHARE:]
            made = commitment(SHARE_OF_KEY, key_share), commitment(SHARE_OF_SEED, seed_share)
            if len(parcel.ciphertext) != CIPHERTEXT or made != commitments:
                unreadable.append(parcel.peer)
                continue
            self._kept[parcel.peer] = Secret(key_share), Secret(seed_share)
        return tuple(unreadable)

    def masks(self, cohort: bytes, partners: Mapping[str, AdvertisedKeys]) -> tuple[list[bytes], list[bytes]]:
        """Return the keys of the masks that are added, the self mask first, and of those that are subtracted.

        Raises:
            UnsafeRoundError: a partner's key hides nothing.
        """
        plus, minus = [derived(self._seed.reveal(), SELF, cohort)], list[bytes]()
        for name, keys in partners.items():
            key = self._agreed(self.mask_key, name, keys.mask_key, PAIRWISE, cohort)
            (plus if self._name < name else minus).append(key)
        return plus, minus

    def revealed(self, sharers: Sequence[str], survivors: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
        """Return of each client that shared, and whose shares are kept here, the one share that may be known."""
        stayed = set(survivors)
        return tuple(
            (name, self._kept[name][name in stayed].reveal()) for name in sorted(sharers) if name in self._kept
        )

    def erase(self) -> None:
        """Overwrite and drop everything secret."""
        self._is_held = False
        for secret in (self._seed, *(share for pair in self._kept.values() for share in pair)):
            secret.erase()
        self._kept.clear()
        self.mask_key.erase()
        self.share_key.erase()

    def __repr__(self) -> str:
        """Return a text without secrets."""
        return f"RoundSecrets({self._name!r})"

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled or copied."""
        raise TypeError("Expected secrets of a round to stay in the process that made them; do not pickle them.")

    def _cipher(self, keys: AdvertisedKeys, cohort: bytes, sender: str, keeper: str) -> ChaCha20Poly1305:
        direction = (cohort, sender.encode(), keeper.encode())
        return ChaCha20Poly1305(self._agreed(self.share_key, keys.name, keys.share_key, PARCEL, *direction))

    def _agreed(self, own: AgreementKey, name: str, peer: bytes, label: str, *context: bytes) -> bytes:
        try:
            return own.derive(peer, label, *context)
        except WireError:
            raise UnsafeRoundError(
                f"Expected a key of {shown(name)} that hides something, got one of small order. Refuse this server."
            ) from None
