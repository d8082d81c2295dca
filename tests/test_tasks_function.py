"""Users' own assertions: the contract, what they get and return, and what of theirs becomes a failure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from contract_scorer import ScorerContract, scored, silent
from pydantic import ValidationError

from evocluster.errors import ConfigError
from evocluster.records import Example, Json, Usage
from evocluster.tasks.execution import Execution
from evocluster.tasks.function import Function, FunctionFailed

EVALS = Path(__file__).with_name("user_evals.py")


def asserting(function: str, **settings: Any) -> Function:
    """The scorer that calls this function of user_evals.py."""
    return Function.model_validate({"function": f"{EVALS}:{function}", **settings})


class TestFunction(ScorerContract):
    settings: dict[str, Json] = {  # noqa: RUF012
        "kind": "function",
        "function": f"{EVALS}:polite",
        "name": "manners",
        "timeout_s": 5,
    }
    expected = None
    right = ("yes please", None)
    wrong = ("yes", None)


def test_the_name_is_the_functions_unless_given() -> None:
    assert asserting("polite").name == "polite"
    assert asserting("polite", name="manners").name == "manners"


async def test_functions_may_be_async_or_objects_and_take_the_execution() -> None:
    later = await scored(asserting("polite_later"), None, "x")
    assert (later.value, later.reason) == (0.25, "asked by e")
    assert (await scored(asserting("polite_object"), None, "please")).value == 1
    dear = await scored(asserting("with_execution"), None, "x", None, Usage(usd=2))
    assert (dear.value, dear.reason) == (0, "2.0 USD")


async def test_arguments_follow_from_the_signature() -> None:
    assert (await scored(asserting("with_threshold"), None, "x" * 6)).value == 1
    assert (await scored(asserting("third_by_name"), None, "x")).value == 1
    assert (await scored(asserting("everything"), None, "x")).value == 1


async def test_users_get_ordinary_json_of_their_own() -> None:
    example = Example(id="e", input={"words": ["x"]}, expected={"tags": ["a"]})
    execution = Execution(output="x", parsed=[{"a": []}])
    for _ in range(2):  # the second sees nothing of what the first did to its copy
        assert (await asserting("plain_json").score(example, execution, silent)).value == 1


async def returned(kind: str) -> tuple[float, str]:
    """The score of what `returns` returns for this kind."""
    example = Example(id="e", input="x", meta={"kind": kind})
    score = await asserting("returns").score(example, Execution(output="x"), silent)
    return score.value, score.reason


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        ("bool", 1, "returns returned True"),
        ("int", 1, "returns returned 1"),
        ("float", 0.5, "returns returned 0.5"),
        ("numpy", 0.5, "returns returned np.float32(0.5)"),
        ("numpy bool", 1, "returns returned np.True_"),
        ("numpy int", 1, "returns returned np.int64(1)"),
        ("score", 0.5, "half"),
        ("mapping", 0.5, "half"),
        ("value only", 0.5, "returns returned 0.5"),
        ("pair", 0.5, "half"),
    ],
)
async def test_verdicts(kind: str, value: float, reason: str) -> None:
    assert await returned(kind) == (value, reason)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("none", "returns returned NoneType None; allowed: bool, a number, Score"),
        ("none", "is a `return` missing"),
        ("text", "returns returned str 'yes'; allowed"),
        ("list", "returned list"),
        ("other keys", "returned dict"),
        ("text inside", "returned dict {'value': '0.5'}"),
        ("number as reason", "returned tuple"),
        ("array", "returned ndarray"),
    ],
)
async def test_what_is_no_verdict(kind: str, said: str) -> None:
    with pytest.raises(TypeError, match=re.escape(said)):
        await returned(kind)


def line_of(text: str) -> int:
    """The line of user_evals.py that holds this."""
    return next(at for at, line in enumerate(EVALS.read_text().splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", rf"^KeyError: 'colour' at user_evals.py:{line_of('return words[')} in fails$"),
        ("exits", r"^RuntimeError: exits raised SystemExit\(1\); allowed: to return, or an ordinary exception$"),
        ("hangs", r"^TimeoutError: hangs did not return within 0.2 s; it stood at user_evals.py:\d+ in hangs"),
        ("blocks", rf"^TimeoutError: blocks did not .* at user_evals.py:{line_of('time.sleep')} in blocks, which"),
    ],
)
async def test_what_a_function_does_wrong_is_a_failure_with_its_place(name: str, said: str) -> None:
    with pytest.raises(FunctionFailed, match=said):
        await scored(asserting(name, timeout_s=0.2), None, "x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "one",
            r"_evals.py:one': takes \(output\); allowed: \(output, example\) or \(output, example, execution\)",
        ),
        ("four", r"takes \(a, b, c, d\); allowed"),
        ("keyword", r"takes \(output, example, \*, strict\); allowed"),
        ("LIMIT", "is int 3; allowed: a function"),
        ("polite_objec", "did you mean 'polite_object'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_by_check(name: str, said: str) -> None:
    scorer = asserting(name)
    with pytest.raises(ConfigError, match=said):
        scorer.check()
    asserting("polite").check()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"function": "polite"}, "'polite' names no code; write 'file.py:name'"),
        ({"function": "evals.py:polite", "timeout_s": 0}, "greater than 0"),
        ({}, "function"),
    ],
)
def test_settings_that_name_no_function_are_refused(settings: dict[str, Json], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Function.model_validate(settings)


def test_a_process_whose_assertions_hang_exits(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(
        "import asyncio, sys\nfrom evocluster.records import Example\n"
        "from evocluster.tasks.execution import Execution\n"
        "from evocluster.tasks.function import Function\n"
        "def asserting(name): return Function(function=f'{sys.argv[1]}:{name}', name=name, timeout_s=0.2)\n"
        "async def main():\n"
        "    made = [asserting(n).score(Example(id='e', input='x'), Execution(), None) for n in ('hangs', 'blocks')]\n"
        "    print([type(e).__name__ for e in await asyncio.gather(*made, return_exceptions=True)])\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, str(script), str(EVALS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['FunctionFailed', 'FunctionFailed']\n", "")
