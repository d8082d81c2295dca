"""The program of an exported configuration, without evocluster: what `evocluster export --as openai` writes to a file.

It is a whole module, typed and linted like any other, that is never imported here: `standalone` copies its text, puts
a configuration in place of `WINNER` and leaves out what that configuration does not need. A line that ends in
`# only: a b`, and lines between `# only: a b` and `# end`, stay where one of these features is there; `# include:`
brings in the functions of a file beside this one. What it does is what tasks.prompts, program and answers do.
"""

from __future__ import annotations

import hashlib  # only: seeded
import importlib.util  # only: modelled
import json
import os
import re
import sys
import unicodedata  # only: normalised
from collections import Counter  # only: voting
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache  # only: modelled
from pathlib import Path  # only: modelled
from typing import Any

from jsonschema.validators import validator_for  # only: validated
from openai import OpenAI, OpenAIError
from pydantic import BaseModel, ValidationError  # only: modelled
from referencing import Registry  # only: validated

from evocluster.cli.flaws import flaw  # only: never

WINNER: dict[str, Any] = json.loads(r"""
{}
""")
Prompt = list[Any] | str
"""Chat messages, or a plain text that the model continues."""


@dataclass(frozen=True)
class Answer:
    """What was read from a reply."""

    output: str
    parsed: Any = None
    ok: bool = True
    """The reply is of the form that is asked for."""
    problem: str = ""
    """Why it is not."""


def answer(client: OpenAI | Mapping[str, OpenAI], input: Any, context: str = "", id: str | None = None) -> Answer:
    """The answer to one input: a text, or an object with named fields.

    `client`: from `connect()`, or any other that reaches the model.
    `context`: retrieved passages, as `passages_block` writes them.
    `id`: of the example in the run, for the seed that was sent there; without one the input decides the seed.
    Raises: OpenAIError.
    """
    prompt = render(input, context)
    key = show(input) if id is None else id  # only: seeded
    key = ""  # only: seedless
    # only: voting
    if len(WINNER["votes"]) > 1:
        return decide(client, input, vote(client, prompt, key))
    # end
    return ask(client, WINNER["votes"][0], prompt, key, 0)


def render(input: Any, context: str = "") -> Prompt:
    """What the model is first shown for an input. Raises: ValueError for a context that no place is kept for."""
    if context and not WINNER["context"]:
        raise ValueError("this configuration was found without retrieval: it has no place for a context")
    known = {"input": show(input), "context": context, _BLOCK: context}
    if WINNER["fields"] and isinstance(input, Mapping):
        known |= {name: show_value(value) for name, value in input.items()}
    shown = WINNER["ask"]
    if shown["prompt"] is not None:
        return fill(shown["prompt"], known)
    return fill_messages(shown["messages"], known)


# only: retrieving
def passages_block(passages: list[dict[str, str]]) -> str:
    """The `context` of `answer` for retrieved passages, best first: {"text": ..., "title": ...}."""
    shown = [f"{each['title']}\n{each['text']}" if each.get("title") else each["text"] for each in passages]
    return "\n".join(["Context:", *(f"[{number}] {text}" for number, text in enumerate(shown, 1))]) if shown else ""


# end
def ask(client: OpenAI | Mapping[str, OpenAI], model: str, prompt: Prompt, key: str, sample: int) -> Answer:
    """One answer of one model."""
    calls = WINNER["models"][model]["calls"]
    client = client if isinstance(client, OpenAI) else client[model]  # only: several
    seed = seed_of(key, sample)  # only: seeded
    seed = 0  # only: seedless
    reply = send(client, prompt, calls["ask"], seed)
    # only: concluding
    prompt = follow(prompt, WINNER["conclude"], {"reply": reply.strip() or "..."})
    reply = send(client, prompt, calls["conclude"], seed)
    # end
    return read(reply)  # only: unrepaired
    # only: repairing
    found = read(reply)
    for _ in range(WINNER["repairs"]):
        if found.ok:
            break
        known = {"reply": reply.strip()[:2000] or "...", "problem": found.problem}
        reply = send(client, follow(prompt, WINNER["repair"], known), calls["repair"], seed)
        found = read(reply)
    return found
    # end


