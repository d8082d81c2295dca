"""The `evocluster` command.

Exit codes: 0 done, 1 unexpected, 2 config or data wrong (nothing spent), 3 the run folder exists, 4 a run folder is
damaged, 5 a budget ended before there was a front, 6 disk, 7 a model could not be used, 8 a figure is below what was
asked for, 9 another process writes the run folder, 10 a cluster's job server, 130 interrupted (saved).
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback

import typer

from evocluster.cli import (
    bench,
    check,
    compare,
    daemon,
    deploy,
    erase,
    export,
    init,
    job,
    judge,
    keys,
    models,
    report,
    resume,
    rollback,
    run,
    schema,
    screen,
    serve,
    show,
    submit,
    track,
    watch,
)
from evocluster.errors import ConfigError, EvoclusterError
from evocluster.redaction import redacted

app = typer.Typer(
    name="evocluster",
    help="Evolve the whole configuration of an LLM program: quality, latency, cost and robustness on one Pareto front.",
    epilog=(
        "Example: evocluster run configs/quickstart.yaml; evocluster show runs/quickstart. "
        "Exit codes: 0 done, 1 unexpected, "
        "2 config or data, 3 run folder exists, 4 run folder damaged, 5 budget spent before a front, 6 disk, 7 model, "
        "8 below what was asked, 9 another process writes the run folder, 10 job server of a cluster, "
        "130 interrupted (everything finished is saved)."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init.init)
app.command("check")(check.check)
app.command("run")(run.run)
app.command("resume")(resume.resume)
app.command("submit")(submit.submit)
app.add_typer(job.app, name="job")
app.command("show")(show.show)
app.command("report")(report.report)
app.command("watch")(watch.watch)
app.command("compare")(compare.compare)
app.command("export")(export.export)
app.command("track")(track.track)
app.command("deploy")(deploy.deploy)
app.command("serve")(serve.serve)
app.command("history")(deploy.history)
app.command("status")(deploy.status)
app.command("rollback")(rollback.rollback)
app.command("erase")(erase.erase)
app.command("daemon")(daemon.daemon)
app.command("analyze")(daemon.analyze)
app.command("evolve")(daemon.evolve)
app.command("promote")(daemon.promote)
app.add_typer(keys.app, name="keys")
app.add_typer(judge.app, name="judge")
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.command("schema")(schema.schema)


def _version(wanted: bool) -> None:
    if wanted:
        from evocluster import __version__

        typer.echo(f"evocluster {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Set-up common to all verbs."""
    logger = logging.getLogger("evocluster")
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))  # for the run folder's log.jsonl
    if not any(isinstance(one, screen.Warnings) for one in logger.handlers):
        logger.addHandler(screen.Warnings(logging.WARNING))


ONLINE = (
    *("alembic", "croniter", "duckdb", "fastapi", "httptools", "psycopg", "river", "sklearn", "sqlalchemy"),
    *("starlette", "uvicorn"),
)
"""Libraries of the extra `online`, as they are imported."""


def main() -> None:
    """Run the command line; every error of ours is one message and its exit code, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal of a narrow encoding shows '?', not a traceback
    try:
        app(prog_name="evocluster")
    except EvoclusterError as error:
        _leave(error)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] not in ONLINE:
            raise
        text = f'deployments need {missing.name!r}, which is not installed: pip install "evocluster[online]"'
        _leave(ConfigError(text))


def _leave(error: EvoclusterError) -> None:
    if os.environ.get("EVOCLUSTER_TRACEBACK"):
        sys.stderr.write(redacted(traceback.format_exc()))
    screen.console(stderr=True).print(screen.plain(redacted(f"error: {error}"), "bold red"), soft_wrap=True)
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
