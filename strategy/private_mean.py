"""The mean of client-level differential privacy: w_{k+1} = w_k + (Σ u_i + N(0, (zC)²)) / (q n).

u_i is client i's update clipped to C; zero for a client that was not drawn, did not answer, or sent what is refused.
Nothing else depends on a client: the denominator is fixed, noise is added once whoever answered, also where nobody did,
and each client is drawn on its own. So the sum moves by no more than C with one client (McMahan, Ramage, Talwar and
Zhang 2018, with the fixed denominator of their estimator f̃_f).
"""

from collections.abc import Mapping

from torch import Tensor

from nufed.common.errors import RunError
from nufed.common.fixed_point import Sums, zero_sums
from nufed.common.params import Params
from nufed.common.privacy.clipping import ClippedUpdateEncoding
from nufed.common.privacy.noise import RandomSource
from nufed.common.privacy.terms import ClientTerms

_MOST_CLIENTS = 2**20
"""Of a round: their integers, of at most 2^28 each, and the noise stay below 2^62."""


class PrivateMean:
    """Holds the sum of a round's clipped updates, and adds noise to it once; an `Aggregation`.

    Attributes:
        encoding: of the updates.
        limits: largest magnitude accepted, by name.
    """

    def __init__(self, sent: Mapping[str, Tensor], terms: ClientTerms, source: RandomSource) -> None:
        """Start a round.

        Args:
            sent: w_k; not changed.
            terms: of the run.
            source: of the noise.
        """
        self.encoding = ClippedUpdateEncoding(sent, terms.clip, terms.denominator)
        self.limits = self.encoding.limits
        self._terms, self._source = terms, source
        self._sums = zero_sums({name: tensor.numel() for name, tensor in sent.items() if tensor.is_floating_point()})
        self._count, self._is_noised = 0, False

    def fold(self, params: Mapping[str, Tensor], weight: int = 1, client_id: str = "") -> None:  # noqa: ARG002
        """Add a client's clipped update; a reply that is refused leaves the sum as it was.

        Args:
            params: w_k^i; not changed.
            weight: of an aggregation; each client counts once.
            client_id: whose it is, which does not matter.

        Raises:
            WireError: the reply is no finite model of the same names, shapes and types.
            RunError: the noise is in the sum, or there are a million clients.
        """
        self._check_open()
        self.encoding.add(self._sums, params)
        self._count += 1

    def add_sums(self, sums: Sums, count: int) -> None:
        """Add a sum of the updates of `count` clients that each of them has clipped and encoded itself.

        Raises:
            RunError: the noise is in the sum, or there are a million clients.
        """
        self._check_open()
        self._count += count
        for name, total in self._sums.items():
            total.add_(sums[name])

    def shortfall(self) -> str | None:
        """Return None: a round without replies has a result too, which is noise."""
        return None

    def result(self) -> Params:
        """Return the noised model, once.

        Raises:
            DivergedError: it leaves the range of an array's type.
            RunError: it was returned before: a second one, with other noise, would reveal more than is accounted.
        """
        self._check_open()
        self._is_noised = True
        std = self._terms.noise * self._terms.clip * 2.0**self.encoding.bits
        for total in self._sums.values():
            self._source.add_gaussian_(total, std)
        return self.encoding.mean(self._sums)

    def _check_open(self) -> None:
        if self._is_noised or self._count > _MOST_CLIENTS:
            raise RunError(
                f"Expected the replies of at most {_MOST_CLIENTS} clients before the noise, and one result. "
                "Report this defect."
            )
