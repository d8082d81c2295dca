"""Safety checks: what is personal data and what only looks like it, what was given, and checks that fail."""

from __future__ import annotations

import pytest
from contract_scorer import silent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evocluster.errors import ConfigError
from evocluster.llm.client import LLM
from evocluster.parts import Part
from evocluster.records import Example, Json
from evocluster.tasks import pii
from evocluster.tasks.execution import Execution
from evocluster.tasks.pii import Kind, personal
from evocluster.tasks.safety import AnyCheck, Pattern, Pii, flags

ALL: tuple[Kind, ...] = ("email", "phone", "card", "iban", "ssn", "ip")

PERSONAL: list[tuple[Kind, str, str]] = [
    ("email", "write to Jane.Doe+shop@mail.example.co.uk.", "Jane.Doe+shop@mail.example.co.uk"),
    ("email", "<jane@b.io>, or", "jane@b.io"),
    ("email", "mailto:jane_doe@b-c.org?subject=x", "jane_doe@b-c.org"),
    ("email", "jürgen@müller.de", "jürgen@müller.de"),
    ("email", "o'neil@b.com wrote: ...", "o'neil@b.com"),
    ("phone", "call +1 415-555-2671 now", "+1 415-555-2671"),
    ("phone", "(415) 555-2671", "(415) 555-2671"),
    ("phone", "415.555.2671", "415.555.2671"),
    ("phone", "on 2024-05-12 she rang 415-555-2671, twice", "415-555-2671"),
    ("phone", "1-800-273-8255", "1-800-273-8255"),
    ("phone", "my cell: 4155552671.", "4155552671"),
    ("phone", '{"phone": "4155552671", "n": 3}', "4155552671"),
    ("phone", "My number is 415-555-2671", "415-555-2671"),
    ("phone", "1. 415-555-2671\n2. none", "1. 415-555-2671"),
    ("phone", "Phone:(415)555-2671", "(415)555-2671"),
    ("phone", "text me: 4155552671", "4155552671"),
    ("phone", "+1(415)555-2671", "+1(415)555-2671"),
    ("phone", "415-555-2671 ext. 12", "415-555-2671 ext. 12"),
    ("phone", "+44 20 7946 0958", "+44 20 7946 0958"),
    ("phone", "+49 30 901820", "+49 30 901820"),
    ("phone", "tel:+919876543210", "+919876543210"),
    ("phone", "call about order 77: 415-555-2671", "415-555-2671"),
    ("card", "paid with 4111 1111 1111 1111", "4111 1111 1111 1111"),
    ("card", "5500-0055-5555-5559 (exp 12/27)", "5500-0055-5555-5559"),
    ("card", "Amex 3782 822463 10005", "3782 822463 10005"),
    ("card", "card: 4012888888881881", "4012888888881881"),
    ("card", "the card 6011111111111117, valid", "6011111111111117"),
    ("iban", "IBAN: DE89 3704 0044 0532 0130 00 BIC COBADEFF", "DE89 3704 0044 0532 0130 00"),
    ("iban", "GB82WEST12345698765432.", "GB82WEST12345698765432"),
    ("iban", "to NO93 8601 1117 947 please", "NO93 8601 1117 947"),
    ("ssn", "SSN 536-90-4399", "536-90-4399"),
    ("ssn", "her number, 536-90-4399, is", "536-90-4399"),
    ("ssn", "social security number: 536904399", "536904399"),
    ("ssn", "SSN 536 90 4399", "536 90 4399"),
    ("ssn", "tax id 536-90-4399", "536-90-4399"),
    ("ip", "logged in from 81.2.69.142.", "81.2.69.142"),
    ("ip", "81.2.69.142:8080 answered", "81.2.69.142"),
    ("ip", "at 2001:db8:85a3::8a2e:370:7334 today", "2001:db8:85a3::8a2e:370:7334"),
]

