"""evocluster: evolve the whole configuration of an LLM program on one true Pareto front.

    import evocluster
    result = evocluster.optimize(evocluster.load_config("quickstart.yaml"))

    with evocluster.Home.open("deployments") as home:
        evocluster.deploy("runs/quickstart", "triage", home)

and, for scorers and pipelines of one's own, `Example`, `Genome`, `Score`, `Execution`, `Usage`, `Calls` and `Request`.

Public names load when they are first used: `import evocluster` costs nothing and pulls in no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evocluster.build import optimize
    from evocluster.config import load as load_config
    from evocluster.deploying import Home, deploy, history, status
    from evocluster.deploying import roll_back as rollback
    from evocluster.llm.client import Request
    from evocluster.records import Example, Genome, Score, Usage
    from evocluster.report.result import Result
    from evocluster.search.optimizer import Optimizer
    from evocluster.tasks.calls import Calls
    from evocluster.tasks.execution import Execution

__version__ = "0.1.0"
__all__ = [
    "Calls",
    "Example",
    "Execution",
    "Genome",
    "Home",
    "Optimizer",
    "Request",
    "Result",
    "Score",
    "Usage",
    "__version__",
    "deploy",
    "history",
    "load_config",
    "optimize",
    "rollback",
    "status",
]

_HOMES = {
    "optimize": ("evocluster.build", "optimize"),
    "Result": ("evocluster.report.result", "Result"),
    "Optimizer": ("evocluster.search.optimizer", "Optimizer"),
    "load_config": ("evocluster.config", "load"),
    "Home": ("evocluster.deploying", "Home"),
    "deploy": ("evocluster.deploying", "deploy"),
    "history": ("evocluster.deploying", "history"),
    "rollback": ("evocluster.deploying", "roll_back"),
    "status": ("evocluster.deploying", "status"),
    "Calls": ("evocluster.tasks.calls", "Calls"),
    "Execution": ("evocluster.tasks.execution", "Execution"),
    "Request": ("evocluster.llm.client", "Request"),
    "Example": ("evocluster.records", "Example"),
    "Genome": ("evocluster.records", "Genome"),
    "Score": ("evocluster.records", "Score"),
    "Usage": ("evocluster.records", "Usage"),
}


def __getattr__(name: str) -> Any:
    """A public name, imported from the file that defines it. Raises: AttributeError."""
    if name not in _HOMES:
        raise AttributeError(f"evocluster has no {name!r}; it has: {', '.join(sorted(__all__))}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
