"""Replicas of the gateway on a Ray cluster: Ray Serve keeps them up, and spreads requests over them.

Each replica is a whole gateway in a process of its own, made there by `make`; none knows of the others but through the
ledger. What serves is never handed out by Serve (its `user_config` rolls over the replicas one by one): every replica
follows the ledger's pointer by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from evocluster.cluster.session import session
from evocluster.errors import ConfigError

APP = "evocluster"
"""Name of the application among those that Serve runs."""


@contextmanager
def replicated(
    make: Callable[[], Any],
    *,
    replicas: int,
    host: str,
    port: int,
    at_once: int,
    address: str | None = None,
) -> Iterator[list[str]]:
    """The ASGI application that `make` gives, in so many replicas, while the block lasts; ids of the nodes there are.

    `make`: picklable; called in each replica. `at_once`: requests under way in each. `address`: of a cluster that is
    there; None: one is started on this machine. Raises: errors.ConfigError.
    """
    with session(address):
        import ray
        from ray import serve
        from ray.serve.config import HTTPOptions

        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        before = serve.status().applications if address is not None else {}
        if APP in before:
            raise ConfigError(
                f"the cluster at {address!r} runs an application {APP!r} already; stop that gateway first, or serve "
                "its deployments there"
            )
        serve.start(http_options=HTTPOptions(host=host, port=port, keep_alive_timeout_s=75))

        def app() -> Any:  # Serve takes a function for what makes the application, and any other callable for it
            return make()

        gateway: Any = serve.deployment(
            serve.ingress(app)(_Gateway),
            name="gateway",
            num_replicas=replicas,
            max_ongoing_requests=at_once,
            ray_actor_options={"num_cpus": 0},
            health_check_period_s=5,
            graceful_shutdown_timeout_s=30,
        )
        try:
            serve.run(gateway.bind(), name=APP, route_prefix="/")
            yield nodes
        finally:
            if address is None:
                serve.shutdown()  # type: ignore[no-untyped-call]
            else:
                serve.delete(APP)


class _Gateway:
    """What Serve wraps the application in."""
