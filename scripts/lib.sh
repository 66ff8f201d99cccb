# shellcheck shell=bash
# What the scripts share: telling and timing steps, system packages, the .venv.
# Sourced by scripts that have done `set -euo pipefail`.

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$REPO/.venv
CACHE=$REPO/.cache
INSULA=$VENV/bin/insula
PYTHON=         # set by find_python
MISSING=()      # Debian packages, filled by `need`
STEPS=()        # "seconds<TAB>title" of each finished step
STEP_TITLE=
STEP_BEGAN=0

# --- Telling -------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

# fail WHAT [HOW]: end with what is wrong and how to get it right.
fail() {
    printf '\nerror: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint:  %s\n' "$2" >&2
    exit 1
}

# EPOCHREALTIME has the locale's decimal sign; without it, it is microseconds.
now() { printf '%s' "${EPOCHREALTIME//[.,]/}"; }

# seconds SINCE: time since a `now`, as 4.2
seconds() {
    local tenths=$((($(now) - $1) / 100000))
    printf '%d.%d' $((tenths / 10)) $((tenths % 10))
}

# begin TITLE / finish [REMARK]: a step, told when it begins and timed when it ends.
begin() {
    STEP_TITLE=$1
    STEP_BEGAN=$(now)
    printf '==> %s\n' "$STEP_TITLE"
}

finish() {
    local took
    took=$(seconds "$STEP_BEGAN")
    STEPS+=("$took"$'\t'"$STEP_TITLE${1:+ ($1)}")
    printf '    %s (%s s)\n' "${1:-done}" "$took"
}

print_times() {
    local step
    for step in "${STEPS[@]}"; do
        printf '%8s s  %s\n' "${step%%$'\t'*}" "${step#*$'\t'}"
    done
}

# quietly WHAT HOW COMMAND...: run a command whose output matters only when it fails.
quietly() {
    local what=$1 how=$2 log
    shift 2
    mkdir -p "$CACHE"
    log=$(mktemp "$CACHE/log.XXXXXX")
    if ! "$@" >"$log" 2>&1; then
        tail -n 30 "$log" >&2
        mv "$log" "$CACHE/last-failure.log"
        fail "$what" "$how (all of its output: $CACHE/last-failure.log)"
    fi
    rm -f "$log"
}

# --- System packages -----------------------------------------------------------------------------------------

# A plain user's PATH lacks sbin on Debian; mke2fs lives there.
has() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

# need PACKAGE TEST...: note the package unless the test succeeds. What counts is that the thing is there,
# not where it came from.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || MISSING+=("$package")
}

has_static_libc() { has gcc && [ -e "$(gcc -print-file-name=libc.a)" ]; }

python_is_new() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
python_has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Set PYTHON to the first interpreter that is new enough, preferring one that can make a venv.
find_python() {
    local candidate
    PYTHON=
    for candidate in python3 /usr/bin/python3 python3.14 python3.13 python3.12 python3.11; do
        if has "$candidate" && python_is_new "$candidate"; then
            PYTHON=${PYTHON:-$candidate}
            if python_has_venv "$candidate"; then
                PYTHON=$candidate
                return 0
            fi
        fi
    done
    [ -n "$PYTHON" ]
}

# The venv package must be that of the interpreter: python3-venv, or python3.12-venv for a second one.
need_python() {
    if ! has python3; then
        MISSING+=(python3 python3-venv)
    elif ! find_python; then
        fail "Python 3.11 or newer is needed; this system has $(python3 -V 2>&1)." \
            "Debian 12, Ubuntu 24.04 and newer have it; or put a newer python3 first in PATH."
    elif ! python_has_venv "$PYTHON"; then
        MISSING+=("$(basename "$PYTHON")-venv")
    fi
}

# What running machines and building images takes.
need_insula_packages() {
    need_python
    need qemu-system-x86 has qemu-system-x86_64
    need qemu-utils has qemu-img
    need mmdebstrap has mmdebstrap
    need debian-archive-keyring test -e /usr/share/keyrings/debian-archive-keyring.gpg
    need gcc has gcc
    need libc6-dev has_static_libc
    need fakeroot has fakeroot
    need uidmap has newuidmap
    need e2fsprogs has mke2fs
    need util-linux has setpriv
    need mtools has mformat
    need zstd has zstd
}

# as_root COMMAND...: with sudo when we are not root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif has sudo; then
        sudo "$@"
    else
        fail "You are not root and there is no sudo." "As root, run: $*"
    fi
}

