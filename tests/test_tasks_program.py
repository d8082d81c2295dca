"""The program: what each gene shows the model, how completions are read, and what never reaches a prompt."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocluster.errors import ConfigError, Overloaded, Refused
from evocluster.llm.client import Reply, Request
from evocluster.records import Example, Genome, Json, canonical
from evocluster.tasks.answers import Naming, after_marker, first_json
from evocluster.tasks.dataset import Splits
from evocluster.tasks.documents import Passage, Retrieval
from evocluster.tasks.execution import Execution
from evocluster.tasks.program import FRAMES_KEPT, Program
from evocluster.tasks.prompts import STEP_BY_STEP, name_labels
from evocluster.tasks.retrieval import Index
from evocluster.tasks.task import Task

LABELS = ["AddToPlaylist", "PlayMusic", "rate_book"]
PLAIN = {"AddToPlaylist": "add", "PlayMusic": "play", "rate_book": "rate"}
TRAIN = {f"t{at}": Example(id=f"t{at}", input=f"train text {at}", expected=LABELS[at % 3]) for at in range(6)}
ASKED = Example(id="v1", input="play the secret song", expected="PlayMusic")
CLASSIFY = Task.model_validate(
    {
        "kind": "classification",
        "data": {"train": "t"},
        "labels": LABELS,
        "label_names": {"plain": PLAIN},
    }
)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
EXTRACT = Task.model_validate({"kind": "extraction", "data": {"train": "t"}, "json_schema": SCHEMA})
WRITE = Task.model_validate({"kind": "text", "data": {"train": "t"}})
RUBRIC = "Which of {labels}?"


class Model:
    """Remembers what it was asked; answers with a function of the request."""

    def __init__(self, answer: Callable[[Request], str] = lambda request: "PlayMusic") -> None:
        self.asked: list[Request] = []
        self._answer = answer

    async def __call__(self, request: Request) -> Reply:
        self.asked.append(request)
        text = self._answer(request)
        return Reply(text=text, prompt_tokens=10, completion_tokens=2, usd=0.5, seconds=0.25)


async def ran(
    task: Task = CLASSIFY,
    answer: Callable[[Request], str] = lambda request: "PlayMusic",
    example: Example = ASKED,
    **genes: Json,
) -> tuple[Execution, list[Request]]:
    model = Model(answer)
    execution = await Program(task, TRAIN).run(example, Genome(genes=genes), model)
    return execution, model.asked


def shown(request: Request) -> list[str]:
    return [f"{message.role}: {message.content}" for message in request.messages]


async def test_chat() -> None:
    execution, (request,) = await ran(rubric=RUBRIC, demos=["t1", "t0"], model="m", max_tokens=7, temperature=0.5)
    assert shown(request) == [
        "system: Which of AddToPlaylist, PlayMusic, rate_book?",
        "user: train text 1",
        "assistant: PlayMusic",
        "user: train text 0",
        "assistant: AddToPlaylist",
        "user: play the secret song",
    ]
    assert (request.model, request.max_tokens, request.temperature) == ("m", 7, 0.5)
    assert (request.choices, request.stop, request.prompt) == ((), (), None)
    assert (execution.output, execution.parsed, execution.schema_ok) == ("PlayMusic", "PlayMusic", True)
    assert execution.trace[0].prompt.endswith("user: play the secret song")


async def test_inline() -> None:
    _, (request,) = await ran(rubric="Which?", demos=["t1"], demo_style="inline")
    assert shown(request) == [
        "user: Which?\n\nText: train text 1\nLabel: PlayMusic\n\nText: play the secret song\nLabel:"
    ]


async def test_completion() -> None:
    _, (request,) = await ran(rubric="Which?", demos=["t1"], demo_style="completion", constrain=True)
    assert request.prompt == "Which?\n\nText: train text 1\nLabel: PlayMusic\n\nText: play the secret song\nLabel:"
    assert (request.messages, request.stop) == ((), ("\n",))
    assert request.choices == (" AddToPlaylist", " PlayMusic", " rate_book")


async def test_a_plain_start_is_plain() -> None:
    _, (request,) = await ran(rubric="Which?")
    assert shown(request) == ["system: Which?", "user: play the secret song"]
    _, (bare,) = await ran()
    assert shown(bare) == ["user: play the secret song"]


@pytest.mark.parametrize(
    ("style", "system", "answer", "choice"),
    [
        ("spaced", "Which of add to playlist, play music, rate book?", "Play music.", "play music"),
        ("plain", "Which of add, play, rate?", "play", "play"),
        ("letters", "Which of A = AddToPlaylist, B = PlayMusic, C = rate_book?", "(B)", "B"),
    ],
)
async def test_label_names(style: str, system: str, answer: str, choice: str) -> None:
    execution, (request,) = await ran(
        answer=lambda _: answer, rubric=RUBRIC, demos=["t1"], label_names=style, constrain=True
    )
    assert shown(request)[:3] == [f"system: {system}", "user: train text 1", f"assistant: {choice}"]
    assert request.choices[1] == choice
    assert (execution.output, execution.raw) == ("PlayMusic", answer)


async def test_letters_always_have_a_legend() -> None:
    _, (request,) = await ran(rubric="Which?", label_names="letters")
    assert shown(request)[0] == "system: Which?\nA = AddToPlaylist, B = PlayMusic, C = rate_book"
    many = name_labels([f"l{at}" for at in range(28)], "letters", {})
    assert (many.shown["l25"], many.shown["l26"], many.shown["l27"]) == ("Z", "AA", "AB")


async def test_reasoning_then_answer() -> None:
    execution, (request,) = await ran(
        answer=lambda _: "It is about a song.\n**Answer:** PlayMusic", cot=True, demos=["t0"]
    )
    assert "step by step" in shown(request)[0]
    assert shown(request)[2] == "assistant: Answer: AddToPlaylist"
    assert request.max_tokens == 96 + 64
    assert execution.output == "PlayMusic"
    _, (completion,) = await ran(cot=True, demo_style="completion")
    assert (completion.prompt or "").endswith("Text: play the secret song\nReasoning:")
    assert completion.stop == ("\n\nText:",)


@pytest.mark.parametrize("style", ["chat", "inline", "completion"])
async def test_reasoning_then_a_constrained_answer(style: str) -> None:
    execution, (first, second) = await ran(
        answer=lambda request: "rate_book" if request.choices else " Some thought.",
        cot=True,
        constrain=True,
        demo_style=style,
        max_tokens=5,
    )
    assert (first.choices, first.max_tokens, first.stop) == ((), 96, ("Answer:",))
    assert second.max_tokens == 5
    assert len(second.choices) == 3
    if style == "completion":
        assert second.prompt == f"{first.prompt} Some thought.\nAnswer:"
    else:
        assert shown(second)[-2:] == ["assistant: Some thought.", "user: Give only the final answer."]
    assert execution.output == "rate_book"
    assert (execution.usage.calls, execution.usage.seconds, execution.usage.usd) == (2, 0.5, 1.0)
    assert [step.purpose for step in execution.trace] == ["reason", "conclude"]


async def test_an_example_is_left_out_of_its_own_demos() -> None:
    _, (request,) = await ran(example=TRAIN["t1"], demos=["t0", "t1", "t2"])
    assert [text for text in shown(request) if "train text 1" in text] == ["user: train text 1"]
    twin = Example(id="t1", input="TRAIN TEXT 1", expected="PlayMusic")
    _, (other,) = await ran(example=twin, demos=["t0", "t1", "t2"])
    assert len(other.messages) == 5


GENES: dict[str, tuple[Json, Json]] = {
    "rubric": ("One", "Two"),
    "cot": (False, True),
    "temperature": (0.0, 0.5),
    "max_tokens": (4, 8),
    "model": ("a", "b"),
    "demos": (["t0", "t1"], ["t1", "t0"]),
    "demo_style": ("chat", "completion"),
    "constrain": (False, True),
    "label_names": ("as_is", "letters"),
}
NUMBERED = {key: Example(id=key, input=each.input, expected={"n": 1}) for key, each in TRAIN.items()}


@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in GENES.items()}),
    st.sampled_from(sorted(GENES)),
)
async def test_every_gene_changes_what_is_asked_whatever_the_others_are(genes: dict[str, Json], changed: str) -> None:
    for task, train in ((CLASSIFY, TRAIN), (EXTRACT, NUMBERED), (WRITE, TRAIN)):
        program = Program(task, train)
        asked = []
        for value in GENES[changed]:
            model = Model()
            await program.run(ASKED, Genome(genes={**genes, changed: value}), model)
            asked.append(model.asked)
        assert (asked[0] != asked[1]) == (changed in program.genes)


@given(st.fixed_dictionaries({name: st.sampled_from(values) for name, values in GENES.items()}))
async def test_only_train_and_the_asked_input_reach_a_prompt(genes: dict[str, Json]) -> None:
    program, model = Program(CLASSIFY, TRAIN), Model()
    others = [
        Example(id=f"v{at}", input=f"hidden input {at}", expected="PlayMusic", meta={"m": "hidden"}) for at in (2, 3)
    ]
    for example in others:
        await program.run(example, Genome(genes=genes), model)
    await program.run(ASKED, Genome(genes=genes), model)
    for request in model.asked:
        if "secret song" in request.model_dump_json():
            assert "hidden" not in request.model_dump_json()
        else:
            assert request.model_dump_json().count("hidden input") == 1


async def test_sampling_noise_differs_by_item_and_is_repeatable() -> None:
    program, model = Program(CLASSIFY, TRAIN), Model()
    genome = Genome(genes={})
    for replicate, twin in ((0, 0), (1, 0), (0, 1), (0, 0)):
        await program.run(ASKED, genome, model, replicate, twin)
    await program.run(TRAIN["t0"], genome, model)
    seeds = [request.seed for request in model.asked]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 4
    assert [request.replicate for request in model.asked] == [0, 1, 0, 0, 0]


async def test_a_failed_call_is_recorded_with_what_was_spent() -> None:
    def second_fails(request: Request) -> str:
        if request.choices:
            raise Overloaded("503 from m")
        return "thought"

    execution, _ = await ran(answer=second_fails, cot=True, constrain=True)
    assert execution.error == "model: Overloaded: 503 from m"
    assert (execution.usage.calls, execution.schema_ok, execution.output) == (1, False, "")


async def test_what_no_other_example_can_do_better_is_raised() -> None:
    def refuse(request: Request) -> str:
        raise Refused("401")

    with pytest.raises(Refused):
        await ran(answer=refuse)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"demos": ["t0", "v2"]}, r"demo 'v2' is not among the 6 train examples"),
        (
            {"label_names": "leters"},
            r"'leters': allowed are as_is, spaced, letters, plain; did you mean 'letters'",
        ),
        (
            {"demo_style": "chatty"},
            r"gene 'demo_style' is 'chatty': Input should be 'chat', 'inline' or 'completion'",
        ),
        ({"cot": "yes", "max_tokens": 0}, r"gene 'cot' is 'yes'.*gene 'max_tokens' is 0"),
    ],
)
async def test_genomes_that_do_not_fit_the_task(genes: dict[str, Json], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        await ran(**genes)


def test_names_that_collide_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'spaced' gives two labels the same name"):
        name_labels(["AddTo", "add_to"], "spaced", {})


async def test_extraction_and_objects() -> None:
    example = Example(id="x", input={"title": "Order", "count": 3}, expected={"n": 3})
    train = {"d": Example(id="d", input={"title": "A"}, expected={"n": 1, "s": "\u00e9"})}
    model = Model(lambda _: 'Sure: {"n": 3} and {"n": 4}')
    genome = Genome(genes={"demos": ["d"], "demo_style": "completion", "constrain": True})
    execution = await Program(EXTRACT, train).run(example, genome, model)
    (request,) = model.asked
    assert (
        request.prompt == 'Input: title: A\nOutput: {"n": 1, "s": "\u00e9"}\n\nInput: title: Order\ncount: 3\nOutput:'
    )
    assert (request.stop, request.choices) == (("\n\n",), ())
    assert canonical(request.json_schema) == canonical(SCHEMA)
    assert (execution.output, execution.parsed, execution.schema_ok) == ('{"n":3}', {"n": 3}, True)
    for raw, ok, output in (('{"n": "x"}', False, '{"n":"x"}'), ("{n: 3}", False, "{n: 3}")):
        model = Model(lambda _, raw=raw: raw)  # type: ignore[misc]
        execution = await Program(EXTRACT, train).run(example, genome, model)
        assert (execution.schema_ok, execution.output) == (ok, output)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('a {b {"n": 1}', {"n": 1}),
        ('{"n": NaN} {"n": 2}', {"n": 2}),
        ('{"n": "\\ud800"}', None),
        ("{" * 3000, None),
        ("", None),
    ],
)
def test_first_json(text: str, value: Json) -> None:
    assert first_json(text) == value


def test_first_json_finds_arrays_where_asked() -> None:
    assert first_json('{"a": 1} [1, 2]', "[") == [1, 2]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        (" PlayMusic\n", "PlayMusic"),
        ("playmusic!", "PlayMusic"),
        ("I say PlayMusic, not rate_book", "PlayMusic"),
        ("rate book", "rate_book"),
        ("PlayMusical", None),
        ("PlayMusc", None),
        ("", None),
    ],
)
def test_labels_are_read_strictly(text: str, label: str | None) -> None:
    assert Naming({name: name for name in LABELS}).read(text) == label


def test_letters_are_found_by_case_and_colliding_names_only_exactly() -> None:
    letters = name_labels(LABELS, "letters", {})
    assert letters.read("a tough one: B") == "PlayMusic"
    assert letters.read("b") == "PlayMusic"
    assert letters.read("That is a bad sign") is None
    alike = Naming({"one": "yes", "two": "Yes!"})
    assert (alike.read("Yes!"), alike.read("YES"), alike.read("yes")) == ("two", None, "one")


@given(
    st.sampled_from(LABELS),
    st.sampled_from(["as_is", "spaced", "letters", "plain"]),
    st.sampled_from(["{}", " {}.\n", "({})"]),
)
def test_what_is_shown_is_read_back(label: str, style: str, form: str) -> None:
    naming = name_labels(LABELS, style, {"plain": PLAIN})
    assert naming.read(form.format(naming.shown[label])) == label


def test_after_marker() -> None:
    assert after_marker("x Answer: a\nanswer: b", ("Answer",)) == "b"
    assert after_marker("thinking", ("Answer",)) == "thinking"
    assert after_marker("so Answer:", ("Answer",)) == "so Answer:"


def test_calls_per_item() -> None:
    program = Program(CLASSIFY, TRAIN)
    assert program.calls_per_item({}) == 1
    assert program.calls_per_item({"cot": [False, True]}) == 1
    assert program.calls_per_item({"cot": [False, True], "constrain": [True]}) == 2
    assert Program(WRITE, TRAIN).calls_per_item({"cot": [True], "constrain": [True]}) == 1


async def test_frames_are_bounded_and_a_program_pickles() -> None:
    program = Program(EXTRACT, NUMBERED)
    for number in range(FRAMES_KEPT + 5):
        await program.run(ASKED, Genome(genes={"rubric": str(number)}), Model(lambda _: '{"n": 1}'))
    assert len(program._frames) == FRAMES_KEPT
    again: Program = pickle.loads(pickle.dumps(program))
    execution = await again.run(ASKED, Genome(genes={}), Model(lambda _: '{"n": "x"}'))
    assert not execution.schema_ok


def test_an_unsettled_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="not settled"):
        Program(Task.model_validate({"kind": "classification", "data": {"train": "t"}}), {})


async def test_rubric_says_where_the_input_stands() -> None:
    asked = Example(id="v2", input={"question": "Which {labels}?", "tone": "calm"})
    execution, (request,) = await ran(
        task=WRITE, example=asked, rubric='Be {tone}. Q: {question} {unknown} {"a": 1}', demos=["t1"]
    )
    # Fields are known from train; this train has texts only, so nothing here is a template.
    assert shown(request)[0].startswith("system: Be {tone}.")
    train = {"t1": Example(id="t1", input={"question": "How?", "tone": "loud"}, expected="So.")}
    model = Model()
    program = Program(WRITE, train)
    genes = {"rubric": 'Be {tone}. Q: {question} {unknown} {"a": 1}', "demos": ["t1"]}
    await program.run(asked, Genome(genes=genes), model)
    assert shown(model.asked[0]) == [
        'user: Be loud. Q: How? {unknown} {"a": 1}',
        "assistant: So.",
        'user: Be calm. Q: Which {labels}? {unknown} {"a": 1}',
    ]
    await program.run(asked, Genome(genes={**genes, "demo_style": "completion", "cot": True}), model)
    assert model.asked[1].prompt == (
        f'Be loud. Q: How? {{unknown}} {{"a": 1}}\n{STEP_BY_STEP}\nAnswer: So.\n\n'
        f'Be calm. Q: Which {{labels}}? {{unknown}} {{"a": 1}}\n{STEP_BY_STEP}\nReasoning:'
    )
    assert execution.schema_ok


async def test_whole_input_in_a_template() -> None:
    _, (request,) = await ran(rubric="Text: {input}\nOne of {labels}:")
    assert shown(request) == ["user: Text: play the secret song\nOne of AddToPlaylist, PlayMusic, rate_book:"]


def _replies(*texts: str) -> Callable[[Request], str]:
    left = list(texts)
    return lambda request: left.pop(0)


async def test_answer_that_does_not_parse_is_asked_for_again() -> None:
    task = EXTRACT.model_copy(update={"repairs": 2})
    execution, asked = await ran(task, _replies("no json", '{"n": "x"}', '{"n": 3}'), rubric="Extract n.")
    assert (execution.parsed, execution.schema_ok, execution.repairs) == ({"n": 3}, True, 2)
    assert execution.usage.calls == 3
    assert execution.usage.usd == 1.5
    assert execution.usage.seconds == 0.75
    assert [step.purpose for step in execution.trace] == ["answer", "repair", "repair"]
    assert shown(asked[1])[-2:] == [
        "assistant: no json",
        "user: That is not valid: there is no JSON object in it. Reply with the corrected JSON only.",
    ]
    assert "'x' is not of type 'integer' at $.n" in shown(asked[2])[-1]
    assert len(shown(asked[2])) == len(shown(asked[1]))


async def test_repairs_are_bounded() -> None:
    execution, asked = await ran(EXTRACT, lambda request: "never", rubric="Extract n.")
    assert (execution.schema_ok, execution.repairs, len(asked)) == (False, 1, 2)
    execution, asked = await ran(EXTRACT.model_copy(update={"repairs": 0}), lambda request: "never")
    assert (execution.schema_ok, execution.repairs, len(asked)) == (False, 0, 1)
    execution, asked = await ran(CLASSIFY.model_copy(update={"repairs": 1}), _replies("hm", "PlayMusic"))
    assert (execution.output, execution.repairs) == ("PlayMusic", 1)
    assert "it is none of AddToPlaylist, PlayMusic, rate_book" in shown(asked[1])[-1]


async def test_repair_of_a_plain_completion_and_of_a_bounded_one() -> None:
    execution, asked = await ran(
        EXTRACT, _replies("{}", '{"n": 1}'), demo_style="completion", constrain=True, rubric="N?"
    )
    assert execution.parsed == {"n": 1}
    assert asked[1].prompt == (
        "N?\n\nInput: play the secret song\nOutput: {}\n\n"
        "That is not valid: 'n' is a required property at $. Reply with the corrected JSON only.\nOutput:"
    )
    assert asked[1].json_schema == SCHEMA
    assert asked[1].stop == ("\n\n",)


async def test_pydantic_model_validates_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "shapes.py").write_text(
        "from pydantic import BaseModel, field_validator\n"
        "class Count(BaseModel):\n"
        "    n: int\n"
        "    @field_validator('n')\n"
        "    @classmethod\n"
        "    def even(cls, n):\n"
        "        if n % 2:\n"
        "            raise ValueError('n must be even')\n"
        "        return n\n"
    )
    train = tuple(Example(id=str(n), input=f"{n}", expected={"n": n}) for n in (2, 4))
    task = Task.model_validate(
        {"kind": "extraction", "data": {"train": "t"}, "json_schema": f"{tmp_path / 'shapes.py'}:Count"}
    ).settled(Splits(train, (), ()))
    program = pickle.loads(pickle.dumps(Program(task, {})))
    model = Model(_replies('{"n": 3}', '{"n": 8}'))
    execution = await program.run(ASKED, Genome(genes={"rubric": "N?", "constrain": True}), model)
    assert (execution.parsed, execution.repairs) == ({"n": 8}, 1)
    assert "n: Value error, n must be even" in shown(model.asked[1])[-1]
    assert model.asked[0].json_schema["properties"]["n"]["type"] == "integer"
    with pytest.raises(ConfigError, match="train example 'odd' expects what it forbids: n: Value error, n must be"):
        task.settled(Splits((Example(id="odd", input="3", expected={"n": 3}),), (), ()))


async def test_majority_of_samples() -> None:
    execution, asked = await ran(
        answer=lambda request: "rate_book" if request.replicate in (0, 2000) else "PlayMusic",
        use_consensus=5,
        temperature=1.0,
    )
    assert execution.output == "PlayMusic"
    assert [request.replicate for request in asked] == [0, 1000, 2000, 3000, 4000]
    assert len({request.seed for request in asked}) == 5
    assert execution.usage.calls == 5
    assert execution.usage.usd == 2.5
    assert execution.usage.seconds == 0.25  # side by side
    assert execution.confidence == 3 / 5


async def test_several_models_vote_and_ties_go_to_the_first() -> None:
    execution, asked = await ran(
        answer=lambda request: "rate_book" if request.model == "a" else "PlayMusic", use_consensus=["a", "b", "a", "b"]
    )
    assert execution.output == "rate_book"
    assert [(request.model, request.replicate) for request in asked] == [("a", 0), ("b", 0), ("a", 1000), ("b", 1000)]


async def test_votes_that_fail_or_do_not_parse_do_not_count() -> None:
    def answer(request: Request) -> str:
        if request.model == "broken":
            raise Overloaded("busy")
        return "hm" if request.model == "vague" else "PlayMusic"

    execution, _ = await ran(answer=answer, use_consensus=["broken", "vague", "vague", "good"])
    assert (execution.output, execution.error) == ("PlayMusic", None)
    assert execution.confidence == 1 / 4
    assert execution.usage.calls == 3
    execution, _ = await ran(answer=answer, use_consensus=["broken", "broken"])
    assert execution.error == "model: Overloaded: busy"
    assert execution.confidence is None
    execution, _ = await ran(answer=lambda request: "hm")
    assert execution.confidence == 0
    execution, _ = await ran(answer=lambda request: "PlayMusic")
    assert execution.confidence == 1


async def test_a_judge_decides_where_the_votes_differ() -> None:
    settings = Task.model_validate(
        {"kind": "text", "data": {"train": "t"}, "consensus": {"decide": "judge", "model": "big"}}
    )

    def answer(request: Request) -> str:
        return "I take 2." if request.model == "big" else f"text {request.replicate // 2000}"

    execution, asked = await ran(settings, answer, use_consensus=3)
    assert execution.output == "text 1"
    assert execution.usage.calls == 4
    assert execution.usage.seconds == 0.5
    assert execution.trace[-1].purpose == "vote"
    assert "Answer 1:\ntext 0\n\nAnswer 2:\ntext 1" in shown(asked[-1])[0]
    execution, asked = await ran(settings, lambda request: "same", use_consensus=3)
    assert (execution.output, len(asked)) == ("same", 3)
    execution, _ = await ran(
        settings,
        lambda request: "both" if request.model == "big" else f"text {request.replicate // 2000}",
        use_consensus=3,
    )
    assert execution.output == "text 0"  # two of three


async def test_passages_come_into_the_prompt() -> None:
    index = Index(
        Retrieval(documents="x"),
        [
            Passage(id="songs", title="Songs", text="The secret song is number nine."),
            Passage(id="cats", text="Cats sleep."),
            Passage(id="play", text="Press play."),
        ],
    )
    model = Model()
    program = pickle.loads(pickle.dumps(Program(WRITE, TRAIN, index)))
    execution = await program.run(ASKED, Genome(genes={"rubric": "Answer.", "retriever_topk": 2}), model)
    assert [passage.id for passage in execution.passages] == ["songs", "play"]
    assert shown(model.asked[0]) == [
        "system: Answer.",
        "user: Context:\n[1] Songs\nThe secret song is number nine.\n[2] Press play.\n\nplay the secret song",
    ]
    await program.run(ASKED, Genome(genes={"rubric": "Use <{context}>.", "retriever_topk": 1}), model)
    assert shown(model.asked[1]) == [
        "user: Use <Context:\n[1] Songs\nThe secret song is number nine.>.\n\nInput: play the secret song"
    ]
    execution = await program.run(ASKED, Genome(genes={"rubric": "Answer.", "retriever_topk": 0}), model)
    assert shown(model.asked[2]) == ["system: Answer.", "user: play the secret song"]
    assert execution.passages == ()


async def test_what_breaks_in_retrieval_is_the_examples_failure() -> None:
    index = Index(Retrieval(documents="x", query="question"), [Passage(id="a", text="b")])
    execution = await Program(WRITE, TRAIN, index).run(ASKED, Genome(genes={"retriever_topk": 1}), Model())
    assert execution.error is not None
    assert execution.error.startswith("retrieval: ValueError: the input is no object with a field 'question'")
    with pytest.raises(ConfigError, match="there is nothing to retrieve from"):
        await ran(retriever_topk=1)


def test_most_calls_of_an_example() -> None:
    program = Program(EXTRACT, TRAIN)
    assert program.calls_per_item({}) == 2
    assert program.calls_per_item({"cot": (True,), "constrain": (True, False)}) == 3
    assert program.calls_per_item({"use_consensus": (1, 3)}) == 6
    assert program.calls_per_item({"use_consensus": (("a", "b"),), "cot": (True,), "constrain": (True,)}) == 6
    judged = Task.model_validate({"kind": "text", "data": {"train": "t"}, "consensus": {"decide": "judge"}})
    assert Program(judged, TRAIN).calls_per_item({"use_consensus": (3,)}) == 4
