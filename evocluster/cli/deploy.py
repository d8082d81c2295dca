"""`evocluster deploy`, `history`, `status`, `rollback`: what serves, what served, and back again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from evocluster.cli import homes, screen
from evocluster.cli.homes import DEFAULT, AllowCode, AsJson, Folder, Name, Url
from evocluster.cli.screen import plain


def deploy(
    run: Annotated[str, typer.Argument(help="A finished run: its folder, or its s3://...")],
    name: Annotated[str, typer.Option("--as", help="Name of the deployment: what callers give as `model`.")],
    genome: Annotated[
        str, typer.Option("--genome", help="recommended, start, or an id (its first digits do).")
    ] = "recommended",
    task: Annotated[str | None, typer.Option("--task", help="Which task, where the run has several.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the deployment, e.g. online.shadow.hours=6; again.")
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Skip gates and shadow: a candidate takes its share of the traffic now.")
    ] = False,
    home: Folder = DEFAULT,
    ledger: Url = None,
    allow_code: AllowCode = False,
    as_json: AsJson = False,
) -> None:
    """Deploy a configuration of a run: the first version of a name, or a candidate for its place.

    A candidate is not served before it has passed its gates and its shadow (evocluster daemon).

    Examples:

    evocluster deploy runs/quickstart --as triage; evocluster serve

    evocluster deploy runs/second --as triage --genome 3fa9
    """
    from evocluster import deploying

    with homes.opened(home, ledger) as where:
        told = deploying.deploy(
            run, name, where, genome=genome, task=task, sets=sets or (), live=live, allow_code=allow_code
        )
    if as_json:
        typer.echo(json.dumps(told))
        return
    after = {
        "serving": "serves from now on: evocluster serve",
        "candidate": f"is a candidate, which evocluster daemon takes further; evocluster status {name} tells how far",
        "live": f"takes its share of the traffic, watched by the breaker: evocluster status {name}",
    }[told["stage"]]
    _say(f"{name} {told['version']} (snapshot {told['snapshot']}) {after}")


def history(name: Name, home: Folder = DEFAULT, ledger: Url = None, as_json: AsJson = False) -> None:
    """List the versions of a deployment, the newest first, and which of them serves.

    Example: evocluster history triage
    """
    from evocluster import deploying

    with homes.opened(home, ledger) as where:
        rows = deploying.history(where, name)
    if as_json:
        typer.echo(json.dumps({"deployment": name, "versions": rows}))
        return
    shown = [{**row, "at": homes.moment(row["at"]), "serves": _share(row)} for row in rows]
    columns = ("version", "serves", "snapshot", "prompt", "memory", "strategy", "layer", "outcome", "at", "why")
    homes.print_rows(f"Versions of {name}", columns, shown)


def _share(row: Mapping[str, Any]) -> str:
    return f"{row['weight']:.0%}" + (" (incumbent)" if row["incumbent"] else "") if row["weight"] else ""


def status(name: Name, home: Folder = DEFAULT, ledger: Url = None, as_json: AsJson = False) -> None:
    """Show what serves, what is under way, and what happened in the last day.

    Example: evocluster status triage
    """
    from evocluster import deploying

    with homes.opened(home, ledger) as where:
        told = deploying.status(where, name)
    if as_json:
        typer.echo(json.dumps(told))
        return
    _say(f"{name}: {told['version']} (snapshot {told['snapshot']}), epoch {told['epoch']}")
    if told["arms"]:
        _say("traffic: " + ", ".join(f"{version} {share:.0%}" for version, share in told["arms"].items()))
    _say(f"last day: {told['requests']} requests, {told['shadows']} shadows, {told['feedback']} pieces of feedback")
    homes.print_rows(
        "Experiments",
        ("id", "layer", "stage", "outcome", "judge_score", "started", "why"),
        [{**row, "started": homes.moment(row["started_at"])} for row in told["experiments"]],
    )
    homes.print_rows(
        "Incidents",
        ("at", "kind", "snapshot", "reason"),
        [
            {**row, "at": homes.moment(row["at"]), "reason": (row["evidence"] or {}).get("why")}
            for row in told["incidents"]
        ],
    )
    homes.print_rows("Findings", ("severity", "kind", "layer", "intent", "model", "title"), told["findings"])
    homes.print_rows(
        "Replicas",
        ("id", "epoch", "seen", "url"),
        [{**row, "seen": homes.moment(row["seen_at"])} for row in told["replicas"]],
    )


def _say(text: str) -> None:
    screen.console().print(plain(text), soft_wrap=True)
