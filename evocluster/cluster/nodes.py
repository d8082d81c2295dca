"""The cluster's nodes as Ray tells them now, and what runs once on each."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from evocluster.llm.stack import Hosted

REACH_S = 1.0


@dataclass(frozen=True)
class Node:
    """One that is alive."""

    id: str
    cpus: int
    address: str
    port: int
    """Of its raylet."""
    draining: bool
    """It is about to go: nothing new is to be started there."""


def look() -> dict[str, Node]:
    """The nodes that are alive, by id. About a millisecond."""
    import ray

    draining = _draining()
    return {
        node["NodeID"]: Node(
            node["NodeID"],
            int(node["Resources"].get("CPU", 1)),
            node.get("NodeManagerAddress", ""),
            node.get("NodeManagerPort", 0),
            node["NodeID"] in draining,
        )
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    }


def _draining() -> Collection[str]:
    """Ids of the nodes that Ray is draining. It has no public name for it: `ray.nodes()` does not tell."""
    try:
        from ray._private.state import state
    except ImportError:
        return ()
    found: dict[str, int] = state.get_draining_nodes()
    return found


async def reachable(node: Node) -> bool:
    """Whether the node's raylet takes connections: known within REACH_S, where Ray's own check takes 12 s.

    A node that does not say where it listens is believed.
    """
    if not node.port:
        return True
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(node.address, node.port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True


class NodeHost:
    """One a node: starts the servers of the embedded models there, and stops them with the run."""

    def __init__(self, models: Mapping[str, Hosted]) -> None:
        self._models = dict(models)

    async def start(self) -> dict[str, tuple[str, ...]]:
        """Model name -> addresses of its servers on this node."""
        return {name: await model.start() for name, model in self._models.items()}

    async def guard(self) -> None:
        """Does not return: who awaits it learns of this process's death."""
        await asyncio.Event().wait()

    async def stop(self) -> None:
        """Stop them."""
        for model in self._models.values():
            await model.stop()


def placed(kind: type, node: str, **options: Any) -> Any:
    """This plain class as an actor class bound to a node, that Ray never restarts or retries unless told.

    Ray keeps no list of its calls (`enable_task_events`): of a long run that is a hundred MiB in its head process.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    given = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 1000, **options}
    return ray.remote(kind).options(scheduling_strategy=place, enable_task_events=False, **given)
