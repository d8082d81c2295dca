"""cluster.yaml is a file that this version of Ray launches, and it opens nothing to the network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PREPARE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
prepared = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(prepared)
print(json.dumps(prepared))
"""


def ray_schema() -> dict[str, Any]:
    """The schema Ray ships, found without importing Ray."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.submodule_search_locations is not None
    text = (Path(found.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json").read_text()
    schema: dict[str, Any] = json.loads(text)
    return schema


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def commands(config: dict[str, Any]) -> list[str]:
    keys = [key for key in config if key.endswith("_commands")]
    return [command for key in keys for command in config[key]]


def test_fits_the_schema_of_ray(config: dict[str, Any]) -> None:
    jsonschema.validate(config, ray_schema())


def test_the_schema_would_refuse_a_foreign_key(config: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match="initial_workers"):
        jsonschema.validate({**config, "initial_workers": 2}, ray_schema())


def test_nothing_listens_beyond_the_loopback_without_a_token(config: dict[str, Any]) -> None:
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert all("0.0.0.0" not in command for command in commands(config))
    assert "--dashboard-host=127.0.0.1" in next(command for command in starts if "--head" in command)


def test_what_it_calls_exists(config: dict[str, Any]) -> None:
    called = [word for command in config["setup_commands"] for word in command.strip("'").split()]
    scripts = [word.strip("'").removeprefix("~/evocluster/") for word in called if "scripts/" in word]
    assert scripts == ["scripts/setup.sh"]
    assert all((ROOT / script).is_file() for script in scripts)


def test_every_worker_may_join(config: dict[str, Any]) -> None:
    assert config["max_workers"] == len(config["provider"]["worker_ips"])


@pytest.mark.slow
def test_the_launcher_of_ray_prepares_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(ROOT / "cluster.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    prepared = json.loads(done.stdout)
    assert prepared["available_node_types"]["local.cluster.node"]["max_workers"] == 2
