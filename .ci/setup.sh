# Sourced by ./run and ./test. `prepare [EXTRA …]` makes $ROOT/.venv fit pyproject.toml and constraints.txt;
# once it does, a stamp inside says so, and another call only compares a hash and asks no network.
#
#   PYTHON=python3.12            the interpreter; default: the first of python3.11, 3.12, 3.13 that works
#   CASCADEVL_TORCH=skip         keep the torch that the interpreter already has, such as a vendor's build
#   CASCADEVL_TORCH='torch<2.13' take this torch instead of the tested one
#   CASCADEVL_TORCH_INDEX=URL    look for torch here too; the small CPU builds for Linux are at
#                                https://download.pytorch.org/whl/cpu
#
# They count when .venv is made: remove it to choose again.

TESTED_TORCH="torch==2.13.0"
ANY_TORCH="torch>=2.11"

prepare() {
    local stamp="$ROOT/.venv/.cascadevl-stamp" hash="" extras="" old_hash="" old_extras=""
    hash=$(fingerprint)
    [ -f "$stamp" ] && read -r old_hash old_extras < "$stamp"
    extras=$(printf '%s\n' $old_extras "$@" | sort -u | xargs)
    [ "$hash $extras" = "$old_hash $old_extras" ] && return

    make_venv
    rm -f "$stamp"
    install_torch
    say "installing cascadevl${extras:+ with $extras}"
    pip install -qq --constraint "$ROOT/constraints.txt" --editable "$ROOT${extras:+[${extras// /,}]}" ||
        fail "pip could not install what pyproject.toml asks for."
    printf '%s %s\n' "$hash" "$extras" > "$stamp"
}

# The folder belongs to it: a moved environment points at its old place.
fingerprint() {
    local sha256=(sha256sum)
    command -v sha256sum > /dev/null || sha256=(shasum -a 256)
    { printf '%s\n' "$ROOT" "$TESTED_TORCH"; cat "$ROOT/pyproject.toml" "$ROOT/constraints.txt"; } |
        "${sha256[@]}" | cut -d ' ' -f 1
}

make_venv() {
    "$ROOT/.venv/bin/python" -c 'import pip' 2> /dev/null && return
    local python options=()
    python=$(find_python)
    [ "${CASCADEVL_TORCH:-}" = skip ] && options=(--system-site-packages)
    say "making .venv with $("$python" --version)"
    "$python" -m venv --clear ${options[@]+"${options[@]}"} "$ROOT/.venv" ||
        fail "$python cannot make environments; Debian and Ubuntu have this in the package python3-venv."
}

find_python() {
    local name fits='import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'
    for name in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        "$name" -c "$fits" 2> /dev/null && printf '%s' "$name" && return
    done
    fail "no Python 3.11, 3.12 or 3.13 found; install one, or name it: PYTHON=/path/to/python3.12 $0"
}

# The tested release where pip finds it, else the newest that is offered; pip tells each size before it fetches.
install_torch() {
    local spec tested=("$TESTED_TORCH" "$ANY_TORCH") source=() log="$ROOT/.venv/torch.log"
    "$ROOT/.venv/bin/python" -c 'import torch' 2> /dev/null && return
    [ "${CASCADEVL_TORCH:-}" = skip ] &&
        fail "CASCADEVL_TORCH=skip, but $ROOT/.venv sees no torch; remove .venv or the setting."
    [ -n "${CASCADEVL_TORCH:-}" ] && tested=("$CASCADEVL_TORCH")
    [ -n "${CASCADEVL_TORCH_INDEX:-}" ] && source=(--extra-index-url "$CASCADEVL_TORCH_INDEX")
    say "installing torch: about 0.2 GB as a CPU build, 3 GB with CUDA; CASCADEVL_TORCH_INDEX chooses"
    for spec in "${tested[@]}"; do
        pip install --progress-bar off ${source[@]+"${source[@]}"} --constraint "$ROOT/constraints.txt" "$spec" \
            2> "$log" | { grep --line-buffered -E 'Downloading .*[MG]B\)' >&2 || true; } && return
    done
    cat "$log" >&2
    fail "pip could not install ${tested[*]}. Is there a network?"
}

pip() { "$ROOT/.venv/bin/python" -m pip --disable-pip-version-check "$@"; }
say() { printf '· %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