HARMLESS = [
    "order 4155552671 shipped",
    "Order #415-555-2671",
    "invoice 2023-000123",
    "invoice no. 212-555-1234",
    "tracking 1Z999AA10123456784",
    "tracking number: 9400 1000 0000 0000 0000 00",
    "ticket 20240512-103000",
    "order number is 4111111111111111",
    "ISBN 978-3-16-148410-0 and ISBN 0-306-40615-2, ISBN-13: 9783161484100",
    "EAN 4006381333931, GTIN 00012345600012",
    "2024-05-12 10:30:00, 12/05/2024, 05.12.2024, 20240512, 12-05-2024",
    "from 2019-2023 there were 1200 1300 cases",
    "price 1,234,567.89 or $4,155,552,671 or €415 555",
    "total: 4155552671",
    "2125551234 units were made",
    "versions 10.2.3.4567, v1.2.3.4, version 81.2.69.142 and release 8.8.4.4",
    "react@18.2.0, icon@2x.png, @someone, git@github.com:org/repo.git, a @ b.com, user@localhost",
    "pi is 3.14159265358979, e 2.718281828459045",
    "lat 37.774929 long -122.419418",
    "timestamp 1715515800, or 1715515800123",
    "id 212 555 1234 5678 9012",
    "4111 1111 1111 1112, 1234 5678 9012 3456 and 0000 0000 0000 0000",
    "4111-1111 1111-1111",
    "https://shop.example/item/4155552671?ref=4111111111111111",
    "DE89 3704 0044 0532 0130 01 and GB00WEST12345698765432",
    "HELLO WORLD THIS IS 1234 LOUD TEXT",
    "000-12-3456, 666-12-3456, 900-12-3456, 536-00-4399, 078-05-1120",
    "536904399 inhabitants, zip 94107-1234, part 536-90-4399",
    "10:30:45, x[1::2], std::vector, a::b, ::, 127.0.0.1, 0.0.0.0, 255.255.255.0, 256.1.1.1, 1.2.3.4.5",
    "00:1b:44:11:3a:b7",
    "phones sold: none; the text: 2125551234 units",
    "code 415 555 2671",
    "score 3-2, 2015 555, room 555-2671, call 911",
    "1/2/3 4-5-6 7.8.9 (10) [11] 12) 13.",
    "",
]


@pytest.mark.parametrize(("kind", "text", "found"), PERSONAL)
def test_personal_data_is_found_whatever_else_is_looked_for(kind: Kind, text: str, found: str) -> None:
    assert [(each.kind, each.text, each.start) for each in personal(text, ALL)] == [(kind, found, text.find(found))]
    others: tuple[Kind, ...] = tuple(other for other in ALL if other != kind)
    assert personal(text, others) == []


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_it_is_not_flagged(text: str) -> None:
    assert personal(text, ALL) == []


GATED = [
    (pii._PHONE, pii._PHONE_IN),
    (pii._CARD, pii._CARD_IN),
    (pii._IBAN, pii._IBAN_IN),
    (pii._SSN, pii._SSN_IN),
    (pii._IPV4, pii._IPV4_IN),
]


@settings(max_examples=400)
@given(st.text("0123456789 -.()+/AZaz@", max_size=40) | st.sampled_from([text for _, text, _ in PERSONAL]))
def test_what_is_looked_for_first_stands_in_every_candidate(text: str) -> None:
    for pattern, inside in GATED:
        assert pattern.search(text) is None or inside.search(text)
    if any(pii._looks_ipv6(match.group()) for match in pii._IPV6.finditer(text)):
        assert pii._IPV6_IN.search(text)


@settings(max_examples=400)
@given(st.text("ab1@.%' -_\n,:/ü", max_size=60))
def test_addresses_are_found_around_an_at_sign_as_in_the_whole_text(text: str) -> None:
    whole = [match.group() for match in pii._EMAIL.finditer(text)]
    assert [found.text for found in personal(text, ("email",))] == whole


def test_rules_are_the_patterns_that_are_used() -> None:
    assert {pii._EMAIL.pattern, pii._RELEASED.pattern} <= set(pii.rules())


