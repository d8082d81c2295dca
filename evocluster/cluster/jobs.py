"""Ray's job server as a client sees it: the REST API of Ray Jobs (docs: "Ray Jobs REST API").

Spoken here over aiohttp and not through ray.job_submission: its calls have no deadline, so that a lost network would
hang them for ever, and RAY_ADDRESS overrides the address they are given. Every call here has one, redirects are not
followed (the token would go with them), and only the address that was given is called.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp

from evocluster.errors import ConfigError, JobError, JobServerAway, RunExists

CALL_S = 30.0
UPLOAD_S = 600.0
AGENT_S = 60.0
"""A head that has just been started may take no jobs for so long: the agent that starts them is not there yet."""
QUIET_S = 5.0
"""A log that says nothing for so long is asked after: a connection may be dead without a sign."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
OVER = ("STOPPED", "SUCCEEDED", "FAILED")
"""What Ray calls a job that will not change any more."""
LEAST_RAY = (2, 60)
PACKAGE_BYTES = 90 * 2**20
"""Ray's dashboard takes no request above 100 MiB."""


@dataclass(frozen=True)
class Job:
    """What Ray says of a job."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str
    metadata: Mapping[str, str]
    exit_code: int | None = None
    """Of its command, where that came to an end by itself."""
    start_ms: int | None = None
    end_ms: int | None = None

    @property
    def over(self) -> bool:
        """It will not change any more."""
        return self.status in OVER


def token() -> str | None:
    """The cluster's token, as Ray looks for it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    None with RAY_AUTH_MODE=disabled, or where there is none. Raises: errors.ConfigError where the mode asks for one.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if said := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return said
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        text = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        if named or mode == "token":
            raise ConfigError(
                f"the cluster's token is to be in {str(file)!r}, which cannot be read: {error.strerror}; copy the file "
                "of the cluster there (chmod 600), or set RAY_AUTH_TOKEN"
            ) from None
        return None
    return text or None


