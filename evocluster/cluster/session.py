"""A Ray session: our own on this machine, or one that is there already.

Every trap is closed here (measured): `address="local"` so that no recorded cluster is joined by accident; token
authentication said explicitly, with a token of this session only, never in a file; loopback only; no dashboard; no
usage report; nothing of a worker's output on the user's terminal.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evocluster.errors import ConfigError
from evocluster.telemetry import log

OBJECT_STORE_BYTES = 128 * 2**20
"""Enough: what travels is proposals and trials, kilobytes each."""
TOKEN = secrets.token_hex(24)
"""Of every local session of this process."""


@contextmanager
def session(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """Ray, connected; a local one is stopped at the end. `address` None starts one here.

    Raises: errors.ConfigError when the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    warn_of_open_token()
    import ray

    if ray.is_initialized():
        yield
        return
    ours = _local_token() if address is None else []
    see_environment()
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address is None:
            with _on_loopback():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    _node_ip_address="127.0.0.1",
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except ConnectionError as failure:
        raise ConfigError(
            f"no Ray cluster answers at {address!r}: {failure}; start one (ray start --head), correct engine.address, "
            "or leave it out to run on this machine"
        ) from failure
    finally:
        # Ray puts its own in place, which would end a run that was asked to finish in the middle of a trial.
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """While this lasts Ray takes the loopback address for this machine's own, as it does by itself on macOS.

    Else it replaces 127.0.0.1 by an address that others can reach, and driver, workers, raylet, GCS, agents and the
    metrics of the head's processes listen on all interfaces.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _local_token() -> list[str]:
    """Put the token in the environment, which children inherit: without it Ray writes a file that others can read.

    The variables that this set; what the user said stays.
    """
    wanted = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return []
    ours = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in ours})
    return ours


def see_environment() -> None:
    """Ray reads its mode of authentication as it is imported, which may have been before the environment was set."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def warn_of_open_token() -> None:
    """Log a warning where the user's own token file lets others read it: with it they can run code on the cluster."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:  # there is none
        return
    if mode & 0o077:
        log.warning(
            "Ray's token file %s has mode %04o, and whoever reads it can run code on your clusters: chmod 600 %s",
            *(path, mode, path),
        )


async def unwrapped(reference: Any) -> Any:
    """The value of an object reference; an error of ours comes out as itself, not wrapped by Ray."""
    import ray

    try:
        return await reference
    except ray.exceptions.RayTaskError as failure:
        raise failure.cause from failure