update_package_lists() {
    quietly "apt-get update failed." "Look at your network and /etc/apt/sources.list*" as_root apt-get -q update
}

# Install MISSING with apt. Nothing missing: nothing asked of the network, nothing of sudo.
install_missing() {
    [ ${#MISSING[@]} -gt 0 ] || return 0
    has apt-get || fail "Missing: ${MISSING[*]} (Debian's names); this system has no apt-get to install them." \
        "Install them in your distribution's way, then run this again."
    say "    installing ${MISSING[*]}"
    if [ "$(id -u)" -ne 0 ] && has sudo; then
        say "    sudo is used for apt-get only; it may ask for your password"
        sudo true || fail "sudo refused." "As root, run: apt-get install --no-install-recommends ${MISSING[*]}"
    fi
    update_package_lists
    quietly "apt-get could not install ${MISSING[*]}." "On Ubuntu, 'universe' must be enabled" \
        as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q install -y --no-install-recommends "${MISSING[@]}"
    MISSING=()
}

# --- The .venv -----------------------------------------------------------------------------------------------

# Only one script at a time changes .venv. The descriptor must not leak into a daemon: `unlock` before any runs.
lock() {
    mkdir -p "$CACHE"
    exec 9>"$CACHE/scripts.lock"
    flock -n 9 || {
        say "    waiting for another of these scripts to finish with .venv"
        flock 9
    }
}

unlock() { exec 9>&-; }

make_venv() {
    if [ -d "$VENV" ] && { ! python_is_new "$VENV/bin/python" || ! "$VENV/bin/python" -m pip -V >/dev/null 2>&1; }; then
        say "    .venv does not work any more (its Python has gone?); making it anew"
        rm -rf "$VENV"
    fi
    [ -d "$VENV" ] || quietly "The .venv could not be made with $PYTHON." "Remove $VENV and try again" \
        "$PYTHON" -m venv "$VENV"
}

# Hashes of what the environment and the installed package were made from.
requirements_hash() { { "$VENV/bin/python" -V; cat "$REPO/pyproject.toml"; } | sha256sum; }
hash_files() { find "$@" -type f ! -name '*.pyc' ! -path '*.egg-info/*' -print0 | sort -z | xargs -0 sha256sum | sha256sum; }
source_hash() { hash_files "$REPO/pyproject.toml" "$REPO/src"; }

same_as_stamp() { [ -e "$VENV/$1" ] && [ "$(cat "$VENV/$1")" = "$2" ]; }

pip_install() {
    quietly "pip could not install $1." "Look at your network; pip uses your PIP_* and proxy settings" \
        "$VENV/bin/python" -m pip --disable-pip-version-check --no-input install --quiet "${@:2}"
}

# install_insula runtime|test: the project and what it needs, into .venv; REMARK says what was done.
install_insula() {
    local kind=$1 extra='' requirements source
    [ "$kind" = runtime ] || extra="[$kind]"
    requirements=$(requirements_hash)
    source=$(source_hash)
    REMARK="nothing has changed"
    # The test tools include what running takes.
    if ! same_as_stamp ".stamp-$kind" "$requirements" &&
        ! { [ "$kind" = runtime ] && same_as_stamp .stamp-test "$requirements"; }; then
        say "    downloading what insula needs from Python's package index"
        pip_install "the build tools" "setuptools>=70.1"
        build_insula "insula$extra" "$REPO$extra"
        printf '%s' "$requirements" >"$VENV/.stamp-$kind"
        REMARK="installed"
    elif ! same_as_stamp .stamp-source "$source"; then
        build_insula insula --no-deps "$REPO"
        # shellcheck disable=SC2034 # for the caller
        REMARK="updated"
    else
        return 0
    fi
    printf '%s' "$source" >"$VENV/.stamp-source"
    stop_older_daemon
}

# setuptools puts into a wheel whatever an earlier build left in build/, also what has been deleted since.
build_insula() {
    rm -rf "$REPO/build" "$REPO"/src/*.egg-info
    pip_install "$1" --no-build-isolation "${@:2}"
    rm -rf "$REPO/build" "$REPO"/src/*.egg-info
}

# A daemon that still runs the code before this installation. Stopping it stops no machine.
stop_older_daemon() {
    "$INSULA" daemon stop >/dev/null 2>&1 9>&- || true
}
