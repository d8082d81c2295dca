#!/usr/bin/env bash
# From a fresh clone to a first Pareto front, on this machine's CPU: no key, no bill.
#   scripts/quickstart.sh [options of `evocluster run`]
# About 5 minutes of search, plus 2 to 7 minutes of set-up the first time. Each call is a run of its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

. scripts/setup.sh

# The first run folder that is still free, so that the second call is a second run and not an error.
free_folder() {
    local folder=runs/quickstart number=2
    while [ -e "$folder" ]; do
        folder="runs/quickstart-$number"
        number=$((number + 1))
    done
    printf '%s\n' "$folder"
}

say "Putting the embedded model smollm2-135m-instruct in its place (98 MB, once) ..."
"$bin/evocluster" models install smollm2-135m-instruct

place=()
case " $* " in
*" --out "* | *" --out="* | *" --help "*) ;;
*)
    out="$(free_folder)"
    place=(--out "$out")
    [ "$out" = runs/quickstart ] || {
        say "runs/quickstart is already there: this is a new run, in $out."
        say "(To go on with an interrupted one instead: .venv/bin/evocluster resume runs/quickstart)"
    }
    say "Searching for 2.5 minutes, then checking the best on examples never seen (about 3 more); results go to $out ..."
    ;;
esac
exec "$bin/evocluster" run configs/quickstart.yaml ${place[@]+"${place[@]}"} "$@"
