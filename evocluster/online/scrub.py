"""The one place that bodies pass before any queue: keys and personal data go, typed placeholders stay in their place.

    scrubbed = Scrubber(key).scrub(input, output, error, user)

A placeholder is `[email:` + 14 letters + `]`: a keyed digest of what stood there, so equal values stay equal and nobody
without the key learns them, and a check that only this key makes. What a user writes in that form fails the check
and becomes `[quoted email:...]`. Looked through are texts, every value and every name in a JSON value, JSON inside of a
text, and characters written as `\\u0040`, `%40` or `&#64;`. A text is looked through again until nothing is found, so
scrubbing twice changes nothing.

Fails closed: where anything raises, or takes longer than `budget_s` of processor time, the bodies are dropped. Names
and addresses of people are not known here.
"""

from __future__ import annotations

import hmac
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from math import isfinite, log2
from typing import Any, NamedTuple

from evocluster import redaction
from evocluster.records import Json, digest
from evocluster.tasks import pii
from evocluster.telemetry import log

KINDS: tuple[pii.Kind, ...] = ("email", "phone", "card", "iban", "ssn", "ip")
DEPTH = 12
"""JSON in JSON, arrays and objects inside each other; deeper bodies are dropped."""
ROUNDS = 6
"""Times a text is looked through, at most; one that is not stable then is dropped."""
TRIES = 32
"""Brackets in a text from which JSON is read."""
USER_HASH = 32
"""Hex digits."""

