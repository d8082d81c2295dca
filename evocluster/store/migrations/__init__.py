"""How a ledger of an earlier version becomes one of this version: revisions of alembic, one a file, for ever."""
