"""Names that become folders."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from small import settings

from evocluster.config import parse
from evocluster.errors import ConfigError
from evocluster.names import PATTERN, checked_name


@pytest.mark.parametrize("name", ["a", "support-3", "v1.2_x", "console", "com", "com10x", "0", "a" * 64])
def test_plain_names_stand(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        *(
            (name, "allowed: 1 to 64 letters")
            for name in ("", ".", "..", "../x", "a/b", "a\\b", "-x", "a b", "ä", "x\n")
        ),
        ("a" * 65, "allowed: 1 to 64 letters"),
        *((name, "device on Windows") for name in ("con", "NUL", "aux.txt", "Com1", "lpt9.x.y")),
        ("x.", "ends with a dot"),
    ],
)
def test_names_that_lead_elsewhere_are_refused(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        checked_name(name)


@given(st.text(max_size=70))
def test_what_stands_names_one_folder_below_any_other(name: str) -> None:
    try:
        checked_name(name)
    except ValueError:
        return
    assert re.fullmatch(PATTERN, name)
    assert not {"/", "\\", ":"} & set(name)
    assert name not in (".", "..")


@pytest.mark.parametrize("name", ["../outside", "nul"])
def test_the_name_of_a_run_is_one(name: str) -> None:
    with pytest.raises((ConfigError, ValidationError), match="name"):
        parse(settings(name=name))