_OURS = re.compile(rf"\[({'|'.join(KINDS)}|key|secret|token):([0-9A-Za-z]+)\]")
_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
"""Digests are written in letters, so no rule finds a number in one."""
_VALUE, _CHECK = 8, 6
_WRITTEN = re.compile(r"\\u00([2-7][0-9A-Fa-f])|%([2-7][0-9A-Fa-f])|&#0{0,4}(\d{2,3});|&#[xX]0{0,4}([2-7][0-9A-Fa-f]);")
_WRITES = re.compile(r"[\\%&][u#\d]")
_ASSIGNED = re.compile(
    r"(?i:passwords?|passwd|passphrase|pwd|secret|api[_ -]?key|access[_ -]?key|auth[_ -]?token|access[_ -]?token)"
    r"[\"']?(?: is|:|=|:=|=>)\s{0,3}[\"']?([^\s\"'\[\],;<>{}]{6,})"
)
_SECRETIVE = ("passw", "passphrase", "pwd", "secret", "key", "token")
"""One of them stands in every text that _ASSIGNED finds something in, folded."""
_AMBIGUOUS = ("key", "token", "pat")
_LOGIN = re.compile(r"://[^\s/:@\[\]]{0,64}:([^\s/@\[\]]{3,})@")
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
"""Whatever stands around it: that of a parcel is worth less than that of a person."""
_RUN = re.compile(r"[\w+/=~-]{20,}", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_CLASSES = re.compile(r"[a-z]+|[A-Z]+|[0-9]+")
_HEX = re.compile(r"[0-9a-f]{32,}|[0-9A-F]{32,}")
LEAST_RUN, LEAST_TURNS, LEAST_ENTROPY = 20, 0.3, 3.0
"""A token: so many letters and digits, turning from one class to another so often (of its length); bits a character."""


class Scrubbed(NamedTuple):
    """What may be kept of a request."""

    input: Json
    output: str
    error: str
    user_hash: str
    """Empty where no user was said."""
    version: str
    """Of the rules that were used."""
    dropped: bool
    """Bodies and error are empty because they could not be scrubbed."""


class _Place(NamedTuple):
    start: int
    end: int
    kind: str
    key: str


class Scrubber:
    """Takes keys and personal data out of what is recorded; safe to be used by several threads."""

    def __init__(
        self,
        key: bytes,
        *,
        region: str = "US",
        budget_s: float = 0.5,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """`region`: whose phone numbers stand without a country code; `clock`: seconds of processor time.

        Raises: ValueError: the key is too short, or the region not known.
        """
        if len(key) < 16:
            raise ValueError(f"key of {len(key)} bytes: 16 random bytes at least, e.g. secrets.token_bytes(32)")
        self.key, self.region, self.budget_s, self.clock = key, pii.checked_region(region), budget_s, clock
        self.known = redaction.keys_known()
        """Keys of this process; those noted later are asked for at each call."""
        self.version = version(region)

    def scrub(self, input: Json, output: str, error: str = "", user: str = "") -> Scrubbed:
        """What may be kept; never raises."""
        hashed = self.user_hash(user)
        try:
            work = _Work(self, self.clock() + self.budget_s)
            kept = work.value(input), work.text(output), work.text(error)
        except Exception as failure:  # the text of it may quote what was said
            log.warning("a body was not recorded: scrubbing it ended with %s", type(failure).__name__)
            return Scrubbed(None, "", "", hashed, self.version, True)
        return Scrubbed(*kept, hashed, self.version, False)

    def user_hash(self, user: str) -> str:
        """The name under which everything of this user is kept; empty for none."""
        return self._digest("user", user)[:USER_HASH] if user else ""

    def placeholder(self, kind: str, key: str) -> str:
        """What stands in place of a value; `key`: the value, however it was written."""
        value = self._digest(f"value {kind}", key)[:_VALUE].translate(_LETTERS)
        return f"[{kind}:{value}{self._check(kind, value)}]"

    def ours(self, kind: str, letters: str) -> bool:
        """A placeholder of these parts was made here."""
        value, check = letters[:_VALUE], letters[_VALUE:]
        return letters.isascii() and hmac.compare_digest(check, self._check(kind, value))

    def _check(self, kind: str, value: str) -> str:
        return self._digest(f"check {kind}", value)[:_CHECK].translate(_LETTERS)

    def _digest(self, purpose: str, text: str) -> str:
        return hmac.digest(self.key, f"{purpose}\0{text}".encode(errors="surrogatepass"), "sha256").hex()


class _Work:
    """One request being scrubbed."""

    def __init__(self, scrubber: Scrubber, deadline: float) -> None:
        self.scrubber, self.deadline = scrubber, deadline
        self.known = scrubber.known | redaction.keys_noted()

    def value(self, value: Json, name: str = "", depth: int = 0) -> Json:
        """A JSON value without keys and personal data. `name`: of the field it stands in."""
        if depth > DEPTH:
            raise ValueError(f"nested more than {DEPTH} deep")
        if isinstance(value, str):
            return self.text(value, name, depth)
        if isinstance(value, Mapping):
            return self._fields(value, depth)
        if isinstance(value, list | tuple):
            return [self.value(one, name, depth + 1) for one in value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not isfinite(value):
                return None
            plain = str(value)
            new = self.text(plain, name, depth)
            return value if new == plain else new
        if value is None or isinstance(value, bool):
            return value
        raise TypeError(f"{type(value).__name__} is no JSON value")

    def _fields(self, fields: Mapping[str, Json], depth: int) -> dict[str, Json]:
        told: dict[str, Json] = {}
        for name, one in fields.items():
            new = self.text(str(name), "", depth)
            while new in told:
                new += "'"
            told[new] = self.value(one, str(name), depth + 1)
        return told

    def text(self, text: str, name: str = "", depth: int = 0) -> str:
        """A text without keys and personal data."""
        text = _storable(text)
        if not text or not text.strip():
            return text
        if _secret_field(name, text) and not self._is_ours(text):
            return self.scrubber.placeholder("secret", text)
        for _ in range(ROUNDS):
            new = self._round(text, name, depth)
            if new == text:
                return text
            text = new
        raise ValueError(f"not stable after {ROUNDS} rounds")

    def _round(self, text: str, name: str, depth: int) -> str:
        if _OPENS.search(text):
            text, whole = self._json(text, depth)
            if whole:
                return text
        read = _WRITTEN.sub(_character, text) if _WRITES.search(text) else text
        if read != text and self._plain(read, name) != read:
            text = read
        return self._plain(text, name)

    def _json(self, text: str, depth: int) -> tuple[str, bool]:
        """The text with every object and array in it looked through, those without a find as they are written; and
        whether one is all of it."""
        parts, done, whole = [], 0, False
        for begin, end, value in _values(text):
            new = self.value(value, "", depth + 1)
            if new != value:
                parts += [text[done:begin], json.dumps(new, ensure_ascii=False)]
                done = end
            whole = not (text[:begin].strip() or text[end:].strip())
            self._in_time()
        return "".join([*parts, text[done:]]), whole

    def _plain(self, text: str, name: str) -> str:
        """The text with placeholders for what the rules find in it."""
        self._in_time()
        lead = f"{name}: " if name and len(name) <= 40 else ""
        told = lead + text
        places = [place for place in self._places(told) if place.end > len(lead)]
        parts, done = [], len(lead)
        for start, end, kind, key in _merged(places):
            parts += [told[done : max(start, done)], self._instead(kind, key)]
            done = end
        return "".join([*parts, told[done:]])

    def _instead(self, kind: str, key: str) -> str:
        return key if kind == "quoted" else self.scrubber.placeholder(kind, key)

    def _places(self, text: str) -> Iterator[_Place]:
        for match in _OURS.finditer(text):
            kind, letters = match.groups()
            ours = self.scrubber.ours(kind, letters)
            yield _Place(*match.span(), "quoted", match.group() if ours else f"[quoted {match.group()[1:]}")
        for start, end in redaction.keys_in(text, self.known):
            yield _Place(start, end, "key", text[start:end])
        folded = text.lower()
        patterns = (_ASSIGNED, _LOGIN) if any(word in folded for word in _SECRETIVE) else (_LOGIN,)
        for match in chain.from_iterable(pattern.finditer(text) for pattern in patterns):
            yield _Place(*match.span(1), "secret", match[1])
        for found in pii.personal(text, KINDS, self.scrubber.region):
            yield _Place(found.start, found.start + len(found.text), found.kind, found.key)
        for match in _SSN.finditer(text):
            yield _Place(*match.span(), "ssn", match.group().replace("-", ""))
        self._in_time()
        for match in _RUN.finditer(text):
            if random_looking(match.group()):
                yield _Place(*match.span(), "token", match.group())

    def _is_ours(self, text: str) -> bool:
        match = _OURS.fullmatch(text)
        return match is not None and self.scrubber.ours(*match.groups())

    def _in_time(self) -> None:
        if self.scrubber.clock() > self.deadline:
            raise TimeoutError(f"not done within {self.scrubber.budget_s:g} s")


_OPENS = re.compile(r"[{\[]\s*[\"{\[\d-]")


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    """An object. Raises: ValueError where a name stands twice: the first value would be overlooked."""
    told = dict(pairs)
    if len(told) < len(pairs):
        raise ValueError("a name stands twice")
    return told


_DECODER = json.JSONDecoder(object_pairs_hook=_once)


def _values(text: str) -> Iterator[tuple[int, int, Json]]:
    """(begin, end, value) of the JSON objects and arrays in a text, outermost ones."""
    at, failures = 0, 0
    while failures < TRIES and (found := _OPENS.search(text, at)):
        try:
            value, end = _DECODER.raw_decode(text, found.start())
        except ValueError:
            at, failures = found.start() + 1, failures + 1
        else:
            yield found.start(), end, value
            at = end


def _merged(places: list[_Place]) -> list[_Place]:
    """In order; those that overlap become one, named as the one that begins first, the longer of two."""
    merged: list[_Place] = []
    for place in sorted(places, key=lambda one: (one.start, -one.end)):
        if merged and place.start < merged[-1].end:
            if place.end > merged[-1].end:
                last = merged.pop()
                merged.append(last._replace(end=place.end, kind=_stronger(last, place), key=f"{last.key} {place.key}"))
        else:
            merged.append(place)
    return merged


def _stronger(one: _Place, other: _Place) -> str:
    return other.kind if one.kind == "quoted" else one.kind


def _storable(text: str) -> str:
    """The text without what no database holds: NUL, and halves of surrogate pairs."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode(errors="replace").decode()
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _secret_field(name: str, text: str) -> bool:
    """The value of a field of this name is a secret; `key` and `token` are words of other trades too."""
    if not name or len(text) < 4 or not redaction.secret_name(name):
        return False
    return name.lower() not in _AMBIGUOUS or (len(text) >= 8 and any(map(str.isdigit, text)))


def _character(match: re.Match[str]) -> str:
    code = int(match[3]) if match[3] else int(match[1] or match[2] or match[4], 16)
    return chr(code) if 32 < code < 127 else match.group()


def random_looking(run: str) -> bool:
    """Letters and digits as a generator of keys strews them, not as words, paths or UUIDs have them."""
    run = _UUID.sub("", run)
    if _HEX.search(run) and not run.isdigit():
        return any(map(str.isdigit, run)) and any(map(str.isalpha, run))
    classes = _CLASSES.findall(run)
    length = sum(map(len, classes))
    if length < LEAST_RUN or run.isalpha() or run.isdigit():
        return False
    turns = sum(len(_CLASSES.findall(word)) - 1 for word in re.split(r"[^0-9A-Za-z]+", run) if word)
    return turns >= LEAST_TURNS * length and _entropy(run) >= LEAST_ENTROPY


def _entropy(text: str) -> float:
    """Bits a character, by Shannon."""
    shares = [text.count(char) / len(text) for char in set(text)]
    return -sum(share * log2(share) for share in shares)


def version(region: str) -> str:
    """The name of the rules, as they are now: what was scrubbed by other ones has another."""
    own = [value.pattern for value in globals().values() if isinstance(value, re.Pattern)]
    numbers = [region, DEPTH, ROUNDS, TRIES, LEAST_RUN, LEAST_TURNS, LEAST_ENTROPY, _VALUE, _CHECK]
    said: Any = [KINDS, own, numbers, pii.rules(), redaction.key_forms()]
    return digest(said)[:12]
