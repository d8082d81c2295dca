"""What every Ledger keeps, whatever database it is in: subclass it and say where one is."""

from __future__ import annotations

import json
import operator
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import racing
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evocluster.errors import LedgerConflict, StoreError
from evocluster.records import FrozenDict, canonical
from evocluster.release.exchange import Exchange
from evocluster.store.ledger import Ledger
from evocluster.store.ledger_tables import COLUMNS, VERSION_TABLE, metadata

AUDIT = {"at": 5.0, "actor": "me", "action": "deploy", "why": {"score": 0.9}}
POINTER = {
    "name": "d",
    "snapshot": "s1",
    "state": {"stage": "", "arms": {}},
    "config": "x: 1",
    "secret": "k",
    "at": 1.0,
}


def exchange(request: str, at: float = 100.0, deployment: str = "d", **more: Any) -> dict[str, Any]:
    """One as it is recorded."""
    return Exchange(request_id=request, episode_id=f"e-{request}", deployment=deployment, at=at, **more).model_dump()


def feedback(id: str, **more: Any) -> dict[str, Any]:
    """One row of it."""
    return {"feedback_id": id, "deployment": "d", "metric": "solved", "value": True, **more}


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4)
NUMBER = st.none() | st.floats(allow_nan=False, allow_infinity=False)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
KEY = st.sampled_from(["a", "b", "c", "ä"])
SAID = st.fixed_dictionaries({}, optional={"metric": TEXT, "value": VALUE, "observed_at": NUMBER})
COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
WHERE = st.fixed_dictionaries(
    {},
    optional={
        "metric": TEXT | st.tuples(st.sampled_from(sorted(COMPARED)), TEXT),
        "observed_at": st.none() | st.tuples(st.sampled_from(sorted(COMPARED)), st.integers(-3, 3)),
        "feedback_id": st.tuples(st.just("in"), st.lists(KEY, max_size=3)),
        "value": st.none() | st.tuples(st.just("="), VALUE),
    },
)
ORDER = st.sampled_from(["", "metric", "-metric", "observed_at,-metric", "-observed_at", "-feedback_id"])
STEP = st.one_of(
    st.tuples(st.just("put"), KEY, SAID),
    st.tuples(st.just("add"), KEY, SAID),
    st.tuples(st.just("patch"), KEY, SAID),
    st.tuples(st.just("delete"), WHERE),
    st.tuples(st.just("find"), WHERE, ORDER, st.none() | st.integers(0, 3), st.integers(0, 2)),
)
BLANK = {
    **dict.fromkeys(("request_id", "episode_id", "source", "supersedes", "state", "metric", "deployment"), ""),
    **dict.fromkeys(("value", "observed_at", "received_at")),
}


def holds(row: dict[str, Any], where: dict[str, Any]) -> bool:
    """What `find` takes a row for, said in Python."""
    for name, wanted in where.items():
        relation, value = wanted if isinstance(wanted, tuple) else ("=", wanted)
        if relation == "in":
            if row[name] not in value:
                return False
        elif name == "value":
            if (row[name] is None) != (value is None) or canonical(row[name]) != canonical(value):
                return False
        elif row[name] is None or value is None:
            if not (row[name] is value if relation == "=" else relation == "!=" and row[name] is not value):
                return False
        elif not COMPARED[relation](row[name], value):
            return False
    return True


def ordered(rows: list[dict[str, Any]], order: str) -> list[dict[str, Any]]:
    """As `find` orders them."""
    terms = [term for term in order.split(",") if term]
    last_down = bool(terms) and terms[-1].startswith("-")
    terms += [] if any("feedback_id" in term for term in terms) else ["-feedback_id" if last_down else "feedback_id"]
    for term in reversed(terms):
        name = term.removeprefix("-")
        rows = sorted(
            rows,
            key=lambda row, name=name: (row[name] is not None, row[name] if row[name] is not None else 0),  # type: ignore[misc]
            reverse=term.startswith("-"),
        )
    return rows


