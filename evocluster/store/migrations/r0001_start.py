"""The ledger as it began."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TABLES = {
    "layers": "*hash kind body:? at:float erased:flag",
    "snapshots": "*id prompt memory strategy parent origin:? at:float",
    "deployments": "*name snapshot epoch:whole state:? config facts:? secret at:float",
    "versions": "*deployment *version snapshot at:float layer why",
    "variants": "*deployment *genome generation:whole parent operator fitness:? run at:float",
    "audit": "*id:auto deployment at:float actor action from_snapshot to_snapshot epoch:whole why:?",
    "experiments": (
        "*id deployment candidate baseline layer trigger:? stage stage_at:float? started_at:float? "
        "ended_at:float? outcome why shadow:? judge_score:float? active_s:float work:?"
    ),
    "incidents": "*id deployment at:float kind snapshot experiment evidence:?",
    "barred": "*deployment *hash text snapshot at:float incident",
    "findings": "*id deployment at:float kind severity layer intent model title evidence:? recommendation state",
    "schedules": "*deployment *job *scheduled_for:float owner lease_until:float? state done_at:float? note",
    "feedback": (
        "*feedback_id deployment request_id episode_id metric value:? source observed_at:float? "
        "received_at:float? supersedes state"
    ),
    "bandit": "*deployment *experiment *arm state:? at:float",
    "exchanges": (
        "*request_id episode_id deployment at:float tenant intent model arm snapshot_id epoch:whole "
        "experiment propensity:float eligible_arms:? is_shadow:flag pair_id prompt_tokens:whole "
        "completion_tokens:whole calls:whole cost_usd:float latency_ms:float ttft_ms:float finish_reason "
        "error_class error confidence:float? escalated:flag repairs:whole schema_ok:flag flags:? notes:? "
        "signals:? redaction_version user"
    ),
    "bodies": "*request_id deployment user input:? output at:float",
    "buckets": (
        "*deployment *snapshot *replica *minute:whole total:whole hard:whole slow:whole judged:whole failed:whole"
    ),
    "replicas": "*id deployment epoch:whole seen_at:float? url",
    "keys": "*hash name tenant at:float revoked_at:float?",
    "pairs": (
        "*pair_id deployment experiment at:float primary_id shadow_id intent model baseline:? candidate:? "
        "judge state why"
    ),
    "tombstones": "*deployment *user at:float",
    "journal_seen": "*name at:float",
}
"""Table -> its columns: `*` of the key, then the type (text when left out), then `?` where there may be none."""
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


def _column(said: str) -> sa.Column[object]:
    name, _, kind = said.lstrip("*").partition(":")
    types: dict[str, Any] = {
        "": sa.Text().with_variant(sa.Text(collation="C"), "postgresql"),
        "whole": sa.BigInteger(),
        "flag": sa.Boolean(create_constraint=False),
        "float": sa.Double(),
        "auto": sa.BigInteger().with_variant(sa.Integer, "sqlite"),
    }
    return sa.Column(
        name,
        types[kind.rstrip("?")],
        primary_key=said.startswith("*"),
        nullable=kind.endswith("?"),
        autoincrement=kind == "auto",
    )


def upgrade() -> None:
    """Make the tables and their indexes."""
    from alembic import op

    for name, said in _TABLES.items():
        op.create_table(name, *map(_column, said.split()), sqlite_autoincrement=":auto" in said)
        for columns in _INDEXES.get(name, ()):
            op.create_index(f"{name}_by_{columns.replace(' ', '_')}", name, columns.split())
