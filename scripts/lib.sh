# Sourced by the other scripts: goes to the project's directory, and brings what is missing on this machine.
# shellcheck shell=bash

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
missing_packages=()

section() { printf '\n== %s\n' "$*"; }

fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# quietly COMMAND...: its output only if it fails, and then the end of it.
quietly() {
    local said
    said=$("$@" 2>&1) || {
        tail -n 20 <<<"$said" >&2
        return 1
    }
}

# need PACKAGE COMMAND...: the Debian package is missing unless the command succeeds.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing_packages+=("$package")
}

# Installs what `need` found missing, as root or by sudo without a password.
install_missing() {
    ((${#missing_packages[@]})) || return 0
    local as_root=()
    ((EUID == 0)) || as_root=(sudo -n)
    command -v apt-get >/dev/null || fail "this machine has no apt-get; install by hand: ${missing_packages[*]}"
    section "installing Debian packages: ${missing_packages[*]}"
    if [[ -z ${package_lists_are_fresh-} ]]; then
        quietly "${as_root[@]}" apt-get update -qq || fail "apt-get update failed; install by hand: ${missing_packages[*]}"
        package_lists_are_fresh=yes
    fi
    # The tests start private servers. Debian would also start the packages' own ones, unless this file forbids it.
    local policy=/usr/sbin/policy-rc.d forbidden=
    if [[ ! -e $policy ]]; then
        forbidden=yes
        printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
    fi
    local installed=yes
    quietly "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -qq -y --no-install-recommends "${missing_packages[@]}" || installed=
    [[ -z $forbidden ]] || "${as_root[@]}" rm -f "$policy"
    [[ -n $installed ]] || fail "apt-get install failed; install by hand: ${missing_packages[*]}"
    missing_packages=()
}

has_database_server() {
    [[ -n ${ZITHARA_SANDBOX_SERVER-} ]] || PATH=$PATH:/usr/sbin:/usr/local/sbin command -v mariadbd mysqld
}

has_rabbitmq() { [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]]; }

has_python() { "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; }

# Makes .venv with the project installed in place; again only when its packaging changed. PYTHON names another python3.
ensure_venv() {
    local python=${PYTHON:-python3} stamp=.venv/installed-for wanted
    if [[ ! -x .venv/bin/python ]]; then
        need python3 command -v "$python"
        need python3-venv "$python" -c 'import venv, ensurepip'
        install_missing
        has_python || fail "$python is older than 3.10: name a newer one, as in PYTHON=python3.11 $0"
        section "making .venv with $("$python" --version)"
        "$python" -m venv .venv
    fi
    wanted=$(cat setup.cfg pyproject.toml | sha256sum)
    if [[ ! -x .venv/bin/zithara-worker || $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
        section "installing zithara-worker into .venv"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,crypt]'
        printf '%s\n' "$wanted" >"$stamp"
    fi
    PATH=$PWD/.venv/bin:$PATH
}

# The project's files, each name ended by a NUL: what git tracks or would, or without git all but what is made.
list_sources() {
    local file
    if git rev-parse --git-dir >/dev/null 2>&1; then
        git ls-files -z --cached --others --exclude-standard
    else
        find . -path './.*' -prune -o -path ./dist -prune -o -path ./build -prune -o -name __pycache__ -prune \
            -o -name '*.egg-info' -prune -o '(' -type f -o -type l ')' -printf '%P\0'
    fi | while IFS= read -r -d '' file; do
        # Deleted and not yet told git: no file.
        [[ ! -e $file ]] || printf '%s\0' "$file"
    done
}