class LedgerContract:
    """Override `url`: where a new, empty ledger is."""

    @pytest.fixture
    def url(self) -> str:
        raise AssertionError("a contract test class says where its ledger is")

    @pytest.fixture
    def ledger(self, url: str) -> Iterator[Ledger]:
        opened = Ledger.open(url)
        yield opened
        opened.close()

    def test_the_tables_are_what_the_migrations_make(self, ledger: Ledger) -> None:
        with ledger._reading.connect() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
            assert compare_metadata(context, metadata()) == []

    def test_an_exchange_comes_back_as_it_was(self, ledger: Ledger) -> None:
        told = exchange("r", flags=("pii",), eligible_arms=("a", "b"), signals=FrozenDict({"n": [1, {"ü": None}]}))
        ledger.add("exchanges", [told, exchange("q", confidence=0.5, is_shadow=True, cost_usd=1e-7)])
        back = ledger.first("exchanges", {"request_id": "r"})
        assert back is not None
        assert list(back) == list(Exchange.model_fields)
        assert back["flags"] == ["pii"]
        assert Exchange.model_validate(back) == Exchange.model_validate(told)
        assert ledger.count("exchanges", {"is_shadow": True, "confidence": (">", 0.4)}) == 1

    def test_what_a_row_leaves_out_is_blank(self, ledger: Ledger) -> None:
        ledger.add("exchanges", [{"request_id": "r", "deployment": "d", "at": 1}])
        back = ledger.first("exchanges")
        assert Exchange.model_validate(back) == Exchange(request_id="r", episode_id="", deployment="d", at=1.0)
        for table, columns in COLUMNS.items():
            if table in ("deployments", "exchanges"):
                continue
            key = {
                column.name: 1 if column.kind in ("whole", "at") else "k"
                for column in columns.values()
                if column.required
            }
            ledger.add(table, [key])
            assert ledger.count(table, key) == 1
            assert ledger.find(table)[0].keys() == columns.keys()

    def test_a_row_that_is_there_stops_the_whole_batch(self, ledger: Ledger) -> None:
        ledger.add("feedback", [feedback("a")])
        with pytest.raises(StoreError, match=r"feedback \{'feedback_id': 'a'\} exists"):
            ledger.add("feedback", [feedback("b"), feedback("a", value=1)])
        with pytest.raises(StoreError, match=r"'c'\} exists"):
            ledger.add("feedback", [feedback("c"), feedback("c")])
        assert [row["feedback_id"] for row in ledger.find("feedback")] == ["a"]
        ledger.add("feedback", [feedback("b"), feedback("a", value=1)], again=True)
        assert [(row["feedback_id"], row["value"]) for row in ledger.find("feedback")] == [("a", True), ("b", True)]

    def test_texts_that_no_database_takes_are_kept_readable(self, ledger: Ledger) -> None:
        ledger.put("bodies", {"request_id": "r\0", "at": 1.0, "input": {"q": "a\0b\ud800"}, "output": "x\0y\udfffü"})
        row = ledger.first("bodies", {"request_id": "r\0"})
        assert row is not None
        assert (row["request_id"], row["output"]) == ("r\ufffd", "x\ufffdy?ü")
        assert row["input"] == {"q": "a\0b?"}

    @pytest.mark.parametrize(
        ("call", "said"),
        [
            (lambda ledger: ledger.find("users"), "no table 'users'; allowed: layers"),
            (lambda ledger: ledger.find("layers", {"hsh": "x"}), r"\['hsh'\] are not in 'layers': it has hash"),
            (lambda ledger: ledger.find("layers", order="-when"), r"\['when'\] are not in"),
            (lambda ledger: ledger.find("layers", {"at": ("~", 1.0)}), "with one of =, !=, <"),
            (lambda ledger: ledger.find("layers", {"body": ("<", {})}), "JSON has no order"),
            (lambda ledger: ledger.find("layers", {"hash": ("in", "abc")}), "give a list"),
            (lambda ledger: ledger.find("layers", {"hash": ["a"]}), "cannot hold .*takes a text"),
            (lambda ledger: ledger.find("layers", {"hash": ("in", ["a"] * 10_001)}), "at most 10000"),
            (lambda ledger: ledger.find("layers", limit=-1), "below 0"),
            (lambda ledger: ledger.add("layers", [{"hash": "a", "at": 1, "x": 1}]), r"\['x'\] are not in"),
            (lambda ledger: ledger.add("layers", [{"hash": "a"}]), "lacks 'at'"),
            (lambda ledger: ledger.put("layers", {"hash": "a", "at": float("nan")}), "a finite number"),
            (lambda ledger: ledger.put("layers", {"hash": "a", "at": True}), "a finite number"),
            (lambda ledger: ledger.put("layers", {"hash": "a", "at": 1, "body": [float("nan")]}), "a JSON value"),
            (lambda ledger: ledger.put("layers", {"hash": "a", "at": 1, "body": {1, 2}}), "a JSON value"),
            (lambda ledger: ledger.put("layers", {"hash": None, "at": 1}), "takes a text"),
            (lambda ledger: ledger.put("layers", {"hash": "a", "at": 1, "erased": 1}), "True or False"),
            (lambda ledger: ledger.put("replicas", {"id": "a", "epoch": 2**63}), "64 bits"),
            (lambda ledger: ledger.put("replicas", {"id": "a", "epoch": 1.0}), "a whole number"),
            (lambda ledger: ledger.patch("bandit", {"deployment": "d"}, at=1.0), "give deployment, experiment, arm"),
            (lambda ledger: ledger.patch("layers", {"hash": "a"}, hash="b"), "are of the key"),
            (lambda ledger: ledger.add("deployments", [POINTER]), "deploy and move alone"),
            (lambda ledger: ledger.put("deployments", POINTER), "deploy and move alone"),
            (lambda ledger: ledger.patch("deployments", {"name": "d"}, epoch=3), "deploy and move alone"),
            (lambda ledger: ledger.delete("deployments", {}), "deploy and move alone"),
            (lambda ledger: ledger.delete("audit", {}), "only ever added to"),
            (lambda ledger: ledger.patch("audit", {"id": 1}, why="x"), "only ever added to"),
        ],
    )
    def test_what_it_does_not_know_is_refused_by_name(
        self, ledger: Ledger, call: Callable[[Ledger], Any], said: str
    ) -> None:
        with pytest.raises(StoreError, match=said):
            call(ledger)
        assert ledger.count("layers") == 0

    @settings(
        max_examples=40,
        suppress_health_check=[
            *(HealthCheck.function_scoped_fixture, HealthCheck.too_slow),  # every example begins with no row
            HealthCheck.differing_executors,  # both back ends keep the same law
        ],
    )
    @given(steps=st.lists(STEP, max_size=12))
    def test_it_is_a_dict_of_rows(self, ledger: Ledger, steps: list[Any]) -> None:
        ledger.delete("feedback", {})
        model: dict[str, dict[str, Any]] = {}
        for step in steps:
            self._step(ledger, model, step)
        assert ledger.find("feedback") == [model[key] for key in sorted(model)]

    def _step(self, ledger: Ledger, model: dict[str, dict[str, Any]], step: Any) -> None:
        match step:
            case ("put", key, said):
                ledger.put("feedback", {"feedback_id": key, **said})
                model[key] = {**BLANK, **said, "feedback_id": key}
            case ("add", key, said) if key in model:
                with pytest.raises(StoreError, match="exists"):
                    ledger.add("feedback", [{"feedback_id": key, **said}])
            case ("add", key, said):
                ledger.add("feedback", [{"feedback_id": key, **said}])
                model[key] = {**BLANK, **said, "feedback_id": key}
            case ("patch", key, said):
                assert ledger.patch("feedback", {"feedback_id": key}, **said) == (key in model)
                if key in model:
                    model[key].update(said)
            case ("delete", where):
                gone = [key for key, row in model.items() if holds(row, where)]
                assert ledger.delete("feedback", where) == len(gone)
                for key in gone:
                    del model[key]
            case ("find", where, order, limit, offset):
                found = ordered([row for row in model.values() if holds(row, where)], order)
                assert ledger.count("feedback", where) == len(found)
                end = None if limit is None else offset + limit
                assert ledger.find("feedback", where, order=order, limit=limit, offset=offset) == found[offset:end]

    def test_deploy_and_move_write_the_audit(self, ledger: Ledger) -> None:
        ledger.deploy(POINTER, AUDIT)
        with pytest.raises(LedgerConflict, match="'d' is there already"):
            ledger.deploy(POINTER, AUDIT)
        assert ledger.move("d", 1, audit={**AUDIT, "action": "promote"}, snapshot="s2", state={"arms": ("s2",)}) == 2
        assert ledger.move("d", 2, audit={**AUDIT, "action": "arms"}, state={}) == 3
        row = ledger.first("deployments", {"name": "d"})
        assert row is not None
        assert (row["snapshot"], row["epoch"], row["state"], row["config"]) == ("s2", 3, {}, "x: 1")
        told = [
            (each["action"], each["from_snapshot"], each["to_snapshot"], each["epoch"])
            for each in ledger.find("audit", {"deployment": "d"}, order="epoch")
        ]
        assert told == [("deploy", "", "s1", 1), ("promote", "s1", "s2", 2), ("arms", "s2", "s2", 3)]
        assert ledger.patch("deployments", {"name": "d"}, facts={"a": 1})

    def test_also_is_written_with_the_move_or_not_at_all(self, ledger: Ledger) -> None:
        ledger.deploy(POINTER, AUDIT)
        ledger.add("experiments", [{"id": "e", "deployment": "d", "candidate": "s2", "stage": "live"}])
        also: list[tuple[str, dict[str, Any]]] = [
            ("experiments", {"id": "e", "stage": "done", "outcome": "rolled_back"}),
            ("incidents", {"id": "i", "deployment": "d", "at": 9.0, "evidence": {"n": 20}}),
        ]
        with pytest.raises(LedgerConflict, match=r"not at epoch 7: it is at 1"):
            ledger.move("d", 7, audit=AUDIT, snapshot="s0", also=also)
        with pytest.raises(LedgerConflict, match="is not there"):
            ledger.move("nobody", 1, audit=AUDIT, also=also)
        with pytest.raises(StoreError, match="lacks 'at'"):
            ledger.move("d", 1, audit=AUDIT, snapshot="s0", also=[*also, ("incidents", {"id": "j"})])
        with pytest.raises(StoreError, match="give deployment, hash"):
            ledger.move("d", 1, audit=AUDIT, also=[*also, ("barred", {"hash": "j"})])
        with pytest.raises(StoreError, match="deploy and move alone"):
            ledger.move("d", 1, audit=AUDIT, also=[("deployments", {"name": "d", "epoch": 9})])
        assert (ledger.count("incidents"), ledger.count("audit")) == (0, 1)
        assert ledger.count("deployments", {"snapshot": "s1", "epoch": 1}) == 1
        assert ledger.move("d", 1, audit=AUDIT, snapshot="s0", also=also) == 2
        row = ledger.first("experiments", {"id": "e"})
        assert row is not None
        assert (row["stage"], row["outcome"], row["candidate"]) == ("done", "rolled_back", "s2")
        assert ledger.count("incidents", {"id": "i"}) == 1

    def test_of_all_who_race_one_wins_and_nothing_of_the_others_is_written(self, url: str, ledger: Ledger) -> None:
        ledger.deploy(POINTER, {**AUDIT, "actor": "p"})
        told = racing.race(url)
        assert len(told) == 2 * racing.THREADS
        winners = {epoch: each["name"] for each in told for epoch in each["epochs"]}
        assert sorted(epoch for each in told for epoch in each["epochs"]) == list(range(1, racing.EPOCHS + 1))
        assert sum(each["lost"] for each in told) == (len(told) - 1) * racing.EPOCHS
        audit = [(row["epoch"], row["actor"], row["to_snapshot"]) for row in ledger.find("audit", order="epoch")]
        moves = [(epoch + 1, winners[epoch], f"{winners[epoch]}-{epoch}") for epoch in range(1, racing.EPOCHS + 1)]
        assert audit == [(1, "p", "s1"), *moves]
        assert [row["id"] for row in ledger.find("incidents")] == sorted(f"{who}-{at}" for at, who in winners.items())
        assert sorted(slot for each in told for slot in each["slots"]) == list(range(racing.SLOTS))
        owners = {row["scheduled_for"]: row["owner"] for row in ledger.find("schedules")}
        assert all(owners[slot] == each["name"] for each in told for slot in each["slots"])

    def test_a_claim_is_taken_over_when_its_lease_ran_out_and_never_once_it_is_finished(self, ledger: Ledger) -> None:
        assert ledger.claim("d", "evolve", 100.0, "a", 60.0, 1000.0)
        assert not ledger.claim("d", "evolve", 100.0, "b", 60.0, 1059.0)
        assert ledger.claim("d", "evolve", 200.0, "b", 60.0, 1059.0)
        assert ledger.claim("d", "evolve", 100.0, "b", 60.0, 1060.0)
        assert not ledger.claim("d", "evolve", 100.0, "a", 60.0, 1061.0)
        with pytest.raises(LedgerConflict, match=r"'a' cannot finish 'evolve'.*it is 'b''s"):
            ledger.finish("d", "evolve", 100.0, "a", "done late")
        with pytest.raises(LedgerConflict, match="nobody claimed it"):
            ledger.finish("d", "analyze", 100.0, "a")
        ledger.finish("d", "evolve", 100.0, "b", "2 candidates", now=1070.0)
        assert not ledger.claim("d", "evolve", 100.0, "c", 60.0, 99_999.0)
        row = ledger.first("schedules", {"scheduled_for": 100.0})
        assert row is not None
        assert (row["owner"], row["state"], row["done_at"], row["note"]) == ("b", "done", 1070.0, "2 candidates")

    def test_processes_that_open_it_at_once_all_succeed(self, url: str) -> None:
        program = "import sys\nfrom evocluster.store.ledger import Ledger\nLedger.open(sys.argv[1]).close()"
        running = [
            subprocess.Popen([sys.executable, "-c", program, url], stderr=subprocess.PIPE, text=True) for _ in range(3)
        ]
        with ThreadPoolExecutor(4) as threads:
            for ledger in threads.map(Ledger.open, [url] * 4):
                ledger.close()
        for each in running:
            _, err = each.communicate(timeout=60)
            assert each.returncode == 0, err

    def test_of_a_newer_version_it_is_refused(self, url: str) -> None:
        ledger = Ledger.open(url)
        with ledger._writing.begin() as connection:
            connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        ledger.close()
        with pytest.raises(StoreError, match=r"newer version .* revision '9999', this version knows up to .*upgrade"):
            Ledger.open(url)

    def test_what_an_erased_user_says_later_is_dropped(self, ledger: Ledger) -> None:
        ledger.put("tombstones", {"deployment": "d", "user": "u", "at": 1.0})
        rows = [exchange("r", user="u", error="no", signals={"x": 1}), exchange("s", user="v"), exchange("t", user="")]
        ledger.add("exchanges", [*rows, exchange("o", deployment="other", user="u")])
        bodies = [{"request_id": row["request_id"], "deployment": "d", "user": row["user"], "at": 1.0} for row in rows]
        ledger.add("bodies", bodies)
        ledger.put("bodies", bodies[0])
        assert [row["request_id"] for row in ledger.find("bodies")] == ["s", "t"]
        told = {row["request_id"]: (row["user"], row["error"], row["signals"]) for row in ledger.find("exchanges")}
        assert told == {"r": ("", "", {}), "s": ("v", "", {}), "t": ("", "", {}), "o": ("u", "", {})}

    def test_many_threads_write_at_once(self, ledger: Ledger) -> None:
        def write(number: int) -> None:
            ledger.add("exchanges", [exchange(f"{number}-{each}", at=float(each)) for each in range(20)])
            ledger.put(
                "buckets", {"deployment": "d", "snapshot": "s", "replica": f"{number}", "minute": 1, "total": 20}
            )

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(write, range(32)))
        assert ledger.count("exchanges") == 640
        assert sum(row["total"] for row in ledger.find("buckets")) == 640
        page = ledger.find("exchanges", {"deployment": "d"}, order="-at", limit=3, offset=31)
        assert [row["at"] for row in page] == [19.0, 18.0, 18.0]

    def test_once_closed_it_says_so(self, ledger: Ledger) -> None:
        ledger.close()
        ledger.close()
        with pytest.raises(StoreError, match="is closed"):
            ledger.find("layers")

    def test_json_is_canonical(self, ledger: Ledger) -> None:
        ledger.put("layers", {"hash": "h", "at": 1, "body": FrozenDict({"b": (1, 2.5), "a": "ü"})})
        (line,) = ledger.lines("layers")
        assert line[2] == '{"a":"ü","b":[1,2.5]}'
        assert json.loads(line[2]) == {"a": "ü", "b": [1, 2.5]}
