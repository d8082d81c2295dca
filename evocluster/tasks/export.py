"""A genome as something that works elsewhere: its requests as templates, and how answers are read from the replies.

`winner(...)` renders the genome through the `Frame` that ran it, with marks where an example's input goes, and puts
places into the text where the marks came out. Templates are the plainest part of Jinja's (and nunjucks'):
`{{input}}`, `{{field}}`, `{{context}}`, `{{reply}}`; `{% if context %}...{% endif %}` around a context block; and
`{% raw %}...{% endraw %}` around literal text that would be taken for one of these.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from evocluster.llm.client import Message, Request
from evocluster.records import Example, FrozenDict, FrozenJson, FrozenMap, Genome, Json, Record
from evocluster.tasks.answers import Answer
from evocluster.tasks.dataset import SPLITS, Splits
from evocluster.tasks.documents import Passage
from evocluster.tasks.program import Program, Vote, ballot
from evocluster.tasks.prompts import CONTEXT, INPUT, Frame, Genes, read_genes, show, show_passages

Wire = Callable[[str, Request], Mapping[str, Json]]
"""(model, request) -> the parameters that go with it, as JSON data."""
_FIELD = re.compile(r"\w+")
_TAG = re.compile(r"\{[{%#]")
_ENDS_RAW = re.compile(r"(?<=\{)(?=%[-+]?\s*endraw)")


class Shown(Record):
    """What one request shows, as templates: chat messages, or a plain prompt. Of a later request: what it adds."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None


class Ballot(Record):
    """The request that decides between answers; its places are `question`, `answers` and `numbers`."""

    model: str
    messages: tuple[Message, ...]


class Reading(Record):
    """How an answer is read from the last reply."""

    kind: Literal["label", "json", "text"]
    after: tuple[str, ...] = ()
    """The answer begins after the last of these words and a colon, any case; empty: the reply is the answer."""
    names: FrozenMap = FrozenDict()
    """Name that the model is shown -> label."""
    fold: bool = True
    """A name inside a text is found whatever its case."""
    opening: str = "{"
    """The bracket that the JSON begins with."""
    json_schema: FrozenJson = None
    model: str | None = None
    """Import path of the pydantic model that decides in place of the schema."""


class Winner(Record):
    """A genome without evocluster: one request for every vote, and those that follow it."""

    ask: Shown
    conclude: Shown | None = None
    """Added after the reasoning: the request for the answer."""
    repair: Shown | None = None
    """Added after a reply that does not do, up to `repairs` times."""
    repairs: int = 0
    fields: tuple[str, ...] = ()
    """Names of fields that the templates may speak of; empty where they speak of the whole input only."""
    objects: bool = False
    """Inputs are objects: the place `input` is one 'name: value' line a field."""
    context: bool = False
    """There is a place for retrieved passages."""
    passages: int = 0
    """How many passages were retrieved."""
    votes: tuple[str, ...]
    """The models that are asked, one for every vote."""
    ballot: Ballot | None = None
    """Where a model decides between answers that differ; None: most votes, then the earliest."""
    read: Reading
    calls: FrozenMap
    """Model -> 'ask', 'conclude', 'repair', 'ballot' -> the parameters of that request."""


def winner(program: Program, genome: Genome, splits: Splits, wire: Wire) -> Winner:
    """The genome as templates and parameters. Raises: ConfigError (it does not fit the task), errors.Refused."""
    task, genes = program.task, read_genes(genome)
    frame = program.framed(genome, genes, genes.demos)
    question = _Question(frame, splits)
    said = genes.use_consensus
    votes = said if isinstance(said, tuple) else (genes.model,) * said
    repairs = task.most_repairs if task.kind != "text" else 0
    calls: dict[str, dict[str, Mapping[str, Json]]] = {}
    for model in dict.fromkeys(votes):
        calls[model] = {step: wire(model, request) for step, request in question.steps(model, repairs).items()}
    steps = question.steps(votes[0], repairs)
    ballot = None
    if len(votes) > 1 and task.consensus.decide == "judge":
        request, ballot = _vote(question.marks, task.consensus.model or genes.model)
        calls.setdefault(ballot.model, {})["ballot"] = wire(ballot.model, request)
    last = steps.get("conclude", steps["ask"])
    return Winner(
        ask=question.shown(steps["ask"]),
        conclude=question.added(steps["ask"], last) if "conclude" in steps else None,
        repair=question.added(last, steps["repair"]) if "repair" in steps else None,
        repairs=repairs,
        fields=question.fields,
        objects=question.objects,
        context=bool(genes.retriever_topk),
        passages=genes.retriever_topk,
        votes=votes,
        ballot=ballot,
        read=_reading(program, genes, frame),
        calls=calls,
    )


