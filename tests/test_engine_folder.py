"""The run folder: what is appended comes back, damage is refused, two writers are kept apart."""

from __future__ import annotations

import fcntl
import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from small import edited

from evocluster.engine.folder import COLUMNS, Folder, recipe, rows
from evocluster.errors import RunDamaged, RunExists, RunHeld
from evocluster.records import Evaluation, Genome, Item, Proposal, Score, Trial, Usage
from evocluster.store import lease


def trial(number: int, items: int = 2, error: str | None = None) -> Trial:
    """A trial with everything set that a row can carry."""
    genome = Genome(genes={"rubric": f"rubric {number} ü\u2028\u0085", "demos": ["a", "b"], "temperature": 0.5})
    proposal = Proposal(number=number, operator="mutate", parents=(genome.replace(cot=True),), generation=3, seed=9)
    evaluations = tuple(
        Evaluation(
            item=Item(split="train", example=f"e{index}", twin=index, replicate=1),
            output="out\nput </script>",
            scores={"label": Score(value=0.5, reason="half")},
            quality=0.5,
            validator=0.25,
            schema_ok=index == 0,
            usage=Usage(
                calls=2,
                cached=1,
                prompt_tokens=7,
                completion_tokens=3,
                usd=1e-5,
                paid_usd=5e-6,
                seconds=0.1234567890123,
            ),
            repairs=1,
            flags=("pii",),
            error="scorer label: ValueError: no" if index else None,
        )
        for index in range(items)
    )
    usage = Usage(calls=1, prompt_tokens=5, usd=2e-6, paid_usd=2e-6, seconds=0.5)
    return Trial(
        proposal=proposal,
        genome=None if error else genome,
        evaluations=() if error else evaluations,
        usage=usage,
        error=error,
    )


def crash(folder: Folder) -> None:
    """Forget the folder without closing it, as a killed process does."""
    folder._table.leave()
    folder._held.close()


