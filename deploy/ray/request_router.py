"""Ray's hook for choosing a replica, as a way to ask which there are: the choice is made by who asks."""

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica


class Offering(RequestRouter):
    """Offers all replicas to the request: its first argument is called with them, and returns one.

    What comes without such an argument goes to any of them. It comes through Ray's own proxy, while HAProxy does not
    know a replica yet.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, of which Ray takes the first that is not empty."""
        choose = pending_request.args[0] if pending_request is not None and pending_request.args else None
        if not callable(choose):
            return [random.sample(candidate_replicas, len(candidate_replicas))]
        return [[choose(candidate_replicas)]]