def checked(address: str) -> str:
    """An address without its last '/'. Raises: errors.ConfigError for what is none of a job server."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(
            f"--address {address!r} is not the address of a job server; allowed: http(s)://host:port of Ray's "
            "dashboard, e.g. http://127.0.0.1:8265 (not ray://, and not the port 6379 of the cluster itself)"
        )
    if parts.username or parts.password:
        raise ConfigError(
            "--address holds a password; allowed: http(s)://host:port; the token is read from RAY_AUTH_TOKEN"
        )
    return address.rstrip("/")


def exposed(address: str) -> str | None:
    """What to know of an address over which others can read; None where nobody can."""
    parts = urlsplit(checked(address))
    if parts.scheme == "https" or parts.hostname in LOOPBACK:
        return None
    return (
        f"{address} is not encrypted: the token, code and data can be read on the way. Forward the port instead "
        f"(ssh -N -L 8265:127.0.0.1:{parts.port or 80} {parts.hostname}) and use --address http://127.0.0.1:8265"
    )


class Jobs:
    """A job server. Call order: `async with Jobs(address, token) as jobs`, `version`, then the others.

    Raises, all of them: errors.JobServerAway while it does not answer; errors.JobError for what it refuses.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        *,
        call_s: float = CALL_S,
        quiet_s: float = QUIET_S,
        agent_s: float = AGENT_S,
    ):
        self.address = checked(address)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._call_s = call_s
        self._quiet_s = quiet_s
        self._agent_s = agent_s
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(headers=self._headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def version(self) -> str:
        """Ray's version there. Raises: errors.ConfigError for one that is too old."""
        said = await self._call("GET", "/api/version")
        version = str(said.get("ray_version", "?"))
        numbers = [int(part) for part in version.split(".")[:2] if part.isdigit()]
        if tuple(numbers) < LEAST_RAY:
            needed = ".".join(map(str, LEAST_RAY))
            raise ConfigError(
                f"the cluster at {self.address} runs Ray {version}; evocluster needs {needed} or newer there"
            )
        return version

    async def upload(self, name: str, content: bytes) -> str:
        """Give a package to the cluster unless it has it; its URI for a runtime environment."""
        path = f"/api/packages/gcs/{name}"
        if await self._call("GET", path, missing=True) is None:
            await self._call("PUT", path, data=content, seconds=UPLOAD_S)
        return f"gcs://{name}"

    async def submit(self, id: str, command: str, runtime_env: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        """Start a job, waiting for the agent of a head that is still starting.

        Raises: errors.RunExists where its id was used before.
        """
        body = {"entrypoint": command, "submission_id": id, "runtime_env": runtime_env, "metadata": metadata}
        ends = time.monotonic() + self._agent_s
        while True:
            try:
                await self._call("POST", "/api/jobs/", json=body)
                return
            except JobError as error:
                if "already exists" in str(error):
                    raise RunExists(f"the cluster at {self.address} has had a job {id!r} already") from None
                if "No available agent" not in str(error):
                    raise
                if time.monotonic() >= ends:
                    raise self._no_agent() from None
            await asyncio.sleep(min(1.0, self._agent_s))

    async def find(self, id: str) -> Job | None:
        """A job, or None where the server knows none of this id."""
        said = await self._call("GET", f"/api/jobs/{id}", missing=True)
        return _job(said) if said is not None else None

    async def jobs(self) -> list[Job]:
        """Every job that was submitted to this server, oldest first."""
        said = await self._call("GET", "/api/jobs/")
        found = [_job(each) for each in said if each.get("submission_id")]
        return sorted(found, key=lambda job: job.start_ms or 0)

    async def stop(self, id: str) -> None:
        """Ask a job to end: it gets SIGTERM now, and SIGKILL when its time to finish is over."""
        await self._call("POST", f"/api/jobs/{id}/stop")

    async def log(self, id: str) -> str:
        """All that a job has printed so far."""
        said = await self._call("GET", f"/api/jobs/{id}/logs", seconds=UPLOAD_S)
        return str(said.get("logs") or "")

    async def tail(self, id: str) -> AsyncIterator[str]:
        """What a job prints, from its beginning until it is over; an empty text first, once the server listens."""
        assert self._session is not None
        url = f"{self.address}/api/jobs/{id}/logs/tail"
        try:
            async with asyncio.timeout(self._call_s):
                listening = await self._session.ws_connect(
                    url, max_msg_size=0, timeout=aiohttp.ClientWSTimeout(ws_close=1.0)
                )
            async with listening as socket:
                yield ""
                async for text in self._received(socket, id):
                    yield text
        except aiohttp.WSServerHandshakeError as error:
            raise self._refused(error.status, error.message) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from error

    async def _received(self, socket: aiohttp.ClientWebSocketResponse, id: str) -> AsyncIterator[str]:
        receiving = asyncio.ensure_future(socket.receive())
        try:
            while True:
                done, _ = await asyncio.wait({receiving}, timeout=self._quiet_s)
                if not done:
                    await self.find(id)  # raises where nobody is there any more
                    continue
                message = receiving.result()
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield message.data
                elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
                    return
                elif message.type is aiohttp.WSMsgType.ERROR:
                    raise JobServerAway(f"the log of {id!r} broke off: {socket.exception()}")
                receiving = asyncio.ensure_future(socket.receive())
        finally:
            receiving.cancel()

    async def _call(
        self, method: str, path: str, *, missing: bool = False, seconds: float | None = None, **content: Any
    ) -> Any:
        """What the server answers, from JSON; None for 404 where something may be `missing`."""
        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=seconds or self._call_s)
        try:
            async with self._session.request(
                method, self.address + path, timeout=limit, allow_redirects=False, **content
            ) as answer:
                text = await answer.text(errors="replace")
                status = answer.status
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLError) as error:
            raise JobError(f"{self.address} shows no certificate that is trusted here: {error}") from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from error
        if status == 404 and missing:
            return None
        if status != 200:
            raise self._refused(status, text)
        try:
            return json.loads(text) if text else {}
        except ValueError:
            raise JobError(
                f"{self.address}{path} does not answer as Ray's job server does; correct --address"
            ) from None

    def _away(self, error: BaseException) -> JobServerAway:
        why = str(error).replace(" ssl:default", "") or type(error).__name__
        return JobServerAway(
            f"no job server answers at {self.address}: {why}; is the cluster up, and is its port forwarded "
            "(ray dashboard cluster.yaml, or ssh -N -L 8265:127.0.0.1:8265 HEAD)?"
        )

    def _no_agent(self) -> JobError:
        return JobError(
            f"the head at {self.address} has had no agent that starts jobs for {self._agent_s:.0f} s: Ray goes on "
            "without it where its port is taken (52365 unless given; dashboard_agent.log in the head's "
            "/tmp/ray/session_latest/logs says so). Start the head with ray start --head "
            "--dashboard-agent-listen-port=PORT, a free one"
        )

    def _refused(self, status: int, text: str) -> JobError:
        if status == 401:
            return JobError(
                f"{self.address} wants the cluster's token; give it as RAY_AUTH_TOKEN=..., as RAY_AUTH_TOKEN_PATH=FILE "
                "or in ~/.ray/auth_token (the file of that name on the head)"
            )
        if status == 403:
            return JobError(
                f"{self.address} does not take this token; give the one of this cluster as RAY_AUTH_TOKEN=..., as "
                "RAY_AUTH_TOKEN_PATH=FILE or in ~/.ray/auth_token (the file of that name on the head)"
            )
        if 300 <= status < 400:
            return JobError(
                f"{self.address} sends callers on elsewhere ({status}); give the address of the dashboard itself"
            )
        last = (text.strip().splitlines() or ["nothing"])[-1][:500]
        if status in (502, 503, 504):
            return JobServerAway(f"no job server answers at {self.address}: {status}, {last}")
        return JobError(f"the job server at {self.address} answers {status}: {last}")


def _job(said: Mapping[str, Any]) -> Job:
    return Job(
        id=str(said["submission_id"]),
        status=str(said["status"]),
        message=str(said.get("message") or ""),
        metadata=said.get("metadata") or {},
        exit_code=said.get("driver_exit_code"),
        start_ms=said.get("start_time"),
        end_ms=said.get("end_time"),
    )