# only: voting
def vote(client: OpenAI | Mapping[str, OpenAI], prompt: Prompt, key: str) -> list[Answer]:
    """Every sample's answer; those that failed are left out while one succeeded."""
    models, failures, answers = WINNER["votes"], [], []
    for place, model in enumerate(models):
        try:
            answers.append(ask(client, model, prompt, key, 1000 * models[:place].count(model)))
        except OpenAIError as failure:
            failures.append(failure)
    if not answers:
        raise failures[0]
    return answers


def decide(client: OpenAI | Mapping[str, OpenAI], input: Any, answers: list[Answer]) -> Answer:
    """The answer most agree on, the earliest of them; where a judge decides, the one it picks."""
    if len(answers) == 1:
        return answers[0]
    able = [each for each in answers if each.ok] or answers
    names = [name_of(each) for each in able]
    # only: judged
    distinct = [able[names.index(name)] for name in dict.fromkeys(names)]
    if len(distinct) > 1:
        picked = pick(client, input, distinct)
        if 1 <= picked <= len(distinct):
            return distinct[picked - 1]
    # end
    return able[names.index(Counter(names).most_common(1)[0][0])]


def name_of(found: Answer) -> str:
    """Answers of one name are the same answer."""
    # only: json
    if found.parsed is not None:
        return found.output
    # end
    return normalise(found.output)


# end
# only: judged
def pick(client: OpenAI | Mapping[str, OpenAI], input: Any, answers: list[Answer]) -> int:
    """The number of the answer that a model finds best; 0 when it names none."""
    ballot = WINNER["ballot"]
    client = client if isinstance(client, OpenAI) else client[ballot["model"]]  # only: several
    shown = [f"Answer {number}:\n{each.output[:1500]}" for number, each in enumerate(answers, 1)]
    known = {
        "question": input if isinstance(input, str) else canonical(input),
        "answers": "\n\n".join(shown),
        "numbers": ", ".join(str(number) for number in range(1, len(answers) + 1)),
    }
    call = WINNER["models"][ballot["model"]]["calls"]["ballot"]
    number = re.search(r"\d+", send(client, fill_messages(ballot["messages"], known), call, 0))
    return int(number[0]) if number else 0


# end
def send(client: Any, prompt: Prompt, call: Mapping[str, Any], seed: int) -> str:
    """The text of one reply. Raises: OpenAIError."""
    parameters = {**call["parameters"], **({"seed": seed} if call["seeded"] else {})}
    if isinstance(prompt, str):
        choice = client.completions.create(prompt=prompt, **parameters).choices[0]
        text = choice.text
    else:
        choice = client.chat.completions.create(messages=prompt, **parameters).choices[0]
        text = choice.message.content
    if not isinstance(text, str):
        raise OpenAIError("the model answered without text")
    # only: wrapped
    if call["wrapped"]:
        return unwrap(text, choice.finish_reason)
    # end
    return text


# only: wrapped
def unwrap(text: str, finish_reason: str) -> str:
    """The choice inside {"answer": ...}; a reply that was cut stays as it is. Raises: OpenAIError."""
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError) as error:
        if finish_reason == "length":
            return text
        raise OpenAIError(f"a reply that is not of the form asked for: {text[:80]!r}") from error


# end
# only: seeded
def seed_of(key: str, sample: int) -> int:
    """The seed of a sample: the run's own, where `key` is the id of its example."""
    name = json.dumps([key, 0, sample], separators=(",", ":"), ensure_ascii=False)
    first = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) & 0x7FFFFFFF
    return (first + 1_000_003 * sample) % 2**31


# end
# only: concluding repairing
def follow(prompt: Prompt, more: Mapping[str, Any], known: Mapping[str, str]) -> Prompt:
    """The prompt of a second request: the first one and what comes after it."""
    if isinstance(prompt, str):
        return prompt + fill(more["prompt"], known)
    return [*prompt, *fill_messages(more["messages"], known)]


