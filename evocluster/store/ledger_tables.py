"""The tables of the ledger: a key, its columns, and what each of them holds.

    text    a string; left out it is ""             at      a time in seconds since 1970; it must be given
    whole   an integer of 64 bits; 0                real    a finite float or None; None
    flag    True or False; False                    amount  a finite float; 0.0
    yes     a flag that is True when left out       share   an amount that is 1.0 when left out
    json    any JSON value; None                    list, map   the same; [] and {} when left out
    auto    counted by the database

A star marks the columns of the key, which must be given. What changes here needs a migration (store/migrations).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

REVISION = "0001"
"""What the migrations lead to; a ledger says which one it is of in the table `evocluster_revision`."""
VERSION_TABLE = "evocluster_revision"

_COLUMNS = {
    "layers": "*hash kind body:json at:at erased:flag",
    "snapshots": "*id prompt memory strategy parent origin:map at:at",
    "deployments": "*name snapshot epoch:whole state:map config facts:map secret at:at",
    "versions": "*deployment *version snapshot at:at layer why",
    "variants": "*deployment *genome generation:whole parent operator fitness:map run at:at",
    "audit": "*id:auto deployment at:at actor action from_snapshot to_snapshot epoch:whole why:json",
    "experiments": "*id deployment candidate baseline layer trigger:map stage stage_at:real started_at:real "
    "ended_at:real outcome why shadow:map judge_score:real active_s:amount work:map",
    "incidents": "*id deployment at:at kind snapshot experiment evidence:map",
    "barred": "*deployment *hash text snapshot at:at incident",
    "findings": "*id deployment at:at kind severity layer intent model title evidence:map recommendation state",
    "schedules": "*deployment *job *scheduled_for:at owner lease_until:real state done_at:real note",
    "feedback": "*feedback_id deployment request_id episode_id metric value:json source observed_at:real "
    "received_at:real supersedes state",
    "bandit": "*deployment *experiment *arm state:map at:at",
    "exchanges": "*request_id episode_id deployment at:at tenant intent model arm snapshot_id epoch:whole experiment "
    "propensity:share eligible_arms:list is_shadow:flag pair_id prompt_tokens:whole completion_tokens:whole "
    "calls:whole cost_usd:amount latency_ms:amount ttft_ms:amount finish_reason error_class error confidence:real "
    "escalated:flag repairs:whole schema_ok:yes flags:list notes:list signals:map redaction_version user",
    "bodies": "*request_id deployment user input:json output at:at",
    "buckets": "*deployment *snapshot *replica *minute:whole total:whole hard:whole slow:whole judged:whole "
    "failed:whole",
    "replicas": "*id deployment epoch:whole seen_at:real url",
    "keys": "*hash name tenant at:at revoked_at:real",
    "pairs": "*pair_id deployment experiment at:at primary_id shadow_id intent model baseline:map candidate:map judge "
    "state why",
    "tombstones": "*deployment *user at:at",
    "journal_seen": "*name at:at",
}
_INDEXES = {
    "audit": ("deployment epoch",),
    "experiments": ("deployment stage_at",),
    "incidents": ("deployment at",),
    "findings": ("deployment at",),
    "feedback": ("deployment request_id", "deployment episode_id"),
    "exchanges": ("deployment at request_id", "pair_id", "episode_id"),
    "bodies": ("deployment at request_id",),
    "replicas": ("deployment",),
    "pairs": ("deployment experiment at", "primary_id", "shadow_id"),
}
JSON: dict[str, Any] = {"json": None, "list": [], "map": {}}
_DEFAULTS: dict[str, Any] = {"text": "", "whole": 0, "flag": False, "yes": True, "amount": 0.0, "share": 1.0, **JSON}
NULLABLE = {"real", *JSON}

# Text in the order of its bytes wherever the server stands; JSON as its canonical text, which JSONB would not keep.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_COUNTED = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_TYPES: dict[str, Any] = {
    **dict.fromkeys(("text", *JSON), _TEXT),
    **dict.fromkeys(("at", "real", "amount", "share"), sa.Double()),
    **dict.fromkeys(("flag", "yes"), sa.Boolean(create_constraint=False)),
    "whole": sa.BigInteger(),
    "auto": _COUNTED,
}


class Column(NamedTuple):
    """What a column holds."""

    name: str
    kind: str
    key: bool

    @property
    def required(self) -> bool:
        """A row that is written must say it."""
        return self.kind != "auto" and (self.key or self.kind == "at")

    @property
    def default(self) -> Any:
        """What it holds where a row does not say."""
        return _DEFAULTS.get(self.kind)


def _column(said: str) -> Column:
    name, _, kind = said.lstrip("*").partition(":")
    return Column(name, kind or "text", said.startswith("*"))


COLUMNS: dict[str, dict[str, Column]] = {
    table: {column.name: column for column in map(_column, said.split())} for table, said in _COLUMNS.items()
}
"""Table -> column name -> column, in order."""


def metadata() -> sa.MetaData:
    """The tables as SQLAlchemy has them."""
    found = sa.MetaData()
    for name, columns in COLUMNS.items():
        table = sa.Table(
            name,
            found,
            *(
                sa.Column(
                    column.name,
                    _TYPES[column.kind],
                    primary_key=column.key,
                    nullable=column.kind in NULLABLE,
                    autoincrement=column.kind == "auto",
                )
                for column in columns.values()
            ),
            sqlite_autoincrement=any(column.kind == "auto" for column in columns.values()),
        )
        for said in _INDEXES.get(name, ()):
            parts = said.split()
            sa.Index(f"{name}_by_{'_'.join(parts)}", *(table.c[part] for part in parts))
    return found


TABLES: dict[str, sa.Table] = dict(metadata().tables)
"""Table name -> table."""
