"""Watching a run: the page renews itself while the run goes on, and only this machine may look."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import launched, opened
from command import call
from invented import Invented, invent

from evocluster.errors import ConfigError, RunDamaged
from evocluster.report.live import Live, Server


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Invented]:
    """A run that goes on."""
    run = Invented(tmp_path / "run")
    run.search(children=4)
    run.status("running")
    yield run
    run.table.close()


@pytest.fixture
def server(made: Invented) -> Iterator[Server]:
    """It, watched."""
    found = Server(Live(made.path), 0)
    thread = threading.Thread(target=found.serve_forever)
    thread.start()
    yield found
    found.shutdown()
    found.server_close()
    thread.join()


def get(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], str]:
    """Status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=20)
    connection.request(method, path, headers=headers)
    reply = connection.getresponse()
    body = reply.read().decode()
    connection.close()
    return reply.status, dict(reply.getheaders()), body


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def test_three_addresses(server: Server) -> None:
    status, headers, body = get(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "connect-src 'self'" in body
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    stamp = json.loads(get(server, "/stamp")[2])
    assert (stamp["status"], stamp["error"]) == ("running", None)
    assert f'data-watch="{stamp["stamp"]}"' in body
    assert json.loads(get(server, "/facts")[2])["run"]["status"] == "running"
    assert get(server, "/run.json")[0] == 404
    assert get(server, "/../run.json")[0] == 404
    assert get(server, "/", "POST")[0] == 501


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost.evil:1"])
@pytest.mark.parametrize("path", ["/", "/stamp", "/facts"])
def test_another_name_for_this_machine_is_refused(server: Server, host: str, path: str) -> None:
    status, _, body = get(server, path, Host=host)
    assert status == 403
    assert "invented" not in body


@pytest.mark.parametrize("host", ["localhost:1234", "127.0.0.1", "LOCALHOST", "[::1]:80"])
def test_its_own_names_are_answered(server: Server, host: str) -> None:
    assert get(server, "/stamp", Host=host)[0] == 200


def test_only_this_machine_is_listened_to(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_the_stamp_changes_when_the_run_goes_on(made: Invented, server: Server) -> None:
    get(server, "/")
    before = json.loads(get(server, "/stamp")[2])["stamp"]
    assert json.loads(get(server, "/stamp")[2])["stamp"] == before
    made.search(children=4, seeds=0)
    until(lambda: json.loads(get(server, "/stamp")[2])["stamp"] != before)
    assert len(json.loads(get(server, "/facts")[2])["genomes"]["id"]) == len(made.genomes)


def test_reading_rests_so_that_the_run_is_not_slowed(made: Invented) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0  # a reading takes a second or more
        return now[0]

    live = Live(made.path, clock)
    live.facts()
    seen = live.news()["stamp"]
    made.search(children=2, seeds=0)
    assert live.news()["stamp"] == seen
    now[0] += 100
    assert live.news()["stamp"] != seen
    live.facts()
    seen = live.news()["stamp"]
    made.status("finished")
    assert live.news()["stamp"] != seen, "the end is shown at once"


def test_a_folder_that_breaks_is_told(made: Invented, server: Server) -> None:
    get(server, "/")
    whole = (made.path / "genomes.jsonl").read_text()
    (made.path / "genomes.jsonl").write_text("broken\n")
    status, _, body = get(server, "/facts")
    assert status == 503
    assert "genomes.jsonl" in body
    (made.path / "genomes.jsonl").write_text(whole)
    assert get(server, "/facts")[0] == 200


@pytest.mark.slow
def test_the_page_renews_itself_and_keeps_the_place(made: Invented, server: Server) -> None:
    with launched() as browser, opened(browser, server.address) as seen:
        assert "live" in seen.text("#watching")
        seen.page.evaluate("document.querySelector('#genomes').scrollIntoView()")
        row = seen.page.locator(".genomes tbody tr").nth(2)
        row.click()
        chosen = seen.text("#inspector h3 code")
        seen.page.get_by_label("Search configurations").fill("e")
        place = "document.querySelector('#genomes').getBoundingClientRect().top"
        before, at = seen.text("#genomes .muted"), seen.page.evaluate(place)
        made.search(children=6, seeds=0)
        made.status("running")
        seen.page.wait_for_function("(old) => document.querySelector('#genomes .muted').innerText !== old", arg=before)
        seen.page.wait_for_timeout(150)
        assert seen.text("#inspector h3 code") == chosen
        assert seen.page.get_by_label("Search configurations").input_value() == "e"
        assert abs(seen.page.evaluate(place) - at) < 3
        made.finish(made.check(members=2))
        seen.page.wait_for_function("() => document.querySelector('#watching').innerText === 'the run is finished'")
        assert seen.text(".badge.status") == "finished"
        assert seen.page.locator(".badge.recommended").count() > 0
        assert not seen.errors
        assert {address.rpartition("/")[2] for address in seen.requests} == {"", "stamp", "facts"}


def test_the_command_serves_until_ctrl_c(tmp_path: Path) -> None:
    run = invent(tmp_path / "run")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    words = [sys.executable, "-m", "evocluster.cli.main", "watch", str(run), "--no-open"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as watching:
        assert watching.stdout
        assert watching.stderr
        address = watching.stdout.readline().split(" at ")[1].split()[0]
        assert watching.stdout.readline().strip() == "the run is finished"
        host, _, port = address.removeprefix("http://").rstrip("/").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("GET", "/")
        assert connection.getresponse().read().startswith(b"<!doctype html>")
        connection.close()
        watching.send_signal(signal.SIGINT)
        assert watching.wait(20) == 0
        assert watching.stderr.read() == ""


def test_a_run_that_really_goes_on(tmp_path: Path) -> None:
    """Facts are read beside the writer, again and again."""
    from small import small_config

    from evocluster import build

    plan = build.plan(small_config(tmp_path))
    seen: list[dict[str, Any]] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            if (tmp_path / "run" / "run.json").exists():
                seen.append(Live(tmp_path / "run").facts()[1])
            time.sleep(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        build.run(plan, tmp_path / "run")
    finally:
        done.set()
        watcher.join()
    seen.append(Live(tmp_path / "run").facts()[1])
    counts = [len(one["genomes"]["id"]) for one in seen]
    assert counts == sorted(counts)
    assert counts[-1] > 6
    assert seen[-1]["winner"]["recommended"]


def test_watch_without_a_run_or_a_port(tmp_path: Path, made: Invented, server: Server) -> None:
    with pytest.raises(RunDamaged, match="holds no run"):
        Live(tmp_path / "nowhere")
    taken = server.server_address[1]
    with pytest.raises(ConfigError, match=f"--port {taken}"):
        Server(Live(made.path), taken)
    outcome = call("watch", made.path, "--port", taken, "--no-open")
    assert outcome.code == 2
    assert f"--port {taken}" in outcome.err
    assert call("watch", tmp_path / "nowhere", "--no-open").code == 4
    assert call("watch", made.path, "--port", 99999, "--no-open").code == 2


def test_the_report_command(tmp_path: Path) -> None:
    run = invent(tmp_path / "run")
    outcome = call("report", run)
    assert (outcome.code, outcome.err) == (0, "")
    assert str(run / "report.html") in outcome.out
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    other = tmp_path / "other.html"
    assert call("report", run, "--out", other).code == 0
    assert other.read_bytes() == (run / "report.html").read_bytes()


def test_errors_of_the_report_command(tmp_path: Path) -> None:
    run = invent(tmp_path / "run")
    nowhere = call("report", tmp_path / "nowhere")
    assert nowhere.code == 4
    assert "holds no run" in nowhere.err
    missing = call("report", run, "--out", tmp_path / "no" / "such.html")
    assert missing.code == 2
    assert "there is no folder" in missing.err
    folder = call("report", run, "--out", tmp_path)
    assert folder.code == 2
    assert "is a folder" in folder.err
    (run / "genomes.jsonl").write_text("broken\n")
    assert call("report", run).code == 4
