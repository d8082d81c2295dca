"""Prompts of a promptfoo config as rubrics, and the fields of the input that they speak of.

    read(cursor, folder, report) -> prompts      Prompts(prompts) -> fields -> rubrics, the input of every test

A prompt is text or a chat. A chat whose user turn is the one variable and nothing else keeps its system message: that
is what a rubric without placeholders is here. Every other chat becomes one user turn.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from evocluster.cli.imported import Cursor, Folder, NotTaken, Report
from evocluster.cli.nunjucks import RESERVED, Expression, Template, as_text, parse
from evocluster.records import Json

READABLE = (".txt", ".md", ".j2", ".json", ".jsonl", ".yaml", ".yml", ".csv")
_PROGRAMS = (".js", ".cjs", ".mjs", ".ts", ".py", ".sh", ".bash", ".rb", ".pl", ".exe")
_SCHEMES = re.compile(r"(langfuse|portkey|helicone|package|exec|https?|huggingface|az)(?=:)")
_FILENAME = re.compile(rf"[^\s{{}}]+({'|'.join(map(re.escape, (*READABLE, *_PROGRAMS)))})(:\w+)?")


class Turn(NamedTuple):
    """One message of a prompt."""

    role: str
    content: Template


class Prompt(NamedTuple):
    """One prompt: a text is a single user turn."""

    turns: tuple[Turn, ...]
    label: str
    where: str

    @property
    def expressions(self) -> list[Expression]:
        """Everything it takes from a test, each once."""
        return list(dict.fromkeys(each for turn in self.turns for each in turn.content.expressions))


class Prompts:
    """The prompts that could be taken, and the input that they make of a test's variables."""

    def __init__(self, prompts: Sequence[Prompt], report: Report) -> None:
        self.prompts = tuple(prompts)
        self._report = report
        used = list(dict.fromkeys(each for prompt in prompts for each in prompt.expressions))
        self.alone = used[0] if len(used) == 1 else None
        """The only thing that prompts take from a test: then it is the input itself, as text."""
        self.names: dict[Expression, str] = {used[0]: "input"} if self.alone else _named(used)
        for each, name in self.names.items():
            if name != each.variable:
                self._renamed(each, name)

    def input(self, variables: Mapping[str, Json]) -> Json:
        """What a test gives to the program."""
        if self.alone:
            return as_text(self.alone.of(variables))
        if not self.names:
            return as_text(dict(variables)) if variables else ""
        return {name: each.of(variables) for each, name in self.names.items()}

    @property
    def variables(self) -> frozenset[str]:
        """The variables that some prompt shows."""
        return frozenset(each.variable for each in self.names)

    def rubrics(self) -> dict[str, str]:
        """Rubric -> label, in their order, each text once."""
        found: dict[str, str] = {}
        for prompt in self.prompts:
            text = self._rubric(prompt)
            if text in found:
                self._report.change(prompt.where, "a prompt", f"the same text as {found[text]!r} stands once")
            found.setdefault(text, prompt.label)
        return found

    def _rubric(self, prompt: Prompt) -> str:
        for turn in prompt.turns:
            self._report_braces(prompt.where, turn.content)
        *before, last = prompt.turns
        as_input = last.role == "user" and last.content.parts == (self.alone,)
        if len(before) == 1 and before[0].role == "system" and as_input and not before[0].content.expressions:
            return before[0].content.rewritten({}).strip()
        texts = [turn.content.rewritten(self.names).strip() for turn in prompt.turns]
        if not before:
            return texts[0]
        merged = "its messages became one user turn, because a rubric with placeholders is the whole of it"
        self._report.change(prompt.where, "a chat prompt", merged)
        if [turn.role for turn in prompt.turns] == ["system", "user"]:
            return "\n\n".join(texts)
        roles = [turn.role.capitalize() for turn in prompt.turns]
        return "\n\n".join(
            text if role == "System" else f"{role}: {text}" for role, text in zip(roles, texts, strict=True)
        )

    def _report_braces(self, where: str, template: Template) -> None:
        literal = "".join(part for part in template.parts if isinstance(part, str))
        for name in sorted(set(re.findall(r"\{(\w+)\}", literal)) & {*self.names.values(), *RESERVED}):
            why = f"{{{name}}} would be filled in here, so it was written {{ {name} }}"
            self._report.change(where, "literal braces in a prompt", why)

    def _renamed(self, each: Expression, name: str) -> None:
        path = ".".join(map(str, each.path)) + "".join(f" | {word}" for word, _ in each.filters)
        if self.alone:
            why = "it is all that prompts take from a test, so it is the input itself and is called {input}"
        elif len(each.path) + len(each.filters) > 1:
            why = f"its value was worked out for every test and is the field {{{name}}} of the input"
        else:
            why = f"the name means something else in rubrics, so the field is called {{{name}}}"
        self._report.change("", f"{{{{ {path} }}}}", why)