# end
_PLACE = re.compile(
    r"\{% raw %\}(.*?)\{% endraw %\}|\{% if context %\}(.*?)\{% endif %\}|\{\{(\w+)\}\}",
    re.DOTALL,
)
_BLOCK = "if context"
"""What the context block holds, whatever a field of the input is called."""


def fill(template: str, known: Mapping[str, str]) -> str:
    """A template with its places filled in, in one pass: braces inside an input are never taken for places."""

    def filled(found: re.Match[str]) -> str:
        literal, block, name = found.groups()
        if literal is not None:
            return str(literal)
        if block is not None:
            return fill(block, {"context": known[_BLOCK]}) if known.get(_BLOCK) else ""
        return known.get(name, f"{{{name}}}")

    return _PLACE.sub(filled, template)


def fill_messages(messages: list[dict[str, str]], known: Mapping[str, str]) -> list[dict[str, str]]:
    """Chat messages with their places filled in."""
    return [{"role": each["role"], "content": fill(each["content"], known)} for each in messages]


def show(input: Any) -> str:
    """An input as the model sees it: text as it is, an object as one 'name: value' line a field."""
    if isinstance(input, Mapping):
        return "\n".join(f"{name}: {show_value(value)}" for name, value in input.items())
    return show_value(input)


def show_value(value: Any) -> str:
    """A text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read(text: str) -> Answer:
    """The answer in a reply."""
    text = after_marker(text)  # only: reasoning
    return read_label(text)  # only: label
    return read_json(text)  # only: json
    return Answer(encodable(text.strip()))  # only: text


# only: reasoning
def after_marker(text: str) -> str:
    """What follows the last 'Answer:'; the whole text where nothing does."""
    words = "|".join(re.escape(word) for word in WINNER["read"]["after"])
    parts = re.split(rf"(?<!\w)(?:{words})" + r"\W{0,2}:", text, flags=re.IGNORECASE)
    return parts[-1].lstrip(" *") if parts[-1].strip(" *\n") else text


# end
# only: label
def read_label(text: str) -> Answer:
    """The label: exact, then but for case and punctuation, then the first name that is a whole word of the text."""
    names: dict[str, str] = WINNER["read"]["names"]
    stripped = text.strip()
    folded = [normalise(name) for name in names]
    once = {normalise(name): label for name, label in names.items() if folded.count(normalise(name)) == 1}
    label = names.get(stripped)
    if label is None:
        label = once.get(normalise(stripped))
    if label is None:
        label = first_inside(stripped, names, once)
    if label is None:
        return Answer(encodable(stripped), None, False, f"it is none of {', '.join(names)}")
    return Answer(label, label)


def first_inside(text: str, names: Mapping[str, str], once: Mapping[str, str]) -> str | None:
    """The label of the name that comes first as a whole word. The case of letters (A, B, ...) counts."""
    found = []
    for name, label in (once if WINNER["read"]["fold"] else names).items():
        if WINNER["read"]["fold"]:
            at = f" {normalise(text)} ".find(f" {name} ")
        else:
            match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
            at = match.start() if match else -1
        if at >= 0:
            found.append((at, -len(name), label))
    return min(found)[2] if found else None


# end
# only: json
def read_json(text: str) -> Answer:
    """The first JSON object of the text (or array, where that is asked for), held against the schema."""
    value = first_json(text, WINNER["read"]["opening"])
    if value is None:
        what = "array" if WINNER["read"]["opening"] == "[" else "object"
        return Answer(encodable(text.strip()), None, False, f"there is no JSON {what} in it")
    problem = ""
    problem = flaw(value, WINNER["read"]["json_schema"])  # only: checked
    problem = complaint(value)  # only: validated
    problem = objection(value)  # only: modelled
    return Answer(canonical(value), value, not problem, problem)


def first_json(text: str, opening: str) -> Any:
    """The first JSON value that starts with this bracket, or None."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    at = text.find(opening)
    while at >= 0:
        try:
            value, _ = decoder.raw_decode(text, at)
            canonical(value).encode()
            return value
        except (ValueError, RecursionError):
            at = text.find(opening, at + 1)
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# end
# only: json judged
def canonical(value: Any) -> str:
    """The one JSON text of a value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


# end
# include: flaws.py
# only: validated
def complaint(value: Any) -> str:
    """What is first wrong with a value by the JSON schema; '' for nothing."""
    schema = WINNER["read"]["json_schema"]
    error = next(validator_for(schema)(schema, registry=Registry()).iter_errors(value), None)
    return f"{error.message} at {error.json_path}" if error else ""


# end
# only: modelled
@cache
def model() -> type[BaseModel]:
    """Your pydantic model: of a module, or of the file beside this one."""
    where, name = WINNER["read"]["model"].rsplit(":", 1)
    if not where.endswith(".py"):
        loaded = importlib.import_module(where)
    else:
        spec = importlib.util.spec_from_file_location(Path(where).stem, Path(__file__).with_name(where))
        if spec is None or spec.loader is None:
            raise ImportError(f"{where!r} is no Python file")
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = loaded
        spec.loader.exec_module(loaded)
    found: type[BaseModel] = getattr(loaded, name)
    return found


def objection(value: Any) -> str:
    """What your pydantic model says of a value; '' for nothing."""
    try:
        model().model_validate(value)
    except ValidationError as error:
        lines = error.errors(include_url=False, include_context=False)
        return "; ".join(f"{'.'.join(map(str, line['loc'])) or 'the object'}: {line['msg']}" for line in lines)
    return ""


# end
# only: normalised
def normalise(text: str) -> str:
    """Case, spacing and punctuation taken out; what belongs to a number stays."""
    folded = unicodedata.normalize("NFC", text).casefold()
    kept = [" " if _separates(char) and not _in_number(folded, at) else char for at, char in enumerate(folded)]
    return " ".join("".join(kept).split()) or text.strip()


def _separates(char: str) -> bool:
    category = unicodedata.category(char)
    return category[0] in "PZC" or category == "Sk"


def _in_number(text: str, at: int) -> bool:
    before, after = text[at - 1 : at], text[at + 1 : at + 2]
    if not after.isdigit():
        return False
    return (text[at] in ".," and before.isdigit()) or (text[at] == "-" and not before.isalnum())


# end
def encodable(text: str) -> str:
    """The text with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode()


