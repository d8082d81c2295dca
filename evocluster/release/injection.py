"""What a text that a model rewrote, or that was taken from traffic, may not bring into a prompt.

Told by form, on text that was folded first (compatibility forms, look-alike letters, hidden characters, case): links
and addresses, keys, placeholders, marks of roles and tool calls, hidden characters, words that call off instructions or
address whoever grades. Whatever the parent's texts have too is not new. Forms cannot tell every persuasion: what gets
past them is held to replay, shadow and judge like anything else. (Greshake et al. 2023, indirect prompt injection;
Zheng et al. 2025, null models that cheat automatic judges.)
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from evocluster.records import Example, Json
from evocluster.release.gates import PLACEHOLDER, Gate, verdict
from evocluster.release.snapshot import Snapshot

HARMFUL = ("key", "role", "tool", "hidden", "override", "judge")
"""Kinds that no honest question has: what has one is not drawn from traffic at all. The other kinds (link, email,
placeholder, speaker) people do write; such a question may be answered and measured, and never shown in a prompt."""
SHOWN = 60
"""Characters of what was found that are told."""


class Found(NamedTuple):
    """One thing in a text."""

    kind: str
    text: str


_LINK = re.compile(
    r"\b(?:https?|ftps?|wss?|file|data|javascript|mailto):\S+|\bwww\.\S+"
    r"|(?<![\w@.-])(?:[a-z0-9-]+\.)+(?:com|net|org|io|ai|dev|app|co|ru|cn|xyz|top|info|biz|me|gg|ly|link|site|online"
    r"|cloud|example|test)\b(?:/\S*)?",
)
_EMAIL = re.compile(r"[\w.%+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
_KEY = re.compile(
    r"(?i:\bbearer\s+[\w.~+/=*-]{6,})|\b(?:sk|pk|rk)[-_](?=[\w*-]{0,200}[\d*])[\w*-]{16,}"
    r"|\b(?:gh[opsu]|github_pat|hf|gsk|xai|glpat|xox[abprs])[-_](?=\w{0,200}\d)[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\beyJ[\w-]{10,}\.[\w-]+\.[\w-]*"
    r"|-----BEGIN [A-Z ]*KEY-----|\b[0-9a-fA-F]{32,}\b"
)
_RUN = re.compile(r"[A-Za-z0-9_+/-]{24,}")
"""What may be a key of any other form: one that has letters of both cases, and digits."""
_DIGITS = 4
_OTHER_PLACEHOLDER = re.compile(r"\{\{.{0,200}?\}\}|\$\{[^}]{0,200}\}|\{%.{0,200}?%\}|<%.{0,200}?%>")
_SPEAKER = re.compile(r"(?m)^ *(?:system|assistant|user|human|developer|tool|ai)\s*:")
_ROLE = re.compile(
    r"<\|[^|<>]{1,40}\|>|\[/?inst\]|<</?sys>>|</?(?:system|assistant|user|human|developer)(?:\s[^>]{0,200})?>"
    r"|<(?:start|end)_of_turn>|</?s>|(?m:^ *#{1,6}\s*(?:system|assistant|developer)\b)"
)
_TOOL = re.compile(
    r"</?(?:\w{1,40}:)?(?:tool|tools|function|functions|invoke|parameter)(?:[_-][\w-]{0,60})?(?:[\s=][^>]{0,200})?>"
    r"|\"(?:function_calls?|tool_calls?|tool_use|tool_code)\"|```\s*tool"
)
_OVERRIDE = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|skip|drop)\b[^.\n]{0,40}\b(?:previous|prior|above|earlier|preceding|all"
    r"|any|your|these|those|system|other)\b[^.\n]{0,30}\b(?:instructions?|prompts?|rules?|directions?|guidelines?"
    r"|directives?|messages?|polic(?:y|ies)|context)\b"
    r"|\b(?:reveal|print|repeat|show|output|leak|disclose|quote)\b[^.\n]{0,40}\b(?:system|hidden|secret|initial|your)"
    r"\s+(?:prompts?|instructions?|messages?)\b"
    r"|\byou are now\b|\bnew (?:system )?(?:instructions?|prompt|rules?)\s*:|\bfrom now on\b"
    r"|\b(?:developer|god|dan) mode\b|\bjailbr[eo]+k|\bdo anything now\b|\bpretend (?:to be|you are|that you)\b"
)
_GRADER = (
    r"\b(?:judges?|graders?|evaluators?|raters?|assessors?|scorers?|reviewers?|auto-?graders?"
    r"|grading (?:model|system|script))\b"
)
_GRADING = (
    r"\b(?:scor(?:e|es|ed|ing)|grad(?:e|es|ed|ing)|rat(?:e|es|ed|ing)|points?|marks?|prefer(?:s|red)?|correct|maximum"
    r"|instructions?|10)\b"
)
_JUDGE = re.compile(
    rf"{_GRADER}[^.\n]{{0,80}}{_GRADING}|{_GRADING}[^.\n]{{0,80}}{_GRADER}|(?m:^ *{_GRADER}\s*[:,])"
    rf"|\b(?:note|message|tell|inform|convince|persuade|attention|dear)\b[^.\n]{{0,20}}{_GRADER}"
    r"|\b(?:give|award|assign|rate|score|grade|mark)\b[^.\n]{0,60}\b(?:full marks?|full score|highest|maximum|max"
    r"|perfect|top (?:score|marks?|grade)|best (?:score|grade)|10/10|5/5|100 ?%)"
    r"|\b(?:this|the|my) (?:answer|response|output|reply) (?:is|must be|should be|has to be|deserves to be)\s+"
    r"(?:always\s+)?(?:correct|right|perfect|accepted|passed|preferred|rated|scored|graded)\b"
    r"|\bscore\s*[:=]\s*(?:1(?:\.0)?|5|10|100)\b"
)
"""Words for whoever grades, near words of grading: a judge in a court is none."""
_FOLDED: dict[str, re.Pattern[str]] = {
    "link": _LINK,
    "email": _EMAIL,
    "speaker": _SPEAKER,
    "role": _ROLE,
    "tool": _TOOL,
    "override": _OVERRIDE,
    "judge": _JUDGE,
}
_ALIKE = str.maketrans(
    {
        **dict(zip("авекмнорстухіјѕԁһӏ", "abekmhopctyxijsdhl", strict=True)),
        **dict(zip("АВЕКМНОРСТУХІЈЅ", "ABEKMHOPCTYXIJS", strict=True)),
        **dict(zip("αοερτυνκιχ", "aoeptuvkix", strict=True)),
        **dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "ABEZHIKMNOPTYX", strict=True)),
    }
)
"""Letters of other alphabets that look like Latin ones."""
_JOINERS = "\u200c\u200d"
"""Needed between letters of some scripts, and in emoji."""


def found(text: str) -> set[Found]:
    """Everything in a text that a rewrite may not add."""
    folded = fold(text)
    told = {Found(kind, _short(each.group())) for kind, form in _FOLDED.items() for each in form.finditer(folded)}
    plain = unicodedata.normalize("NFKC", text)
    told |= {Found("key", _short(each.group())) for each in _KEY.finditer(plain)}
    told |= {Found("key", _short(each)) for each in _RUN.findall(plain) if _random(each)}
    told |= {Found("placeholder", name) for name in PLACEHOLDER.findall(plain)}
    told |= {Found("placeholder", _short(each.group())) for each in _OTHER_PLACEHOLDER.finditer(plain)}
    return told | {Found("hidden", f"U+{ord(char):04X}") for char in hidden(text)}


def _random(run: str) -> bool:
    cases = any(map(str.islower, run)) and any(map(str.isupper, run))
    return cases and sum(map(str.isdigit, run)) >= _DIGITS


def harmful(*values: Json) -> tuple[Found, ...]:
    """What of the harmful kinds stands in any text of these values, sorted."""
    return tuple(sorted(each for text in texts(values) for each in found(text) if each.kind in HARMFUL))


def fold(text: str) -> str:
    """A text as a reader takes it: hidden characters gone, look-alike letters Latin, small, spaces single."""
    seen = "".join(char for char in text if not _invisible(char))
    plain = unicodedata.normalize("NFKC", seen).translate(_ALIKE).casefold()
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return "\n".join(lines)


def hidden(text: str) -> list[str]:
    """Characters that cannot be seen and that no script or emoji needs where they stand."""
    wrong = []
    for at, char in enumerate(text):
        if not _invisible(char):
            continue
        around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
        if char in _JOINERS and around and not any(each.isascii() or _invisible(each) for each in around):
            continue
        if "\ufe00" <= char <= "\ufe0f" and at and not _invisible(text[at - 1]) and not text[at - 1].isalpha():
            continue
        wrong.append(char)
    return wrong


def _invisible(char: str) -> bool:
    if char in "\n\r\t" or " " <= char <= "~":
        return False
    selector = "\ufe00" <= char <= "\ufe0f" or "\U000e0100" <= char <= "\U000e01ef"
    return selector or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs") or char in "\u115f\u1160\u3164\uffa0"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def texts(value: Json) -> Iterator[str]:
    """Every text in a JSON value, names of fields too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield str(name)
            yield from texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts(item)