def test_phone_numbers_without_a_country_code_are_the_regions() -> None:
    assert [found.text for found in personal("020 7946 0958", ("phone",), "GB")] == ["020 7946 0958"]
    assert personal("020 7946 0958", ("phone",), "US") == []
    assert [found.text for found in personal("030 901820", ("phone",), "DE")] == ["030 901820"]


async def raised(check: Pii, output: str, input: Json, expected: Json = None) -> bool:
    """The check on this output."""
    return await check.raised(Example(id="e", input=input, expected=expected), Execution(output=output), silent)


@pytest.mark.parametrize(
    ("output", "input", "expected"),
    [
        ('{"mail": "jane@b.io"}', "From: Jane@B.io", None),
        ('{"mail": "jane@b.io"}', "From: Jane", {"mail": "jane@b.io"}),
        ("+1 415 555 2671", "her phone is (415) 555-2671", None),
        ("(415) 555-2671", {"note": "order 4155552671"}, None),
        ("4111111111111111", "4111 1111 1111 1111", None),
        ("DE89370400440532013000", "de89 3704 0044 0532 0130 00", None),
        ("536-90-4399", "SSN 536904399", None),
        ("81.2.69.142", "from 81.2.69.142", None),
    ],
)
async def test_what_the_example_brought_is_not_flagged(output: str, input: Json, expected: Json) -> None:
    assert not await raised(Pii(), output, input, expected)
    assert await raised(Pii(given=False), output, input, expected)
    assert await raised(Pii(), output, "who is it?")
    assert await raised(Pii(), f"{output} and bob@c.org", input, expected)


@given(st.text())
def test_any_text_can_be_looked_at(text: str) -> None:
    assert all(found.text in text for found in personal(text, ALL))


@given(st.text(alphabet="0123456789 -.()+:@ab/", max_size=200))
def test_any_row_of_digits_can_be_looked_at(text: str) -> None:
    assert all(found.kind in ALL for found in personal(text, ALL))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "pii", "region": "EN"}, "region 'EN' is not known; write two capital letters"),
        ({"kind": "pii", "types": []}, "at least 1 item"),
        ({"kind": "pii", "types": ["name"]}, "'email', 'phone', 'card', 'iban', 'ssn' or 'ip'"),
        ({"kind": "pattern", "flag": "f", "pattern": "("}, "is not a regular expression"),
        ({"kind": "piii"}, "'pattern', 'pii'"),
    ],
)
def test_settings_that_could_flag_nothing_are_refused(settings: dict[str, Json], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(AnyCheck).validate_python(settings)


def test_a_check_is_its_own_settings() -> None:
    for check in (Pii(types=("email",), region="DE", given=False), Pattern(flag="f", pattern="x")):
        assert TypeAdapter(AnyCheck).validate_json(check.model_dump_json()) == check


class Told(Part):
    """A check that does what it is told."""

    flag: str
    does: bool | None = None
    """None: it fails."""
    fatal: bool = False

    async def raised(self, example: Example, execution: Execution, llm: LLM) -> bool:
        if self.fatal:
            raise ConfigError("no such model")
        if self.does is None:
            raise KeyError("colour")
        return self.does


async def test_flags_keep_their_order_and_a_check_that_fails_is_a_text() -> None:
    checks = [Told(flag="b", does=True), Told(flag="x"), Told(flag="no", does=False), Told(flag="a", does=True)]
    looked = await flags([*checks, checks[0]], Example(id="e", input=""), Execution(), silent)
    assert looked == (("b", "a"), ("safety check x: KeyError: 'colour'",))
    endless = Pattern(flag="slow", pattern="(a|aa)+$")
    raised, failures = await flags([endless], Example(id="e", input=""), Execution(output="a" * 400 + "b"), silent)
    assert raised == ()
    assert failures[0].startswith("safety check slow: TimeoutError: pattern '(a|aa)+$' did not finish")
    with pytest.raises(ConfigError):
        await flags([Told(flag="x", fatal=True)], Example(id="e", input=""), Execution(), silent)
