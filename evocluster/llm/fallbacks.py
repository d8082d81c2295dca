"""Other models for questions whose answer is no measurement, while the one that was named answers nobody.

Stands before the cache, so an answer is kept under the model that gave it. Evaluations and judgements are never
answered by another model: they wait for theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evocluster.errors import ModelError
from evocluster.llm.charged import after
from evocluster.llm.client import LLM, Abilities, Reply, Request
from evocluster.records import Usage
from evocluster.telemetry import log

PURPOSES = ("rewrite", "reflect")
"""What may be answered by another model."""


class Others:
    """Which models may answer in the place of which."""

    def __init__(
        self, chains: Mapping[str, Sequence[str]], abilities: Mapping[str, Abilities], shut: Callable[[str], bool]
    ) -> None:
        """`chains`: model -> its fallbacks; `shut`: whether a model answers nobody at present."""
        self._chains = dict(chains)
        self._abilities = dict(abilities)
        self._shut = shut

    def of(self, request: Request) -> list[str]:
        """The models that would answer this request now, in order."""
        if request.purpose not in PURPOSES:
            return []
        names = self._chains.get(request.model, ())
        return [name for name in names if not self._shut(name) and _able(self._abilities[name], request)]

    def any(self, request: Request) -> bool:
        """Whether there is one."""
        return bool(self.of(request))


class Fallbacks:
    """An LLM that goes on to the next model where one answers nobody or has failed in passing once too often."""

    def __init__(self, llm: LLM, others: Others) -> None:
        self._llm = llm
        self._others = others

    async def __call__(self, request: Request) -> Reply:
        """The first answer, `answered_by` set where it is another model's. Raises: errors.ModelError."""
        try:
            return await self._llm(request)
        except ModelError as error:
            if not error.retryable:
                raise
            failed = [error]
            for name in self._others.of(request):
                log.info("%s from model %r: %r is asked", type(error).__name__, request.model, name)
                try:
                    reply = await self._llm(request.model_copy(update={"model": name}))
                except ModelError as failure:
                    if not failure.retryable:
                        _charge(failure, failed)
                        raise
                    failed.append(failure)
                    continue
                return after(reply.model_copy(update={"answered_by": name}), *_lost(failed))
            _charge(error, failed[1:])
            raise


def _lost(failed: Sequence[ModelError]) -> tuple[int, float]:
    """Requests and US dollars that the models which failed may have charged."""
    return sum(one.billed for one in failed), sum(one.used.paid_usd for one in failed if one.used)


def _charge(error: ModelError, others: Sequence[ModelError]) -> None:
    """What other models that failed may have charged is told with the last error."""
    calls, usd = _lost(others)
    used = error.used or Usage()
    error.billed += calls
    error.used = used.model_copy(update={"paid_usd": used.paid_usd + usd})


def _able(abilities: Abilities, request: Request) -> bool:
    """Whether a model can be asked this at all."""
    form = abilities.chat if request.prompt is None else abilities.completion
    return form and (abilities.choices or not request.choices) and (abilities.json_schema or not request.json_schema)
