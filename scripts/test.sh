#!/usr/bin/env bash
# Sets up .venv if needed, then tests: `scripts/test.sh` runs every check, slow tests included;
# `scripts/test.sh ARGUMENTS` is `pytest ARGUMENTS`, e.g. `scripts/test.sh -m "not slow"`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/setup.sh

# Tests look at reports in a real browser. As root on Debian it is installed; elsewhere those tests say what is missing.
browser() {
    local name
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && return
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing Chromium for the tests of reports (apt-get install chromium) ..."
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
            >/dev/null 2>&1 || say "Chromium could not be installed: tests in a browser are skipped."
    else
        say "No Chromium here: tests in a browser are skipped (for example: apt-get install chromium)."
    fi
}

# Tests of a ledger that several machines share need a PostgreSQL server's programs; they start their own server.
postgres() {
    { command -v initdb >/dev/null && command -v postgres >/dev/null; } && return
    compgen -G "/usr/lib/postgresql/*/bin/initdb" >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing PostgreSQL for the tests of ledgers (apt-get install postgresql) ..."
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends postgresql; } \
            >/dev/null 2>&1 || say "PostgreSQL could not be installed: tests on it are skipped."
    else
        say "No PostgreSQL here: tests on it are skipped (for example: apt-get install postgresql)."
    fi
}

browser
postgres

if [ $# -eq 0 ]; then
    exec scripts/check
fi

exec "$bin/pytest" "$@"
