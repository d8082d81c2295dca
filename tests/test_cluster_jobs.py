"""The client of Ray's job server: tokens, refusals, and a log that is whole across lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_server import TOKEN, JobServer, Played, serving

from evocluster.cluster.follow import Followed
from evocluster.cluster.jobs import Jobs, checked, exposed, token
from evocluster.errors import ConfigError, JobError, JobServerAway, RunExists

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
BODY = {"metadata": {"evocluster_run": "one"}}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JobServer]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(shared: JobServer) -> JobServer:
    """As after its start."""
    fresh = JobServer(shared.folder)
    for name in ("token", "ray_version", "on_submit", "cuts", "tails", "down", "silent", "uploads", "agentless"):
        setattr(shared, name, getattr(fresh, name))
    shared.jobs.clear()
    shared.packages.clear()
    return shared


async def followed(server: JobServer, id: str = "one", **how: float) -> tuple[list[str], list[str]]:
    """The lines of a job, and what was said of the connection."""
    said: list[str] = []
    async with Jobs(server.url, TOKEN, call_s=1.0, quiet_s=0.05) as jobs:
        job = Followed(jobs, id, said.append, **{"first_s": 0.01, **how})
        lines = [line async for line in job.lines()]
    assert job.job is not None
    assert job.job.over
    return lines, said


@pytest.mark.parametrize(("given", "said"), [(None, "wants the cluster's token"), ("x", "does not take this token")])
async def test_without_the_right_token_nothing_is_told(server: JobServer, given: str | None, said: str) -> None:
    async with Jobs(server.url, given) as jobs:
        with pytest.raises(JobError, match=said) as refused:
            await jobs.version()
        assert not isinstance(refused.value, JobServerAway)
        with pytest.raises(JobError, match=said):
            await anext(jobs.tail("one"))


async def test_nobody_there_says_where_it_looked_and_what_to_do() -> None:
    async with Jobs("http://127.0.0.1:9") as jobs:
        with pytest.raises(JobServerAway, match=r"127\.0\.0\.1:9.*ssh -N -L"):
            await jobs.version()


async def test_an_old_ray_is_refused_by_both_versions(server: JobServer) -> None:
    server.ray_version = "2.9.3"
    async with Jobs(server.url, TOKEN) as jobs:
        with pytest.raises(ConfigError, match=r"Ray 2\.9\.3; evocluster needs 2\.60"):
            await jobs.version()


async def test_a_head_that_is_still_starting_is_waited_for(server: JobServer) -> None:
    server.agentless = 2
    async with Jobs(server.url, TOKEN, agent_s=3.0) as jobs:
        await jobs.submit("one", "true", {}, {})
    assert list(server.jobs) == ["one"]


async def test_a_head_without_an_agent_says_which_port_to_give(server: JobServer) -> None:
    server.agentless = 1000
    async with Jobs(server.url, TOKEN, agent_s=0.05) as jobs:
        with pytest.raises(JobError, match=r"no agent.*52365.*--dashboard-agent-listen-port"):
            await jobs.submit("one", "true", {}, {})
    assert not server.jobs


async def test_an_id_is_given_out_once(server: JobServer) -> None:
    async with Jobs(server.url, TOKEN) as jobs:
        await jobs.submit("one", "true", {}, {})
        with pytest.raises(RunExists, match="'one'"):
            await jobs.submit("one", "true", {}, {})


async def test_a_package_travels_once(server: JobServer) -> None:
    async with Jobs(server.url, TOKEN) as jobs:
        assert await jobs.upload("_ray_pkg_1.zip", b"x") == await jobs.upload("_ray_pkg_1.zip", b"x")
    assert (server.uploads, server.packages) == (1, {"_ray_pkg_1.zip": b"x"})


LINES = [f"line {number} of ünequal length {'x' * (number % 7)}" for number in range(20)]


@given(cuts=st.lists(st.integers(0, 600), max_size=4), whole=st.booleans())
def test_every_line_comes_once_wherever_the_connection_breaks(shared: JobServer, cuts: list[int], whole: bool) -> None:
    log = "\n".join(LINES) + "\n" * whole
    shared.token, shared.cuts, shared.jobs["law"] = TOKEN, list(cuts), Played(BODY)
    shared.play(shared.jobs["law"], log)
    lines, said = asyncio.run(followed(shared, "law"))
    assert lines == LINES
    assert sum("connection lost" in text for text in said) <= len(cuts)


async def test_a_server_that_is_away_for_a_while_is_found_again(server: JobServer) -> None:
    job = server.jobs["one"] = Played(BODY, log="before\n")
    following = asyncio.ensure_future(followed(server))
    await _until(lambda: server.tails >= 1)
    server.down, server.cuts = True, []
    _break(server)
    await asyncio.sleep(0.2)
    server.silent = server.down = False
    server.play(job, "after\n")
    lines, said = await following
    assert lines == ["before", "after"]
    assert "connection lost" in said[0]
    assert said[-1] == "connected again"


async def test_a_network_that_falls_silent_is_noticed(server: JobServer) -> None:
    job = server.jobs["one"] = Played(BODY, log="before\n")
    following = asyncio.ensure_future(followed(server))
    await _until(lambda: server.tails >= 1)
    server.silent = True
    await asyncio.sleep(1.5)
    server.silent = False
    server.play(job, "after\n")
    lines, said = await following
    assert lines == ["before", "after"]
    assert "connection lost" in said[0]


async def test_patience_ends(server: JobServer) -> None:
    server.jobs["one"] = Played(BODY)
    server.down = True
    with pytest.raises(JobServerAway):
        await followed(server, patience_s=0.05)


async def test_a_cluster_that_was_started_anew_knows_the_job_no_more(server: JobServer) -> None:
    server.jobs["one"] = Played(BODY)
    following = asyncio.ensure_future(followed(server))
    await _until(lambda: server.tails >= 1)
    server.cuts = [0, 0, 0]
    server.jobs["one"].status = "STOPPED"
    job = server.jobs.pop("one")
    with pytest.raises(JobError, match="knows no job 'one' any more"):
        await following
    assert job.exit_code is None


def _break(server: JobServer) -> None:
    """Let go of the tail that is open: it is silent, and who asks after it finds nobody."""
    server.silent = True


async def _until(reached: object) -> None:
    for _ in range(500):
        if callable(reached) and reached():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("never reached")


@pytest.mark.parametrize(
    "address",
    ["ray://host:10001", "127.0.0.1:8265", "http://", "ftp://host:1", "http://host:1/?a=b", "http://a:b@host"],
)
def test_what_is_no_address_of_a_job_server_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"--address"):
        checked(address)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as refused:
        checked("http://me:planted-password@host:8265")
    assert "planted" not in str(refused.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:1", "http://[::1]:1", "https://host:1"])
def test_a_loopback_or_an_encrypted_address_needs_no_warning(address: str) -> None:
    assert exposed(address) is None


def test_plain_http_to_another_host_is_warned_of_with_the_command_that_avoids_it() -> None:
    assert "ssh -N -L 8265:127.0.0.1:8000 head" in str(exposed("http://head:8000"))


def test_the_token_is_looked_for_as_ray_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    assert token() is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of the home\n")
    assert token() == "of the home"
    (tmp_path / "file").write_text("of the file")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file"))
    assert token() == "of the file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the variable")
    assert token() == "of the variable"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert token() is None


def test_a_token_that_is_asked_for_and_not_there_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match=r"\.ray/auth_token.*RAY_AUTH_TOKEN"):
        token()
