"""Facts as one HTML file that asks nobody for anything.

The page builds itself from a JSON block with `textContent` only. Its policy allows the one style and the one script by
their hashes, so markup in an output stays text even where a bug would let it through.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from evocluster.errors import ConfigError
from evocluster.store.files import write_atomic

SCRIPTS = (
    *("dom", "run", "axes", "pareto", "inspector", "parallel", "headline", "curves", "lineage", "answers", "tables"),
    "page",
)
"""Inlined in this order as one script."""
_UNSAFE = {ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&\u2028\u2029"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def html(facts: Mapping[str, Any], watch: str | None = None) -> str:
    """The page. `watch`: the stamp of these facts where a server is there to be asked for newer ones."""
    script = '"use strict";\n(() => {\n' + "\n".join(asset(f"{name}.js") for name in SCRIPTS) + "\n})();\n"
    style = asset("page.css")
    parts = {
        "WATCH": "" if watch is None else f' data-watch="{escape(watch)}"',
        "CSP": policy(script, style, live=watch is not None),
        "TITLE": escape(_ODD.sub("\ufffd", _SURROGATE.sub("\ufffd", str(facts["run"]["name"])))) + " · evocluster",
        "STYLE": style,
        "FACTS": embedded(facts),
        "SCRIPT": script,
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], asset("page.html"))


def policy(script: str, style: str, live: bool) -> str:
    """The content security policy: nothing but this script and this style; `live`: and the page's own server."""
    rules = [
        "default-src 'none'",
        f"script-src 'sha256-{_hash(script)}'",
        f"style-src 'sha256-{_hash(style)}'",
        "img-src data:",
        *(["connect-src 'self'"] if live else []),
        "base-uri 'none'",
        "form-action 'none'",
    ]
    return "; ".join(rules)


def embedded(value: Any) -> str:
    """JSON that cannot end its script element, in strict UTF-8: a lone surrogate stays an escape."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def asset(name: str) -> str:
    """The text of a file in `assets`."""
    return (files("evocluster.report") / "assets" / name).read_text(encoding="utf-8")


def write(facts: Mapping[str, Any], path: Path) -> int:
    """Write the page in one step; its size in bytes. Raises: errors.ConfigError, errors.StoreError."""
    if path.is_dir():
        raise ConfigError(f"--out {str(path)!r} is a folder; give a file, e.g. --out {path / 'report.html'}")
    if not path.parent.is_dir():
        raise ConfigError(f"--out {str(path)!r}: there is no folder {str(path.parent)!r}; make it, or name another")
    page = html(facts)
    write_atomic(path, page)
    return len(page.encode())


def _hash(text: str) -> str:
    return b64encode(sha256(text.encode()).digest()).decode()
