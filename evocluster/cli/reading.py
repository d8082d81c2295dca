"""The run that a verb reads: a folder, or a copy of one on object storage."""

from __future__ import annotations

from evocluster.report.found import Found


def found(folder: str) -> Found:
    """Raises: errors.RunDamaged when it holds no readable run; errors.StoreError, errors.ConfigError."""
    if "://" not in folder:
        return Found(folder)
    from evocluster import address  # heavy: only where something is to be fetched

    return address.found(folder)
