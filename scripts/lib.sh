# Shared by the scripts beside it: where things are, and how they speak.
# shellcheck shell=bash disable=SC2034

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
prefix=${CELLBLOCK_PREFIX:-/srv/cellblock}

# The shipped kernelspecs name /srv/cellblock; `scripts/setup` writes others for another prefix.
if [[ $prefix != /srv/cellblock ]]; then
    export CELLBLOCK_KERNELS__SPEC_DIRS="[\"$prefix/kernelspecs\"]"
fi

say() { printf '%s\n' "$*"; }

fail() {
    printf '\ncellblock: %s\n' "$*" >&2
    exit 1
}

# Wait until a gateway answers: wait_healthy URL PID. Fails when the process ends or 60 seconds pass.
wait_healthy() {
    local url=$1 pid=$2 end=$((SECONDS + 60))
    until "$venv/bin/python" "$root/scripts/probe.py" healthy "$url"; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS >= end)); then
            return 1
        fi
        sleep 0.2
    done
}
