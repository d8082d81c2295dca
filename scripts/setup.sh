# Sourced by the other scripts: sets up .venv at the top of the repository, once, and leaves these behind:
#   $root   the top of the repository          $bin   the folder of programs of .venv
# A second call sees by the stamps in .venv that nothing changed, and takes a fraction of a second.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
bin="$root/.venv/bin"
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '%s\n' "$*" >&2; }

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local name
    for name in python3.11 python3 python; do
        if usable "$name"; then
            command -v "$name"
            return
        fi
    done
    say "No Python 3.11 or newer was found (tried python3.11, python3 and python)."
    say "Install Python 3.11, for example with your system's package manager, and run this again."
    return 1
}

make_venv() {
    local python
    python="$(find_python)" || return 1
    say "Making .venv with $python ..."
    # Some systems ship Python without ensurepip: then the pip of that Python fills the environment from outside.
    "$python" -m venv "$root/.venv" >/dev/null 2>&1 || "$python" -m venv --without-pip "$root/.venv" || return 1
    usable "$bin/python" || {
        say "The environment in $root/.venv does not work. Remove that folder and run this again."
        return 1
    }
}

run_pip() {
    local python
    if "$bin/python" -m pip --version >/dev/null 2>&1; then
        "$bin/python" -m pip "$@"
    else
        python="$(find_python)"
        "$python" -m pip --python "$bin/python" "$@"
    fi
}

digest() { "$bin/python" -c 'import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1"; }

# once FILE COMMAND...: runs the command unless it has succeeded before with FILE as it is now.
once() {
    local file="$1" stamp now
    shift
    stamp="$root/.venv/.done-$(basename "$file")"
    now="$(digest "$file")"
    [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$now" ] && return
    "$@"
    printf '%s\n' "$now" >"$stamp"
}

install_pinned() {
    say "Installing the pinned packages of requirements.lock, every file checked by its hash (1 to 5 minutes) ..."
    run_pip install --quiet --require-hashes --no-deps -r "$root/requirements.lock"
}

install_project() {
    run_pip install --quiet --no-deps --no-build-isolation -e "$root"
}

usable "$bin/python" || make_venv
once "$root/requirements.lock" install_pinned
once "$root/pyproject.toml" install_project
