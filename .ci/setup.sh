# Sourced by ./run and ./test. `prepare [EXTRA …]` makes $ROOT/.venv fit pyproject.toml and constraints.txt;
# once it does, a stamp inside says so, and another call only compares a hash and asks no network.
#
#   PYTHON=python3.12            the interpreter; default: the first of python3.11, 3.12, 3.13 that works
#   CASCADEVL_TORCH=skip         keep the torch that the interpreter already has, such as a vendor's build
#   CASCADEVL_TORCH='torch<2.13' take this torch instead of the tested one
#   CASCADEVL_TORCH_INDEX=URL    take torch from this index; the small CPU builds for Linux are at
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
    pip install --constraint "$ROOT/constraints.txt" --editable "$ROOT${extras:+[${extras// /,}]}"
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

# The tested release where pip finds it, else the newest that is offered; the size is told before it is paid.
install_torch() {
    local spec wanted=("$TESTED_TORCH" "$ANY_TORCH") source=()
    case "${CASCADEVL_TORCH:-}" in
        skip)
            "$ROOT/.venv/bin/python" -c 'import torch' ||
                fail "CASCADEVL_TORCH=skip, but there is no torch to keep; remove .venv or the setting."
            return ;;
        ?*) wanted=("$CASCADEVL_TORCH") ;;
    esac
    [ -n "${CASCADEVL_TORCH_INDEX:-}" ] && source=(--index-url "$CASCADEVL_TORCH_INDEX")
    for spec in "${wanted[@]}"; do
        pip install --dry-run --report "$ROOT/.venv/torch.json" ${source[@]+"${source[@]}"} "$spec" \
            > /dev/null 2> "$ROOT/.venv/torch.log" || continue
        say "torch: $("$ROOT/.venv/bin/python" "$ROOT/.ci/sizes.py" "$ROOT/.venv/torch.json")"
        pip install --constraint "$ROOT/constraints.txt" ${source[@]+"${source[@]}"} "$spec"
        return
    done
    cat "$ROOT/.venv/torch.log" >&2
    fail "pip found neither of: ${wanted[*]}. Is there a network? CASCADEVL_TORCH_INDEX names another index."
}

pip() { "$ROOT/.venv/bin/python" -m pip --quiet --disable-pip-version-check "$@"; }
say() { printf '· %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 2; }
