"""What every scorer promises; subclassed once per scorer."""

from __future__ import annotations

import pickle

import pytest
from pydantic import TypeAdapter, ValidationError

from evocluster.llm.client import Reply, Request
from evocluster.records import Example, Json, Score, Usage
from evocluster.tasks.execution import Execution
from evocluster.tasks.scorers import AnyScorer


async def silent(request: Request) -> Reply:
    """The model of scorers that need none."""
    raise AssertionError(f"asked a model: {request!r}")


async def scored(
    scorer: AnyScorer, expected: Json, output: str, parsed: Json = None, usage: Usage | None = None
) -> Score:
    """The score of this output against this expectation."""
    example = Example(id="e", input="x", expected=expected)
    execution = Execution(output=output, raw=output, parsed=parsed, schema_ok=True, usage=usage or Usage())
    return await scorer.score(example, execution, silent)


class ScorerContract:
    """Call `scored` with what a subclass says is right, wrong and empty."""

    settings: dict[str, Json]
    expected: Json
    right: tuple[str, Json] | tuple[str, Json, Usage]
    """(output, parsed), and usage where that is judged, that must get 1."""
    wrong: tuple[str, Json] | tuple[str, Json, Usage]
    """The same that must get less."""
    content_with_nothing: bool = False
    """An empty output that cost nothing passes too."""

    @property
    def scorer(self) -> AnyScorer:
        made: AnyScorer = TypeAdapter(AnyScorer).validate_python(self.settings)
        return made

    async def test_right_is_one(self) -> None:
        assert (await scored(self.scorer, self.expected, *self.right)).value == 1.0

    async def test_wrong_is_less_and_says_why_or_how_near(self) -> None:
        score = await scored(self.scorer, self.expected, *self.wrong)
        assert 0 <= score.value < 1
        assert score.reason or score.value > 0

    async def test_nothing_is_not_right(self) -> None:
        nothing = await scored(self.scorer, self.expected, "", None)
        assert (nothing.value == 1) == self.content_with_nothing

    async def test_same_question_same_score(self) -> None:
        first = await scored(self.scorer, self.expected, *self.wrong)
        assert first == await scored(self.scorer, self.expected, *self.wrong)

    def test_is_its_own_settings(self) -> None:
        scorer = self.scorer
        assert TypeAdapter(AnyScorer).validate_json(scorer.model_dump_json()) == scorer
        assert scorer.name == self.settings.get("name", self.settings["kind"])
        assert pickle.loads(pickle.dumps(scorer)) == scorer

    def test_misspelt_setting_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="nmae"):
            TypeAdapter(AnyScorer).validate_python({**self.settings, "nmae": "x"})
