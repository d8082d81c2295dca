#!/usr/bin/env bash
# Sets up .venv if needed, then tests: `scripts/test.sh` runs every check, slow tests included;
# `scripts/test.sh ARGUMENTS` is `pytest ARGUMENTS`, e.g. `scripts/test.sh -m "not slow"`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ $# -eq 0 ]; then
    exec scripts/check
fi

. scripts/setup.sh

exec "$bin/pytest" "$@"
