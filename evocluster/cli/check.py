"""`evocluster check`: everything that can be known before a run is paid for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from evocluster.cli import screen
from evocluster.cli.screen import plain
from evocluster.errors import EvoclusterError

SHOWN = 1200
"""Characters of a prompt or an answer."""


def check(
    config: Annotated[Path, typer.Argument(help="The YAML file that describes task, models, space and budget.")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one value, e.g. --set budget.calls=500."),
    ] = None,
    no_call: Annotated[bool, typer.Option("--no-call", help="Only read and check; ask no model.")] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Also run Python that the config names outside its own folder: you have looked at it."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as one JSON object.")] = False,
) -> None:
    """Check a config before it costs: data, code, keys and prices; one example; calls, dollars and minutes of the run.

    One example goes through the starting configuration (its calls are cached, so the run does not pay them again).

    Example: evocluster check my.yaml --set budget.usd=2
    """
    from evocluster import build
    from evocluster.report.caveats import scarce

    plan = build.plan(config, sets or [], allow_code=allow_code)
    console = screen.console()
    warnings = [text for text in (scarce(len(plan.splits.validation)),) if text]
    if not as_json:
        _print_plan(console, config, plan)
        for text in warnings:
            console.print(plain(f"warning    {text}", "yellow"), soft_wrap=True)
    if no_call:
        plan.stack.check()
        plan.optimizer()
        if as_json:
            typer.echo(json.dumps({"config": str(config), "ok": True, "warnings": warnings}))
        return
    found = build.check(plan)
    if as_json:
        ok = not found["evaluation"]["error"]
        typer.echo(json.dumps({"config": str(config), "ok": ok, "warnings": warnings, **found}))
    else:
        _print_example(console, found)
        _print_forecast(console, found)
    if found["evaluation"]["error"]:
        raise EvoclusterError(f"the starting configuration fails on its first example: {found['evaluation']['error']}")
    ahead, usd = found["forecast"], plan.config.budget.usd
    if ahead["whole"] and not ahead["checking"] and usd is not None:
        raise EvoclusterError(
            f"budget.usd={usd:g} would end before the finalists are checked, which takes about "
            f"${ahead['kept_usd']:.2g}, so there would be no front; raise it, or lower search.finalists or the number "
            "of validation and test examples"
        )


def _print_plan(console: Console, config: Path, plan: Any) -> None:
    console.print(plain(f"{config}: read, and everything it names is there", "bold"), soft_wrap=True)
    tasks = plan.config.every
    counts = {split: len(plan.splits.of(split)) for split in ("train", "validation", "test")}
    said = ", ".join(f"{count} {split}" for split, count in counts.items())
    kinds = ", ".join(f"{name} ({task.kind})" if name else task.kind for name, task in tasks.items())
    console.print(plain(f"examples   {said}; {kinds}"), soft_wrap=True)
    for name, model in plan.stack.models.items():
        console.print(plain(f"model      {name}: {model.identity}"), soft_wrap=True)
    free = ", ".join(plan.space.free) or "none: there is nothing to search"
    console.print(plain(f"free genes {free}"), soft_wrap=True)


def _print_example(console: Console, found: Mapping[str, Any]) -> None:
    example, done = found["example"], found["evaluation"]
    console.print()
    console.print(plain(f"One example, {example['id']}, through the starting configuration", "bold"), soft_wrap=True)
    for step in found["steps"]:
        console.print(plain(f"{step['purpose']}:", "dim"))
        console.print(plain(_indented(step["prompt"])), soft_wrap=True)
        console.print(plain(_indented(f"-> {step['reply']}"), "cyan"), soft_wrap=True)
    expected = example["expected"] if isinstance(example["expected"], str) else json.dumps(example["expected"])
    console.print(plain(f"answer     {_short(done['output'])}"), soft_wrap=True)
    console.print(plain(f"expected   {_short(expected)}"), soft_wrap=True)
    for name, score in done["scores"].items():
        reason = f" ({_short(score['reason'], 200)})" if score["reason"] else ""
        console.print(plain(f"score      {name} {score['value']:.2f}{reason}"), soft_wrap=True)
    if done["error"]:
        console.print(plain(f"error      {done['error']}", "bold red"), soft_wrap=True)
    if not done["schema_ok"]:
        console.print(plain("the answer is not of the form that the task demands", "yellow"))
    if done["flags"]:
        console.print(plain(f"flags      {', '.join(done['flags'])}", "yellow"))
    console.print(plain(f"took       {_used(done['usage'])}"), soft_wrap=True)
    if done["judging"]["calls"]:
        console.print(plain(f"judging    {_used(done['judging'])}"), soft_wrap=True)


def _print_forecast(console: Console, found: Mapping[str, Any]) -> None:
    ahead = found["forecast"]
    least = "" if ahead["whole"] else "at least "
    console.print()
    console.print(plain("The run, if every evaluation takes what this one took (an order of magnitude)", "bold"))
    console.print(
        plain(
            f"about      {least}{ahead['evaluations']:,} evaluations, {ahead['calls']:,} calls, "
            f"${ahead['usd']:.4f}, {ahead['minutes']:.1f} minutes at {found['at_once']} at once"
        ),
        soft_wrap=True,
    )
    console.print(plain(f"of these   {ahead['checking']:,} evaluations check the finalists on validation and test"))
    budget = ", ".join(f"{name} {value}" for name, value in found["budget"].items() if name != "target_objective")
    console.print(plain(f"ends by    {ahead['ends_by']} (budget: {budget})"), soft_wrap=True)
    if not found["free"]:
        console.print(plain("No gene is free: the run would only measure the start. List choices under `space:`."))


def _used(usage: Mapping[str, Any]) -> str:
    cached = f" ({usage['cached']} from the cache)" if usage["cached"] else ""
    return (
        f"{usage['calls']} call(s){cached}, {usage['prompt_tokens']} + {usage['completion_tokens']} tokens, "
        f"${usage['usd']:.6f}, {usage['seconds']:.2f} s"
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in _short(text).splitlines())


def _short(text: str, size: int = SHOWN) -> str:
    return text if len(text) <= size else f"{text[: size - 1]}…"
