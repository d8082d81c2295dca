"""The memory of the optimisation: lessons by rule from outcomes, three iterations in detail, within its budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.records import Genome
from evocluster.search.memory import LESSONS, PARENTS, REJECTED, Memory, tokens
from evocluster.search.objectives import Composite, Tally
from evocluster.search.population import Individual


def one(rubric: str, values: list[float], **notes: Any) -> Individual:
    """A member with these qualities; NaN where an example is unknown."""
    made = Individual(Genome(genes={"rubric": rubric}), lambda split: Tally(Composite()), notes=notes)
    made.by_example = np.array(values, dtype=np.float32)
    return made


PARENT = one("Sort.", [0.0, 0.0, 1.0, 1.0] * 8)
BETTER, WORSE, SAME = [1.0, 0.0, 1.0, 1.0] * 8, [0.0, 0.0, 0.0, 1.0] * 8, [0.0, 0.0, 1.0, 1.0] * 8


def test_lessons_come_from_measured_outcomes() -> None:
    memory = Memory()
    memory.tell(one("a", BETTER, change="named the labels", targets=("wrong label",)), PARENT, True)
    memory.tell(one("b", WORSE, change="made it short"), PARENT, False)
    memory.tell(one("c", SAME, change="asked politely"), PARENT, False)
    text = memory.render()
    assert "- worked: named the labels [wrong label]: +0.25 over 32 examples" in text
    assert "- regressed: made it short: -0.25 over 32 examples" in text
    assert "- made no clear difference: asked politely: +0.00 over 32 examples" in text
    assert text.index("politely") < text.index("short") < text.index("labels"), "the newest first"
    assert "named the labels | targets: wrong label | quality 0.50 -> 0.75 on 32 examples, kept" in text


def test_the_effect_is_that_on_the_same_examples() -> None:
    memory, gap = Memory(), float("nan")
    parent = one("p", [1.0, 1.0, 0.0, 0.0, gap, 0.0])
    memory.tell(one("c", [gap, gap, 1.0, 1.0, 1.0, 1.0], change="rules"), parent, True)
    assert "quality 0.00 -> 1.00 on 3 examples" in memory.render()
    memory.tell(one("d", [gap] * 6, change="others"), parent, False)
    assert "no example in common with its parent" in memory.render()


def test_a_little_that_may_be_chance_is_no_lesson() -> None:
    memory = Memory()
    flipped = [*SAME[:30], 0.0, 1.0]
    memory.tell(one("a", [1.0, *flipped[1:]], change="one more word"), PARENT, True)
    assert "made no clear difference: one more word" in memory.render()


def test_near_duplicates_are_merged_and_weighed_together() -> None:
    memory = Memory()
    memory.tell(one("a", BETTER, change="Added a rule for the label blue"), PARENT, True)
    memory.tell(one("b", SAME, change="other things altogether"), PARENT, False)
    memory.tell(one("c", WORSE, change="added a rule for the label 'blue'."), PARENT, False)
    text = memory.render()
    lessons = text.split("The last")[0]
    assert lessons.count("rule for the label") == 1
    assert "+0.00 over 64 examples in 2 tries" in lessons
    assert lessons.index("label") < lessons.index("other things")


def test_three_iterations_are_told_in_detail() -> None:
    memory = Memory()
    for turn in range(5):
        for sibling in range(2):
            made = one(f"{turn} {sibling}", SAME, change=f"change {turn} number {sibling}")
            memory.tell(made, PARENT, False, turn)
    detail = memory.render().split("The last iterations")[1]
    assert [f"change {turn} number {sibling}" in detail for turn in range(5) for sibling in range(2)] == [False] * 4 + [
        True
    ] * 6
    assert detail.index("change 4") < detail.index("change 3")
    memory.note("nothing", "", "the model gave an empty text", 7)
    assert "nothing | the model gave an empty text" in memory.render()
    assert "change 2" not in memory.render().split("The last iterations")[1]


def test_a_child_that_tells_no_change_is_no_lesson_and_yet_rejected() -> None:
    memory = Memory()
    memory.tell(one("new", BETTER), PARENT, False)
    memory.tell(one("Sort.", WORSE, change="temperature"), PARENT, False)
    memory.tell(one("kept", BETTER), PARENT, True)
    memory.tell(one("orphan", BETTER), None, False)
    assert memory.rejected(PARENT.genome.id) == ("new",)
    assert memory.rejected("unknown") == ()


def test_what_was_rejected_is_bounded() -> None:
    memory = Memory()
    for parent in range(PARENTS + 5):
        for child in range(REJECTED + 3):
            memory.tell(one(f"{parent} {child}", SAME), one(f"parent {parent}", SAME), False)
    first, last = one("parent 0", SAME), one(f"parent {PARENTS + 4}", SAME)
    assert memory.rejected(first.genome.id) == ()
    assert memory.rejected(last.genome.id) == tuple(f"{PARENTS + 4} {child}" for child in range(3, REJECTED + 3))


words = st.text(alphabet=st.sampled_from("abc \n\"'é"), max_size=400)


@given(
    limit=st.sampled_from([100, 300, 1200]),
    told=st.lists(st.tuples(words, words, st.sampled_from([BETTER, WORSE, SAME]), st.integers(0, 9)), max_size=40),
)
def test_it_stays_within_its_tokens(limit: int, told: list[tuple[str, str, list[float], int]]) -> None:
    memory = Memory(limit)
    for change, target, values, turn in told:
        memory.tell(one("x", values, change=change, targets=(target,)), PARENT, False, turn)
    text = memory.render()
    assert tokens(text) <= limit
    assert bool(text) == any(change.split() for change, *_ in told) or limit == 100


def test_a_long_run_keeps_the_newest_lessons_and_its_budget() -> None:
    memory = Memory(1200)
    for number in range(3000):
        memory.tell(one("x", BETTER, change=f"lesson{number} of its own{number}"), PARENT, True)
        assert len(memory._lessons) <= LESSONS
    text = memory.render()
    assert tokens(text) <= 1200
    assert "worked: lesson2999" in text
    assert "worked: lesson2980" in text
    assert "lesson2000 " not in text


@pytest.mark.parametrize("tokens_", [100, 1200])
def test_the_same_outcomes_give_the_same_memory(tokens_: int) -> None:
    texts = []
    for _ in range(2):
        memory = Memory(tokens_)
        for number in range(30):
            memory.tell(
                one("x", (BETTER, WORSE)[number % 2], change=f"change {number % 7}"), PARENT, False, number // 3
            )
        texts.append(memory.render())
    assert texts[0] == texts[1] != ""
