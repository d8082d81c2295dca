"""A user's own pipeline in the place of the built-in program: what it returns, read as an `Execution`.

    async def answer(example: Example, genome: Genome, llm: Calls) -> Execution | str | JSON

`llm` counts, caches, limits and times every call; a pipeline with calls of its own adds their usage to the execution
it returns. A pipeline that makes none and reports no seconds is timed by the clock.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterable, Mapping
from typing import Any

from evocluster.errors import FATAL, ConfigError, ModelError
from evocluster.llm.client import LLM
from evocluster.records import Example, Genome, Json, Usage, canonical
from evocluster.tasks import code
from evocluster.tasks.answers import Answer, encodable
from evocluster.tasks.calls import Calls
from evocluster.tasks.execution import Execution
from evocluster.tasks.program import APART, Program, read
from evocluster.tasks.prompts import request_seed
from evocluster.tasks.task import Executor, Task


class Pipeline:
    """Runs the function of `task.executor`. Picklable: the function is imported where it is called."""

    def __init__(self, task: Task, settings: Executor, train: Mapping[str, Example]) -> None:
        """`task` is settled. Raises: ConfigError when the function cannot be imported or is not async."""
        self._task = task
        self._settings = settings
        self._naming = Program(task, train).naming("as_is") if task.kind == "classification" else None
        self._schema = task.answer_schema
        self._function()

    def _function(self) -> Any:
        name = self._settings.function
        function = code.load(name)
        called = function if inspect.isroutine(function) else getattr(function, "__call__", None)  # noqa: B004
        if not inspect.iscoroutinefunction(called):
            raise ConfigError(
                f"executor {name!r} is {function!r}; "
                "allowed: `async def` (example, genome, llm) -> Execution, text or JSON"
            )
        try:
            inspect.signature(function).bind(None, None, None)
        except TypeError as error:
            raise ConfigError(
                f"executor {name!r} has the signature {inspect.signature(function)}; allowed: (example, genome, llm)"
            ) from error
        return function

    def calls_per_item(self, possible: Mapping[str, Iterable[Json]]) -> int:
        """What the config says it makes at most."""
        return self._settings.calls

    async def run(self, example: Example, genome: Genome, llm: LLM, replicate: int = 0, twin: int = 0) -> Execution:
        """One answer. Raises: FATAL errors only; whatever else the function raises is in `error`, with its place."""
        seed = request_seed(example.id, twin, replicate)
        calls = Calls(llm, genome, seed=seed, replicate=APART * replicate, limit=self._settings.calls)
        started = time.perf_counter()
        reported, error = Execution(), None
        try:
            returned = await code.call(
                self._function(), example, genome, calls, timeout_s=self._settings.timeout_s, apart=False
            )
            reported = self._execution(returned)
        except FATAL:
            raise
        except ModelError as failure:
            error = f"model: {type(failure).__name__}: {failure}"
        except Exception as failure:
            at = code.where_raised(failure, code.load(self._settings.function))
            error = f"executor: {type(failure).__name__}: {failure}{f' ({at})' if at else ''}"
        used = calls.usage + reported.usage
        if not used.calls and not used.seconds:
            used = used + Usage(seconds=time.perf_counter() - started)
        return reported.model_copy(
            update={
                "usage": used,
                "trace": (*calls.trace, *reported.trace),
                "error": error or reported.error,
                "schema_ok": bool(reported.schema_ok) and error is None,
            }
        )

    def _execution(self, returned: Any) -> Execution:
        """What came back, read as the task's kind says where the function left it open. Raises: TypeError."""
        made = returned if isinstance(returned, Execution) else Execution(**_answer(returned, self._settings.function))
        if made.error is not None or made.schema_ok is not None:
            return made
        answer = self._read(made)
        raw = made.raw or made.output
        return made.model_copy(
            update={"output": answer.output, "parsed": answer.parsed, "schema_ok": answer.ok, "raw": raw}
        )

    def _read(self, made: Execution) -> Answer:
        if self._task.kind == "extraction" and made.parsed is not None:
            problem = (self._schema.problem(_thawed(made.parsed)) if self._schema else None) or ""
            return Answer(output=canonical(made.parsed), parsed=made.parsed, ok=not problem, problem=problem)
        return read(made.output, self._task, self._schema, self._naming)


def _answer(returned: Any, function: str) -> dict[str, Any]:
    if isinstance(returned, str):
        return {"output": encodable(returned)}
    if isinstance(returned, Mapping | list | tuple | bool | int | float) or hasattr(returned, "model_dump"):
        value = returned.model_dump(mode="json") if hasattr(returned, "model_dump") else returned
        try:
            return {"output": canonical(value), "parsed": value}
        except (TypeError, ValueError) as error:
            raise TypeError(f"{function!r} returned {returned!r:.200}, which is not JSON: {error}") from error
    raise TypeError(
        f"{function!r} returned {returned!r:.200} ({type(returned).__name__}); "
        "allowed: evocluster.Execution, a text, or a JSON value"
    )


def _thawed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _thawed(item) for key, item in value.items()}
    return [_thawed(item) for item in value] if isinstance(value, list | tuple) else value
