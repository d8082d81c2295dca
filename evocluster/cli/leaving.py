"""What every exported format says of where a configuration comes from, and the reasons for which one cannot hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evocluster.errors import ConfigError
from evocluster.report.chosen import SHORT
from evocluster.report.figures import cell

Export = Mapping[str, Any]
"""What build.exported returns."""
CALLS = ("ask", "conclude", "repair")


def origin(export: Export) -> list[str]:
    """Lines: which configuration of which run, what it scored and on how much, what to know before it is used."""
    run, role = export["run"], export["role"]
    of = f"{run['name']}, task {run['task']}" if run["task"] else run["name"]
    by = f" ({export['why']})" if export["why"] else ""
    version = (run["versions"] or {}).get("evocluster", "?")
    lines = [f"{of}: configuration {export['genome'][:SHORT]} of an evocluster run."]
    lines.append(f"Exported by evocluster {version}" + (f"; {role} there{by}." if role else "."))
    scores = next(iter(export["scores"].items()), None)
    measured = (
        f"Measured there on {scores[0]}: {_scores(scores[1])}." if scores else "It has no scores of its own there."
    )
    lines.append(measured)
    return [*lines, *remarks(export)]


def _scores(scores: Mapping[str, Any]) -> str:
    return ", ".join(
        " ".join(filter(None, (name, *cell(name, interval)))) + (" USD per 1M answers" if name == "cost_usd" else "")
        for name, interval in scores.items()
    )


def remarks(export: Export) -> list[str]:
    """What differs, or has to be there, where this is used."""
    winner = export["winner"]
    if winner is None:
        return [f"It is run by your own function {export['task']['executor']!r}, which takes these genes."]
    lines = [f"Model {name}: {each['note']}." for name, each in export["endpoints"].items() if each.get("note")]
    if winner["passages"]:
        lines.append(
            f"It needs your documents ({export['task']['documents']}): {winner['passages']} retrieved passages go into "
            "`context`."
        )
    if any(float(each["ask"]["litellm"].get("temperature") or 0) > 0 for each in asked(winner).values()):
        lines.append(
            "It samples (temperature above 0), so scores vary; equal seeds help where the endpoint keeps them."
        )
    return lines


def asked(winner: Mapping[str, Any]) -> dict[str, Any]:
    """Model -> its calls, of the models that give answers."""
    return {name: winner["calls"][name] for name in dict.fromkeys(winner["votes"])}


def refuse(form: str, why: str, instead: Sequence[str]) -> ConfigError:
    """The error for a format that cannot hold a configuration."""
    return ConfigError(f"--as {form} cannot hold this configuration: {why}. Use --as {' or --as '.join(instead)}")


def of_program(export: Export, form: str) -> dict[str, Any]:
    """The winner. Raises: ConfigError for a pipeline of the user's own."""
    if export["winner"] is None:
        why = f"it is run by your own function {export['task']['executor']!r}"
        raise refuse(form, why, ["json, which gives the genes for that function"])
    found: dict[str, Any] = export["winner"]
    return found


def single(export: Export, form: str) -> dict[str, Any]:
    """The winner, for formats that hold one request and no program around it.

    Raises: ConfigError where the score hangs on more than one request.
    """
    winner = of_program(export, form)
    if winner["conclude"]:
        raise refuse(form, "it reasons in one request and answers in a second one (cot with constrain)", ["openai"])
    if len(winner["votes"]) > 1:
        raise refuse(form, f"{len(winner['votes'])} votes decide its answer (use_consensus)", ["openai"])
    used = export["used"]
    if winner["repairs"] and (used["repaired"] or not used["evaluations"]):
        told = f"{used['repaired']} of its {used['evaluations']} answers in the run were repaired"
        raise refuse(form, f"it asks again when an answer does not parse, and {told}", ["openai"])
    return winner


def unrepaired(export: Export) -> list[str]:
    """What a format without repairs says of them, where the configuration has them and never needed one."""
    winner = export["winner"]
    if not winner["repairs"]:
        return []
    return [
        f"evocluster asks again (up to {winner['repairs']}x) when an answer does not parse. That is not in here: none "
        f"of its {export['used']['evaluations']} answers in the run needed it."
    ]


def reading(winner: Mapping[str, Any]) -> str:
    """How an answer is read from a reply, in one sentence."""
    read = winner["read"]
    where = f" after the last '{read['after'][0]}:'" if read["after"] else ""
    if read["kind"] == "label":
        renamed = {name: label for name, label in read["names"].items() if name != label}
        names = ", ".join(f"{name} = {label}" for name, label in renamed.items())
        return f"the label that the reply names{where}" + (f" ({names})" if names else "")
    if read["kind"] == "json":
        return f"the first JSON {'array' if read['opening'] == '[' else 'object'} of the reply{where}"
    return f"the reply{where}, stripped"