def connect(model: str = "") -> OpenAI:
    """A client of a model's endpoint. Its key, and another URL if one is set, come from the environment."""
    endpoint = WINNER["models"][model or WINNER["votes"][0]]["endpoint"]
    key = os.environ.get(endpoint["key_env"], "").strip() if endpoint["key_env"] else "none"
    if not key:
        sys.exit(f"the key is read from the environment: export {endpoint['key_env']}=...")
    return OpenAI(
        base_url=os.environ.get(endpoint["url_env"]) or endpoint["base_url"],
        api_key=key,
        timeout=endpoint["timeout_s"],
        max_retries=endpoint["retries"],
        default_headers=endpoint["headers"],
    )


def main() -> None:
    """Answer standard input, a line each: a text, or JSON with what `answer` takes, {"input": ..., "context": ...}.

    An output that could span lines, a text or a reply that could not be read, is printed as a JSON string.
    """
    client: OpenAI | Mapping[str, OpenAI] = connect()  # only: single
    client = {name: connect(name) for name in WINNER["models"]}  # only: several
    for line in sys.stdin:
        given: Any = line.rstrip("\r\n")
        with suppress(ValueError):
            given = json.loads(line) if line.startswith("{") else given
        if not (isinstance(given, dict) and "input" in given):
            given = {"input": given}
        try:
            found = answer(client, given["input"], given.get("context", ""), given.get("id"))
        except OpenAIError as failure:
            sys.exit(f"{type(failure).__name__}: {failure}")
        plain = found.ok
        plain = False  # only: text
        print(found.output if plain else json.dumps(found.output, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
