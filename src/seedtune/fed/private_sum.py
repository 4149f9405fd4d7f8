"""The protocol of a private run whose noise hides a sum: the server adds up bounded contributions, and noise once.

    theta <- theta - eta / P sum_hp [ (sum_i v_i + N(0, (z C)^2 I)) / D ]_hp z_hp

v_i are the clients' contributions (`private`), whose sum is exact; D is a number of the plan's. Every round is
released, noise and all, also one in which nobody answered: whether somebody did would tell who was there. What moves
the weights is the released value alone. Where noise comes in shares, the sum that a secure sum gives has it already,
and a round without a sum releases nothing. Orders, and everything with local noise, are those of `seed_scalar`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import MessageError
from ..privacy.noise import noisy
from ..privacy.plan import Plan
from ..privacy.secrets import words
from ..space import digest
from ..zo.trajectory import RoundRecord, round_updates
from ..zo.update import apply
from .contribution import Total
from .messages import Order, Reply
from .reach import check_reach
from .rounds import Server
from .seed_scalar import SeedScalar


@dataclass(frozen=True)
class PrivateSum:
    """The server's part. Its secret (`Server.secret`) gives the noise, so a resumed run adds the same."""

    plan: Plan
    scalars: SeedScalar = field(default_factory=SeedScalar)

    def order(self, server: Server, client: int) -> Order:
        return self.scalars.order(server, client)

    def check(self, server: Server, reply: Reply) -> None:
        """
        Raises:
            MessageError: a client's contribution beyond the bound, or one that is not finite.
        """
        self.scalars.check(server, reply)
        plan, norm = self.plan, float(np.linalg.norm(reply.scalars.astype(np.float64)))
        bound = plan.clip if plan.unit == "client" else np.inf
        if not norm <= bound or not np.isfinite(norm):
            raise MessageError(
                f"client {reply.client} sent scalars of norm {norm:.6g}, beyond privacy.clip = {plan.clip:g}"
            )

    def reduce(self, server: Server, replies: Iterable[Reply]) -> RoundRecord:
        """Add up what clients sent, and noise once; of noise in shares, which comes with a secure sum, none."""
        recipe, plan = server.recipe, self.plan
        total, clients = np.zeros((recipe.federation.local_steps, recipe.num_scalars)), []
        for reply in replies:
            total += reply.scalars
            clients.append(reply.client)
        if not plan.trusts_server:
            return _nothing(server)
        drawn = words(server.secret, "central noise", 2 * total.size, server.round, given=total.tobytes())
        released = noisy(total, plan.standard_deviation, drawn) / plan.denominator
        return _released(server, () if plan.hides_cohort else tuple(clients), released)

    def reduce_sum(self, server: Server, clients: tuple[int, ...], total: Total) -> RoundRecord:
        """Take a sum that has its noise already, a share from each client."""
        shape = (server.recipe.federation.local_steps, server.recipe.num_scalars)
        released = total.body.reshape(2, *shape)[1] / self.plan.denominator
        check_reach(server.header, server.space, server.round_rates, "the clients' sum has", released)
        return _released(server, clients, released)

    def distances(self, server: Server, replies: Sequence[Reply]) -> Mapping[int, float]:
        raise NotImplementedError("a private run has no policy that asks how far clients' updates lie apart")


def _released(server: Server, clients: tuple[int, ...], values: np.ndarray) -> RoundRecord:
    """The record of what a round releases, [H, P], once it has moved the replica."""
    header, factors = server.header, np.array([server.rate / server.recipe.num_scalars])
    record = RoundRecord(server.round, clients, values.astype(np.float32)[None], factors, b"")
    apply(server.space, server.replica.weights, round_updates(header, record), header.distribution)
    server.replica.digest = digest(server.replica.weights)
    return replace(record, digest=server.replica.digest)


def _nothing(server: Server) -> RoundRecord:
    """The record of a round that released and moved nothing."""
    none = np.zeros((0, server.recipe.federation.local_steps, server.recipe.num_scalars), np.float32)
    return RoundRecord(server.round, (), none, np.zeros(0), server.replica.digest)
