"""Personal data in a text: e-mail addresses, phone and card numbers, IBANs, US social security numbers, IP addresses.

A candidate is cut out by its shape and counts once its check holds (libphonenumber's plans, Luhn and the issuers'
prefixes, mod 97, `ipaddress`). What else has that shape - order numbers, dates, prices, versions, ISBNs - is told by
what stands around it: digits in one run are a phone number only after a word like 'call', and nothing is one after a
word like 'order'.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

Kind = Literal["email", "phone", "card", "iban", "ssn", "ip"]


class Found(NamedTuple):
    """One piece of personal data."""

    kind: Kind
    text: str
    """As it stands in the text."""
    key: str
    """The same however it is written: digits of a number (of a phone number without the country's), folded text."""
    start: int
    """Where it stands in the text."""


def personal(text: str, kinds: tuple[Kind, ...], region: str = "US") -> list[Found]:
    """What the text holds of these kinds; `region` says how phone numbers without a country code are read."""
    if not _DIGIT.search(text):
        kinds = tuple(kind for kind in kinds if kind not in _NUMERIC)
    return [found for kind in kinds for found in _FINDERS[kind](text, region)]


_DIGIT = re.compile(r"\d")
_NUMERIC = ("phone", "card", "iban", "ssn")
"""Kinds that have a digit, always."""


def stands_in(found: Found, given: str) -> bool:
    """The same personal data stands in the given text, however it is written there."""
    if found.kind in ("email", "ip"):
        return found.key in given.casefold()
    return found.key in "".join(char for char in given.casefold() if char.isalnum())


def checked_region(region: str) -> str:
    """The region, once it is known. Raises: ValueError."""
    from phonenumbers import SUPPORTED_REGIONS

    if region not in SUPPORTED_REGIONS:
        raise ValueError(f"region {region!r} is not known; write two capital letters, e.g. US, GB, DE or JP")
    return region


_EMAIL = re.compile(
    r"(?<![\w.+%'-])[^\W_][\w.%+'-]{0,63}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?P<end>[^\W\d_]{2,24}|xn--[\w-]{2,40})"
    r"(?![\w@-])(?!:[\w/])"
)
_SPACE = re.compile(r"\s")
_LOCAL = 64
"""Characters of an address before its @, at most."""
_NO_DOMAIN = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "css", "html", "js", "json", "ico", "pdf", "txt"})
"""Ends of file names such as 'icon@2x.png' that no domain has."""

_PHONE = re.compile(
    r"(?<![\w/=#@$€£¥+.,-])(?:\+ ?|\(|\d)[\d ().\-/\u00a0\u2010-\u2013]{5,24}\d(?:,? ?(?:ext\.?|x) ?\d{1,6})?"
    r"(?![\w@%])(?![.,:/-]\d)"
)
_PHONE_IN = re.compile(r"\d[\d ().\-/\u00a0\u2010-\u2013]{4,}\d")
"""What stands inside of every candidate; found fast, and in few texts. The same for the others: *_IN."""
_DATE = re.compile(r"(?:19|20)\d\d[-./]\d\d[-./]\d\d(?: \d\d)?|\d\d[-./]\d\d[-./](?:19|20)\d\d(?: \d\d)?")
_CALLED = re.compile(
    r"\b(?:phones?|tel|telephone|telef[oó]no?|téléphone|mobile|mobil|móvil|handy|celular|cell|fax|call|dial|ring|reach"
    r"|whatsapp|sms|text (?:me|us|to|him|her|them)|hotline|contact|rufnummer|电话|電話)(?:\b|(?<=[话話]))"
    r"[^\d\n]{0,20}$",
    re.IGNORECASE,
)
_GOODS = (
    r"order|invoice|ticket|tracking|shipment|parcel|ref|reference|case|sku|isbn(?:-1[03])?|issn|doi|ean|gtin|upc|asin"
    r"|serial|s/n|part|model|version|item|product|article|batch|lot|receipt|policy|claim|booking|flight|transaction"
    r"|po|rfc|build"
)
_AFTER = r"(?: ?(?:no|nr|num|number|id|code|ids|numbers)\b)?(?: (?:is|was))?[\s.:=#\"'(]{0,4}$"
_GOODS_CODE = re.compile(rf"\b(?:{_GOODS}){_AFTER}", re.IGNORECASE)
_ANY_CODE = re.compile(rf"\b(?:{_GOODS}|id|uid|code|zip|population|total|usd|eur){_AFTER}", re.IGNORECASE)
"""The end of what stands before a number that is the code of a thing."""
_BEFORE = 40
"""Characters before a candidate that tell what it is."""

_CARD_IN = re.compile(r"\d{4}[ -]?\d{4}")
_CARD = re.compile(
    r"(?<![\w/=#+])(?<!\d[.,-])(?:\d{14,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{4}|\d{4}([ -])\d{6}\2\d{4,5})(?!\w)(?![.,-]\d)"
)
_ISSUED = re.compile(
    r"4(?:\d{15}|\d{18})|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|6(?:011|4[4-9]\d|5\d\d)\d{12}|62\d{14,17}"
)
"""Visa, Mastercard (both ranges), American Express, Diners, JCB, Discover, UnionPay."""

