"""Exported configurations as plain documents: everything as JSON, the bare messages, LiteLLM's YAML."""

from __future__ import annotations

import json
from typing import Any

from evocluster.cli.leaving import Export, asked, origin, reading, refuse, single, unrepaired


def whole(export: Export) -> str:
    """Everything that is known of the configuration; the examples stay in the run folder."""
    kept = {name: value for name, value in export.items() if name != "tests"}
    return json.dumps(kept, indent=1, ensure_ascii=False) + "\n"


def messages(export: Export) -> str:
    """Chat messages and parameters as one JSON object, the body of a request. Raises: ConfigError."""
    winner = single(export, "messages")
    if winner["ask"]["prompt"] is not None:
        why = "its prompt is plain text that the model continues (demo_style: completion), not a chat"
        raise refuse("messages", why, ["openai", "litellm", "promptfoo"])
    call = next(iter(asked(winner).values()))["ask"]
    parameters = dict(call["parameters"] or call["litellm"])
    more = parameters.pop("extra_body", {})
    secret = ("api_key", "api_base")
    body = {name: value for name, value in {**parameters, **more}.items() if name not in secret}
    return json.dumps({"messages": winner["ask"]["messages"], **body}, indent=1, ensure_ascii=False) + "\n"


def litellm(export: Export) -> str:
    """A config of LiteLLM's proxy, its messages beside it. Raises: ConfigError."""
    winner = single(export, "litellm")
    name = winner["votes"][0]
    parameters = winner["calls"][name]["ask"]["litellm"]
    chat = winner["ask"]["prompt"] is None
    shown: dict[str, Any] = {"messages": winner["ask"]["messages"]} if chat else {"prompt": winner["ask"]["prompt"]}
    alias = export["run"]["name"]
    call = "completion" if chat else "text_completion"
    key = parameters.get("api_key", "")
    taken = f", api_key=os.environ[{key.partition('/')[2]!r}]" if key.startswith("os.environ/") else ""
    what = next(iter(shown))
    told = [
        *origin(export),
        *unrepaired(export),
        f"An answer is {reading(winner)}.",
        f"Proxy: litellm --config THIS_FILE, then ask for model {alias!r} with `{what}` below, its places filled in",
        "(they are Jinja templates; the proxy itself reads only `model_list`).",
        f"Python: litellm.{call}(**{{**model_list[0]['litellm_params'], {what!r}: ...{taken}}})",
    ]
    config = {"model_list": [{"model_name": alias, "litellm_params": parameters}], **shown}
    from evocluster.document import written

    return "".join(f"# {' '.join(line.split())}\n" for line in told) + written(config)