def read(cursor: Cursor, folder: Folder, report: Report) -> list[Prompt]:
    """The prompts under `prompts:`; none given is promptfoo's own default, `{{prompt}}`."""
    found: list[Prompt] = []
    entries: Iterable[Cursor] = cursor
    if isinstance(cursor.value, Mapping) and not {"id", "raw", "label"} & set(cursor.value):
        entries = [Cursor({"id": name, "label": each.value}, cursor.file, each.keys) for name, each in cursor.items()]
    for entry in entries:
        try:
            found += _entry(entry, folder, report)
        except NotTaken as problem:
            report.leave(entry.where, f"prompt {_brief(entry.value)}", problem.why, problem.do)
    if cursor.value is None:
        found.append(Prompt((Turn("user", parse("{{prompt}}")),), "prompt", cursor.where))
    return found


def _entry(entry: Cursor, folder: Folder, report: Report) -> list[Prompt]:
    label = ""
    text = entry.value
    if isinstance(text, Mapping):
        known = ("id", "raw", "label", "display")
        for name, extra in entry.items():
            if name not in known:
                report.leave(extra.where, f"{name} of a prompt", "prompts are texts here", "check what it did there")
        label = str(text.get("label") or text.get("display") or "")
        text = text.get("raw") or text.get("id")
    if isinstance(text, list):
        return [_chat(text, label, entry.where)]
    if not isinstance(text, str) or not text.strip():
        raise NotTaken("it is no text", "write its text under `raw`")
    if _SCHEMES.match(text):
        scheme = text.split(":")[0]
        raise NotTaken(f"{scheme} prompts are fetched or run, and an import does neither", "write the text out")
    if text.startswith("file://") or _FILENAME.fullmatch(text):
        return _from_files(text, label, folder, report)
    return [_prompt(text, label or _brief(text), entry.where)]


def _from_files(reference: str, label: str, folder: Folder, report: Report) -> list[Prompt]:
    name = re.sub(r"(\.(?:py|js|ts|cjs|mjs)):\w+$", r"\1", reference)
    found: list[Prompt] = []
    for path in folder.paths(name):
        where, suffix = folder.name(path), path.suffix.lower()
        try:
            if suffix in _PROGRAMS:
                raise NotTaken("it is a program, and an import runs none", "write the prompt it makes as a text")
            if suffix not in READABLE:
                raise NotTaken(f"files of kind {suffix!r} are not read", f"use {', '.join(READABLE)}")
            found += _file(path.suffix.lower(), where, label, folder, reference)
        except NotTaken as problem:
            report.leave(where, f"prompt {reference}", problem.why, problem.do)
    return found


def _file(suffix: str, where: str, label: str, folder: Folder, reference: str) -> list[Prompt]:
    path = folder.root / where
    if suffix in (".yaml", ".yml", ".jsonl"):
        loaded = folder.load(path)
        entries = loaded if suffix == ".jsonl" else [loaded]
        return [
            _chat(each.value, label or where, each.where)
            if isinstance(each.value, list | Mapping)
            else _prompt(as_text(each.value), label or where, each.where)
            for each in entries
        ]
    text = folder.text(path)
    if suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
        if not rows or "prompt" not in rows[0]:
            raise NotTaken("it has no column 'prompt'", "name the column of prompts 'prompt'")
        return [
            _prompt(row["prompt"], row.get("label") or label or where, f"{where}:{number}")
            for number, row in enumerate(rows, 2)
        ]
    texts = re.split(r"^---[ \t]*$", text, flags=re.MULTILINE) if suffix in (".txt", ".j2") else [text]
    several = len([each for each in texts if each.strip()]) > 1
    return [
        _prompt(each.strip("\n"), f"{label or where} {number}" if several else label or where, where)
        for number, each in enumerate((each for each in texts if each.strip()), 1)
    ]


def _prompt(text: str, label: str, where: str) -> Prompt:
    """A text, or a chat written as JSON."""
    stripped = text.strip()
    if stripped[:1] in ("[", "{") and '"role"' in stripped:
        try:
            return _chat(json.loads(stripped), label, where)
        except ValueError as error:
            raise NotTaken(
                f"it looks like a chat in JSON and is none ({error})", "write it as JSON without template logic"
            ) from error
    return Prompt((Turn("user", parse(text)),), label, where)


def _chat(messages: Json, label: str, where: str) -> Prompt:
    if isinstance(messages, Mapping):
        messages = messages.get("messages")
    if not isinstance(messages, list) or not messages:
        raise NotTaken("it is neither a text nor a list of messages", "write a list of {role, content}")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise NotTaken(f"a message has the role {role!r}", "use system, user and assistant")
        content = _content(message.get("content"))
        turns.append(Turn("system" if role == "developer" else role, parse(content)))
    return Prompt(tuple(turns), label or _brief(as_text(messages[-1].get("content"))), where)


def _content(content: Json) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise NotTaken("a message holds something else than text", "only texts are sent here; leave images out")
    return "\n".join(map(str, texts))


def _named(used: Sequence[Expression]) -> dict[Expression, str]:
    """Field names, all different; plain variables keep theirs."""
    names: dict[Expression, str] = {}
    for each in sorted(used, key=lambda each: (len(each.path) + len(each.filters) > 1, used.index(each))):
        name, number = each.name, 2
        while name in names.values():
            name, number = f"{each.name}_{number}", number + 1
        names[each] = name
    return {each: names[each] for each in used}


def _brief(value: Json) -> str:
    text = " ".join(as_text(value).split())
    return text if len(text) <= 50 else f"{text[:47]}..."