_IBAN_IN = re.compile(r"[A-Z]{2}\d{2} ?[A-Z0-9]")
_IBAN = re.compile(r"(?<![\w/-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}(?![a-z\d])")
_SSN_IN = re.compile(r"\d{3}[- ]?\d{2}[- ]?\d{4}")
_SSN = re.compile(r"(?<![\w.,/-])(\d{3}([- ])\d{2}\2\d{4}|\d{9})(?![\w/-])(?![.,]\d)")
_SECURITY = re.compile(r"\b(?:ssn|social[- ]security|soc\.? sec\.?)[^\d\n]{0,24}$", re.IGNORECASE)

_IPV4 = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-])(?!\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\.\d{1,3}){3})?(?![\w:])")
_IPV4_IN = re.compile(r"\.\d{1,3}\.")
_IPV6_IN = re.compile(r":[0-9A-Fa-f]{0,4}:")
_RELEASED = re.compile(
    r"(?:\b(?:v|ver|version|versions|release|released|build|firmware|driver|section|chapter|clause|sec|rev|revision"
    r"|upgrade to|update to)\b\.?|§)[\s:=#\"'(]{0,4}$",
    re.IGNORECASE,
)


def _emails(text: str, region: str) -> Iterator[Found]:
    done = 0
    while (at := text.find("@", done)) >= 0:  # no address is looked for where none can be
        space = _SPACE.search(text, at)
        end = space.start() if space else len(text)
        for match in _EMAIL.finditer(text, max(done, at - _LOCAL), end):
            if match["end"].casefold() not in _NO_DOMAIN:
                yield Found("email", match.group(), match.group().casefold(), match.start())
        done = end


def _phones(text: str, region: str) -> Iterator[Found]:
    for candidate in _PHONE.finditer(text) if _PHONE_IN.search(text) else ():
        shape = candidate.group()
        if not 7 <= sum(map(str.isdigit, shape)) <= 24 or _DATE.fullmatch(shape):
            continue
        if shape.isdigit() and not _called(shape, _before(text, candidate.start())):
            continue
        for start, raw, national in _numbers(shape, region):
            if raw.startswith("+") or _called(raw, _before(text, candidate.start() + start)):
                yield Found("phone", raw, national, candidate.start() + start)


def _called(raw: str, before: str) -> bool:
    """A number without a country code is one to be called: by its form, or by the words before it."""
    return _CALLED.search(before) is not None or not (raw.isdigit() or _ANY_CODE.search(before))


def _before(text: str, at: int) -> str:
    return text[max(0, at - _BEFORE) : at]


@lru_cache(maxsize=4096)
def _numbers(text: str, region: str) -> tuple[tuple[int, str, str], ...]:
    """(where, as written, national digits) of the phone numbers in a candidate."""
    from phonenumbers import Leniency, PhoneNumberMatcher, national_significant_number

    found = PhoneNumberMatcher(text, region, leniency=Leniency.STRICT_GROUPING)
    return tuple((match.start, match.raw_string, national_significant_number(match.number)) for match in found)


def _cards(text: str, region: str) -> Iterator[Found]:
    from stdnum import luhn

    for match in _CARD.finditer(text) if _CARD_IN.search(text) else ():
        digits = re.sub(r"\D", "", match.group())
        coded = match.group().isdigit() and _ANY_CODE.search(_before(text, match.start()))
        if not coded and _ISSUED.fullmatch(digits) and luhn.is_valid(digits):
            yield Found("card", match.group(), digits, match.start())


def _ibans(text: str, region: str) -> Iterator[Found]:
    from stdnum import iban

    for match in _IBAN.finditer(text) if _IBAN_IN.search(text) else ():
        groups = match.group().split(" ")
        # What follows in capitals (a BIC, say) is cut off group by group.
        for end in range(len(groups), 0, -1):
            number = "".join(groups[:end])
            if len(number) >= 15 and iban.is_valid(number, check_country=False):
                yield Found("iban", " ".join(groups[:end]), number.casefold(), match.start())
                break


def _ssns(text: str, region: str) -> Iterator[Found]:
    from stdnum.us import ssn

    for match in _SSN.finditer(text) if _SSN_IN.search(text) else ():
        digits = re.sub(r"\D", "", match.group())
        before = _before(text, match.start())
        dashed = "-" in match.group() and not _GOODS_CODE.search(before)
        if ssn.is_valid(digits) and (dashed or _SECURITY.search(before)):
            yield Found("ssn", match.group(), digits, match.start())


def _addresses(text: str, region: str) -> Iterator[Found]:
    candidates = [*_IPV4.finditer(text)] if _IPV4_IN.search(text) else []
    candidates += (
        [match for match in _IPV6.finditer(text) if _looks_ipv6(match.group())] if _IPV6_IN.search(text) else []
    )
    for match in candidates:
        try:
            address = ipaddress.ip_address(match.group())
        except ValueError:
            continue
        nobody = address.is_loopback or address.is_unspecified or address.is_multicast or address.is_reserved
        before = _before(text, match.start())
        if not nobody and not _RELEASED.search(before):
            yield Found("ip", match.group(), match.group().casefold(), match.start())


def _looks_ipv6(text: str) -> bool:
    """Not a slice (1::2), a time (10:30:45) or a name (a::b): three groups or more and a digit."""
    return len([group for group in text.split(":") if group]) >= 3 and any(map(str.isdigit, text))


_FINDERS: dict[Kind, Callable[[str, str], Iterator[Found]]] = {
    "email": _emails,
    "phone": _phones,
    "card": _cards,
    "iban": _ibans,
    "ssn": _ssns,
    "ip": _addresses,
}


def rules() -> list[str]:
    """The patterns that candidates are cut out by and told from other things."""
    return [value.pattern for value in globals().values() if isinstance(value, re.Pattern)]