def test_trials_come_back_as_they_were(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    made = [trial(0), trial(1, error="model: Overloaded: busy"), trial(2, items=0), trial(3)]
    for one in made:
        folder.append(one)
    folder.close()
    again = Folder.open(tmp_path / "run")
    stored, genomes = [], []
    for back in again.replay():
        stored.append(back)
        genomes.append(again.genome(back.genome_id) if back.genome_id else None)
    again.close()
    assert [one.number for one in stored] == [0, 1, 2, 3]
    for one, back in zip(made, stored, strict=True):
        assert back.recipe == recipe(one.proposal)
        assert tuple(back.evaluations) == one.evaluations
        assert back.usage == one.usage
        assert back.error == one.error
        assert back.genome_id == (one.genome.id if one.genome else None)
    assert genomes == [one.genome for one in made]


def test_a_trial_takes_what_its_parts_take_to_the_last_bit() -> None:
    one = trial(0, items=3)
    parts = [used for each in one.evaluations for used in (each.usage, each.judging)]
    assert one.total == sum(parts, one.usage)


def test_pandas_reads_it_without_us(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    folder.append(trial(0))
    folder.close()
    frame = pandas.read_parquet(tmp_path / "run" / "trials")
    assert list(frame.columns) == list(COLUMNS)
    evaluations = frame[frame.kind == "evaluation"]
    assert len(evaluations) == 2
    assert evaluations.latency_ms.iloc[0] == pytest.approx(123.4567890123)
    genomes = [json.loads(line) for line in (tmp_path / "run" / "genomes.jsonl").read_text().splitlines()]
    assert set(evaluations.genome_id) == {genomes[0]["id"]}


def test_spend_adds_up_over_the_table(tmp_path: Path) -> None:
    one = trial(0, items=3)
    assert sum(row["paid_usd"] for row in rows(one)) == pytest.approx(one.total.paid_usd)
    assert sum(row["calls"] for row in rows(one)) == one.total.calls


def test_a_folder_that_exists_is_refused_with_the_way_on(tmp_path: Path) -> None:
    Folder.create(tmp_path / "run", "name: x\n").close()
    with pytest.raises(RunExists, match="evocluster resume"):
        Folder.create(tmp_path / "run", "name: x\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("keep me")
    with pytest.raises(RunExists, match="--out"):
        Folder.create(tmp_path / "other", "name: x\n")
    with pytest.raises(RunDamaged, match="no run"):
        Folder.open(tmp_path / "nowhere")


def test_a_start_that_died_before_its_config_can_be_made_again(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text("4711 on a machine\n")
    (tmp_path / "run" / ".config.yaml.4711.tmp").write_text("na")
    Folder.create(tmp_path / "run", "name: x\n").close()
    assert (tmp_path / "run" / "config.yaml").read_text() == "name: x\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".env").write_text("")
    with pytest.raises(RunExists, match="not an empty folder"):
        Folder.create(tmp_path / "other", "")


def test_a_second_writer_is_kept_out(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    with pytest.raises(RunHeld, match="in use"):
        Folder.open(tmp_path / "run")
    folder.close()
    Folder.open(tmp_path / "run").close()


def test_a_torn_genome_line_is_dropped_and_a_changed_one_refused(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    folder.append(trial(0))
    crash(folder)
    path = tmp_path / "run" / "genomes.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"id": "torn", "gen')
    crash(Folder.open(tmp_path / "run"))
    assert path.read_text() == whole
    path.write_text(whole.replace("rubric 0", "rubric X"))
    with pytest.raises(RunDamaged, match=r"genomes.jsonl:1: not a genome: its digest under 'sha256' does not fit"):
        Folder.open(tmp_path / "run")
    (tmp_path / "run" / "SHA256SUMS").unlink()  # as of a version without digests
    line = json.loads(whole)
    del line["sha256"]
    path.write_text(json.dumps({**line, "id": "other"}) + "\n")
    with pytest.raises(RunDamaged, match=r"genomes.jsonl:1: genome 'other' does not match"):
        Folder.open(tmp_path / "run")


def test_sha256sum_of_coreutils_checks_a_closed_folder(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    folder.append(trial(0))
    folder.keep_examples({"train": []})
    folder.write("run.json", {"status": "finished"})
    folder.write("front.json", {"members": []})
    folder.close()
    command = ["sha256sum", "--strict", "-c", "SHA256SUMS"]
    done = subprocess.run(command, cwd=tmp_path / "run", capture_output=True, text=True, check=True)
    names = ["config.yaml", "examples.jsonl", "front.json", "genomes.jsonl", "run.json", "trials/part-000001.parquet"]
    assert done.stdout.splitlines() == [f"{name}: OK" for name in names]
    Folder.check(tmp_path / "run")
    (tmp_path / "run" / "front.json").write_text("{}")
    with pytest.raises(RunDamaged, match=r"front\.json' is not as it was written: its sha256 is .* SHA256SUMS says"):
        Folder.check(tmp_path / "run")


def test_a_folder_without_digests_gets_them_when_it_is_opened(tmp_path: Path) -> None:
    folder = Folder.create(tmp_path / "run", "name: x\n")
    folder.append_many([trial(0), trial(1)])
    folder.write("run.json", {"status": "running"})
    crash(folder)
    (tmp_path / "run" / "trials" / "tail-000001.receipts").unlink()
    genomes = tmp_path / "run" / "genomes.jsonl"
    lines = [
        {key: value for key, value in json.loads(line).items() if key != "sha256"}
        for line in genomes.read_text().splitlines()
    ]
    genomes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    edited(tmp_path / "run")
    again = Folder.open(tmp_path / "run")
    assert [stored.number for stored in again.replay()] == [0, 1]
    assert again.read("run.json") == {"status": "running"}
    crash(again)
    assert (tmp_path / "run" / "trials" / "tail-000001.receipts").exists()
    other = genomes.read_bytes().replace(b"rubric 1", b"rubric 2")
    genomes.write_bytes(other)
    with pytest.raises(RunDamaged, match=r"genomes.jsonl:2: not a genome"):
        Folder.open(tmp_path / "run")


def test_a_link_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for aim in ("empty", "nowhere"):
        (tmp_path / "run").symlink_to(tmp_path / aim)
        with pytest.raises(RunExists, match="a link is none"):
            Folder.check_new(tmp_path / "run")
        (tmp_path / "run").unlink()
    Folder.check_new(tmp_path / "empty")


def test_a_writer_on_another_machine_that_was_paused_is_fenced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)  # a shared file system on which it means nothing
    monkeypatch.setattr(lease, "LEASE_S", 0.3)
    paused = Folder.create(tmp_path / "run", "name: x\n")
    paused.append(trial(0))
    paused._lease._keep = lambda: None  # type: ignore[method-assign]
    paused._lease._over.set()
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        second = Folder.open(tmp_path / "run")
    paused._lease._over.clear()
    second.append(trial(1))
    late = [row for row in rows(trial(666))]
    # It was stopped between its check and its write: what it writes lands in a file that nobody reads.
    paused._table._guard = lambda: None
    paused._table.append(late)
    attempts: list[Callable[[], None]] = [
        *(lambda: paused.append(trial(2)), lambda: paused.write("run.json", {})),
        *(paused._lease.check, paused.close),
    ]
    for attempt in attempts:
        with pytest.raises(RunHeld, match="on elsewhere, after this process gave no sign of life"):
            attempt()
    assert [stored.number for stored in second.replay()] == [0, 1]
    second.close()
    last = Folder.open(tmp_path / "run")
    assert [stored.number for stored in last.replay()] == [0, 1]
    last.close()