class _Question:
    """A genome's requests, rendered with marks in place of an input, a context, a reply and a problem."""

    def __init__(self, frame: Frame, splits: Splits) -> None:
        inputs = [example.input for split in SPLITS for example in splits.of(split)]
        objects = [given for given in inputs if isinstance(given, Mapping)]
        names = list(dict.fromkeys(name for given in objects for name in given))
        self._frame = frame
        self.objects = bool(objects)
        self.fields = tuple(names) if frame.template else ()
        self.marks = _marks(frame.ask(_example(""), 0, 0), 4 + len(names))
        fresh = iter(self.marks)
        self._reply, self._problem, mark, passage = (next(fresh) for _ in range(4))
        spoken = {name: next(fresh) for name in names if _FIELD.fullmatch(name) and name not in (INPUT, CONTEXT)}
        # Under a name of its own beside them, so that no rubric can spell out what the whole object looks like.
        self._example = _example({**spoken, mark: mark} if objects else mark)
        passages = (Passage(id="", text=passage),)
        self._passages = passages if frame.genes.retriever_topk else ()
        self._places = {
            show(self._example.input): "{{input}}",
            self._reply: "{{reply}}",
            self._problem: "{{problem}}",
            **{spoken[name]: f"{{{{{name}}}}}" for name in spoken},
            **self._context_place(show_passages(passages)),
        }

    def steps(self, model: str, repairs: int) -> dict[str, Request]:
        """The requests of one vote, in their order."""
        frame = self._frame
        last = frame.ask(self._example, 0, 0, self._passages, model)
        found = {"ask": last}
        if frame.concludes:
            last = found["conclude"] = frame.conclude(last, self._reply)
        if repairs:
            found["repair"] = frame.repair(last, self._reply, self._problem)
        return found

    def shown(self, request: Request) -> Shown:
        """The templates of a request."""
        if request.prompt is not None:
            return Shown(prompt=template(request.prompt, self._places))
        return Shown(messages=_messages(request.messages, self._places))

    def added(self, first: Request, then: Request) -> Shown:
        """The templates of what a later request adds to an earlier one."""
        if then.prompt is not None and first.prompt is not None:
            assert then.prompt.startswith(first.prompt)
            return Shown(prompt=template(then.prompt[len(first.prompt) :], self._places))
        assert then.messages[: len(first.messages)] == first.messages
        return Shown(messages=_messages(then.messages[len(first.messages) :], self._places))

    def _context_place(self, block: str) -> dict[str, str]:
        """What becomes the place of the passages: with the space after them, where that goes when there are none."""
        if not self._passages:
            return {}
        full, bare = (_text(self._frame.ask(self._example, 0, 0, each)) for each in (self._passages, ()))
        if full.replace(block, "") == bare:
            return {block: "{{context}}"}
        return {f"{block}\n\n": "{% if context %}{{context}}\n\n{% endif %}"}


def template(text: str, places: Mapping[str, str]) -> str:
    """The text with places where the marks stand, everything else literal."""
    marks = sorted(places, key=len, reverse=True)
    found = re.split(f"({'|'.join(map(re.escape, marks))})", text)
    last = len(found) - 1
    return "".join(
        places[part] if number % 2 else escaped(part, before_place=number < last) for number, part in enumerate(found)
    )


def escaped(literal: str, before_place: bool = False) -> str:
    """Literal text as a template says it; `before_place`: a brace at its end would join with what follows."""
    if not (_TAG.search(literal) or (before_place and literal.endswith("{"))):
        return literal
    *parts, last = _ENDS_RAW.split(literal)
    raw = [f"{{% raw %}}{part}{{% endraw %}}" for part in parts]
    if _TAG.search(last) or (before_place and last.endswith("{")):
        last = f"{{% raw %}}{last}{{% endraw %}}"
    return "".join([*raw, last])


def _messages(messages: Sequence[Message], places: Mapping[str, str]) -> tuple[Message, ...]:
    return tuple(Message(role=each.role, content=template(each.content, places)) for each in messages)


def _marks(request: Request, count: int) -> list[str]:
    """Texts that stand nowhere in a request, none of them inside another."""
    lead, text = "\ue000", _text(request)
    while lead in text:
        lead += "\ue000"
    return [f"{lead}{number}\ue001" for number in range(count)]


def _text(request: Request) -> str:
    if request.prompt is not None:
        return request.prompt
    return "\n".join(message.content for message in request.messages)


def _example(given: Json) -> Example:
    return Example(id="", input=given)


def _vote(marks: Sequence[str], model: str) -> tuple[Request, Ballot]:
    """The request for a decision, and its templates."""
    question, *outputs = marks[:3]
    request = ballot(_example(question), [Vote("", Answer(output=output), 0) for output in outputs], model)
    answers = "\n\n".join(f"Answer {number}:\n{output}" for number, output in enumerate(outputs, 1))
    places = {question: "{{question}}", answers: "{{answers}}", "1, 2": "{{numbers}}"}
    return request, Ballot(model=model, messages=_messages(request.messages, places))


def _reading(program: Program, genes: Genes, frame: Frame) -> Reading:
    task = program.task
    after = ("Answer", task.words[1]) if genes.cot else ()
    if frame.naming is not None:
        names = {name: label for label, name in frame.naming.shown.items()}
        return Reading(kind="label", after=after, names=names, fold=genes.label_names != "letters")
    if task.kind == "text":
        return Reading(kind="text", after=after)
    schema = task.answer_schema
    if schema is None:
        return Reading(kind="json", after=after)
    opening = "[" if schema.schema.get("type") == "array" else "{"
    model = schema.model and _placed(schema.model)
    return Reading(kind="json", after=after, opening=opening, json_schema=schema.schema, model=model)


def _placed(spec: str) -> str:
    """An import path without the folder of this machine."""
    where, name = spec.rsplit(":", 1)
    return f"{Path(where).name if where.endswith('.py') else where}:{name}"
