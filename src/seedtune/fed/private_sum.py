"""The protocol of a private run with central noise: the server adds up bounded contributions, and noise once.

    theta <- theta - eta / P sum_hp [ (sum_i v_i + N(0, (z C)^2 I)) / D ]_hp z_hp

v_i are the clients' contributions (`private`), whose sum is exact; D is a number of the plan's. Every round is
released, noise and all, also one in which nobody answered: whether somebody did would tell who was there. What moves
the weights is the released value alone. Orders, and everything with local noise, are those of `seed_scalar`.
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
        recipe, plan, header = server.recipe, self.plan, server.header
        total, clients = np.zeros((recipe.federation.local_steps, recipe.num_scalars)), []
        for reply in replies:
            total += reply.scalars
            clients.append(reply.client)
        drawn = words(server.secret, "central noise", 2 * total.size, server.round, given=total.tobytes())
        released = (noisy(total, plan.standard_deviation, drawn) / plan.denominator).astype(np.float32)
        named = () if plan.hides_cohort else tuple(clients)
        factors = np.array([server.rate / recipe.num_scalars])
        record = RoundRecord(server.round, named, released[None], factors, b"")
        apply(server.space, server.replica.weights, round_updates(header, record), header.distribution)
        server.replica.digest = digest(server.replica.weights)
        return replace(record, digest=server.replica.digest)

    def reduce_sum(self, server: Server, clients: tuple[int, ...], total: Total) -> RoundRecord:
        raise NotImplementedError("a private run has no secure sums")

    def distances(self, server: Server, replies: Sequence[Reply]) -> Mapping[int, float]:
        raise NotImplementedError("a private run has no policy that asks how far clients' updates lie apart")