def added(new: Iterable[str], before: Iterable[str], placeholders: Collection[str] = ()) -> list[Found]:
    """What the new texts have and those before do not; `placeholders`: names that may be added."""
    had = {each for text in before for each in found(text)}
    return sorted(
        each
        for each in {each for text in new for each in found(text)} - had
        if not (each.kind == "placeholder" and each.text in placeholders)
    )


def injection(
    candidate: Snapshot, parent: Snapshot, *, known: Iterable[Example] = (), placeholders: Collection[str] = ()
) -> Gate:
    """Whether the candidate's texts bring nothing new of these kinds.

    `known`: the deployment's own examples, which people chose: they may be shown as they are. Examples that carry a
    known id and other content are held like any other.
    """
    trusted = {_content(example) for example in (*known, *parent.prompt.examples)}
    new = added(_texts(candidate, trusted), _texts(parent, set()), placeholders)
    return verdict("injection", (f"adds {_NAMES[each.kind]}: {each.text!r}" for each in new))


_NAMES = {
    "link": "a link",
    "email": "an e-mail address",
    "key": "what has the form of a key",
    "placeholder": "a placeholder",
    "speaker": "a line that begins like a speaker's",
    "role": "a mark of a role",
    "tool": "what looks like a tool call",
    "hidden": "a hidden character",
    "override": "words that call off instructions",
    "judge": "words for whoever grades",
}


def _content(example: Example) -> str:
    told = example.model_dump(mode="json", include={"id", "input", "expected"})
    return repr(sorted(told.items()))


def _texts(snapshot: Snapshot, trusted: Collection[str]) -> list[str]:
    """All texts of prompt and memory, and the names of intents; without those of trusted examples."""
    prompt = snapshot.prompt
    genes = [text for name, value in prompt.genes.items() if name != "demos" for text in texts(value)]
    demos = [
        text
        for example in prompt.examples
        if _content(example) not in trusted
        for text in (*texts(example.input), *texts(example.expected))
    ]
    notes = [text for note in snapshot.memory for text in (note.text, note.intent, note.why)]
    return [*genes, *demos, *notes, *snapshot.strategy.intents]
