#!/usr/bin/env bash
# A Debian system in a folder, to try the package where nothing of this machine is installed. Needs root, debootstrap, and
# Debian's keyring.
#
#   tools/debian_root.sh SUITE FOLDER [PACKAGE...]
#       makes FOLDER (debootstrap's minbase and the packages), or adds to it the packages that it lacks. A FOLDER that is
#       there but holds another suite, or was not made by this script, is an error. Safe to call from several shells.
#   tools/debian_root.sh --run FOLDER [--bind SOURCE TARGET]... COMMAND [ARGUMENT...]
#       runs a command there as root in /root, with /proc, /sys (read-only), /dev and a /tmp of its own, and SOURCE of
#       this machine as TARGET. The exit status is the command's; whatever it started ends with it.
#
# The mirror is the first of this machine's apt sources that has Debian itself (or DEBIAN_MIRROR), and pip's settings are
# those that `python3 -m pip config list` shows at the moment: addresses, passwords in them included, are copied into the
# root and nowhere else. Files that the settings name are copied to the same path, folders are there as read-only mounts.
# Mounts are made in a mount namespace that ends with the command; none is left behind, however it ends.
set -euo pipefail

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    exit 2
}

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit "$1"
}

# Prints "file PATH" or "folder PATH" for what pip's settings name, and writes them to $1, if given, as one file.
pip_settings() {
    python3 -m pip config list | python3 -c '
import ast, configparser, os, re, sys
settings = configparser.RawConfigParser()
for line in sys.stdin:
    name, _, value = line.rstrip("\n").partition("=")
    section, _, key = name.rpartition(".")
    # The environment is listed first and takes precedence.
    section = "global" if section == ":env:" else section
    value = ast.literal_eval(value)
    if not settings.has_section(section):
        settings.add_section(section)
    if not settings.has_option(section, key):
        settings.set(section, key, value)
    for path in re.findall(r"(?:^|\s|file://)(/\S+)", value):
        # What an index of one name a folder lists lies beside it.
        path = os.path.dirname(path) if path.endswith("/simple") else path
        if os.path.exists(path):
            print("folder" if os.path.isdir(path) else "file", path)
if len(sys.argv) > 1:
    with open(sys.argv[1], "w") as file:
        settings.write(file)
' "$@"
}

# What a command in the root finds of this machine.
enter() {
    local root=$1
    mount -t proc proc "$root/proc"
    mount --bind /sys "$root/sys"
    mount -o remount,bind,ro "$root/sys"
    mount --rbind /dev "$root/dev"
    cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
}

# HOME, locale and all else of this machine stay outside.
inside() {
    local root=$1
    shift
    local kept=() name
    for name in TERM http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY; do
        if [ -n "${!name:-}" ]; then kept+=("$name=${!name}"); fi
    done
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "${kept[@]}" \
        chroot "$root" /bin/sh -c 'cd && exec "$@"' sh "$@"
}

apt_install() {
    local root=$1
    shift
    [ $# -gt 0 ] || return 0
    inside "$root" apt-get -qq update
    # Nothing may start services: what they would serve is this machine.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    inside "$root" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@"
    inside "$root" apt-get -qq clean
}

# The three that follow run inside the namespaces.
make_root() {
    local half=$1 suite=$2 mirror=$3 keyring scripts=${DEBOOTSTRAP_DIR:-/usr/share/debootstrap}/scripts script=()
    shift 3
    for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do [ ! -f "$keyring" ] || break; done
    # A suite that this machine's debootstrap is too old to know is made as unstable is.
    [ -e "$scripts/$suite" ] || script=("$scripts/sid")
    # Its output is long, and of interest only when it fails.
    if ! debootstrap --variant=minbase --keyring="$keyring" "$suite" "$half/root" "$mirror" "${script[@]}" >"$half/log" 2>&1; then
        tail -n 20 "$half/log" >&2
        fail "debootstrap could not make $suite"
    fi
    printf 'deb %s %s main\n' "$mirror" "$suite" >"$half/root/etc/apt/sources.list"
    # How this machine's apt reaches its mirror holds there too: proxies, retries, dates that are not checked.
    apt-config dump --no-empty Acquire |
        grep -E '^Acquire::(Check-|http::|https::|Retries|Force)' >"$half/root/etc/apt/apt.conf.d/90host" || true
    add_packages "$half/root" "$@"
    printf '%s\n' "$suite" >"$half/root/etc/fai_fast_root"
}

add_packages() {
    local root=$1
    shift
    [ $# -gt 0 ] || return 0
    enter "$root"
    inside "$root" apt-get -qq update
    # Nothing may start a service: what it would serve is this machine.
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod +x "$root/usr/sbin/policy-rc.d"
    inside "$root" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "$@" >"$root/tmp/log" 2>&1 || {
        tail -n 20 "$root/tmp/log" >&2
        fail "apt-get could not install $*"
    }
    rm "$root/tmp/log"
    inside "$root" apt-get -qq clean
}

run_in() {
    local root=$1 kind path target
    shift
    enter "$root"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    pip_settings "$root/etc/pip.conf" | sort -u | while read -r kind path; do
        if [ "$kind" = folder ]; then
            mkdir -p "$root$path"
            mount --bind "$path" "$root$path"
            mount -o remount,bind,ro "$root$path"
        else
            mkdir -p "$(dirname "$root$path")"
            cp -L "$path" "$root$path"
        fi
    done
    while [ "$1" = --bind ]; do
        path=$2 target=$root$3
        if [ -d "$path" ]; then mkdir -p "$target"; else mkdir -p "$(dirname "$target")" && touch "$target"; fi
        mount --rbind "$path" "$target"
        shift 3
    done
    inside "$root" "$@"
}

case ${1:-} in
    make_root | add_packages | run_in)
        [ "$$" = 1 ] || fail "$1 is for this script's own use"
        "$@"
        exit
        ;;
esac

# Everything that mounts runs in a mount namespace, and with process identifiers of its own, which the kernel ends as one.
# It is not replaced by unshare, which takes no signal while it waits.
in_namespaces() {
    local code=0
    # A shell starts what is in the background with SIGINT ignored; commands in the root are to have it as usual.
    unshare --mount --pid --fork --kill-child --mount-proc env --default-signal bash "$0" "$@" <&0 &
    child=$!
    wait "$child" || code=$?
    child=""
    return "$code"
}

child="" half=""
finish() {
    if [ -n "$child" ]; then
        kill -KILL "$child" || true
        wait "$child" 2>/dev/null || true
    fi
    # The mounts are not to be seen from here, so that nothing under them can be removed.
    if [ -n "$half" ]; then rm -rf --one-file-system "$half"; fi
}
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

case ${1:-} in
    -h | --help) usage 0 ;;
    --run) [ $# -ge 3 ] || usage 2 ;;
    -*) usage 2 ;;
    *) [ $# -ge 2 ] || usage 2 ;;
esac
[ "$(id -u)" = 0 ] || fail "needs root, for chroot and mounts"

if [ "$1" = --run ]; then
    root=$(realpath -m "$2")
    [ -f "$root/etc/fai_fast_root" ] || fail "$root was not made by this script"
    shift 2
    binds=()
    while [ "${1:-}" = --bind ]; do
        [ $# -ge 4 ] || usage 2
        [ -e "$2" ] || fail "--bind $2: there is no such file or folder"
        [[ $3 = /* ]] || fail "--bind $2 $3: the second is a path in the root, from / on"
        binds+=(--bind "$(realpath "$2")" "$3")
        shift 3
    done
    [ $# -gt 0 ] || usage 2
    in_namespaces run_in "$root" "${binds[@]}" "$@"
    exit
fi

suite=$1 root=$(realpath -m "$2")
shift 2
mkdir -p "$(dirname "$root")"
# A lock on the folder around it: it leaves no file, and ends with this process.
exec 9<"$(dirname "$root")"
flock 9

if [ -e "$root" ]; then
    made=$(cat "$root/etc/fai_fast_root" 2>/dev/null) || fail "$root is there and was not made by this script"
    [ "$made" = "$suite" ] || fail "$root holds $made, not $suite"
    missing=()
    for package in "$@"; do
        status=$(dpkg-query --admindir="$root/var/lib/dpkg" -W -f '${Status}' "$package" 2>/dev/null || true)
        [ "$status" = "install ok installed" ] || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] || in_namespaces add_packages "$root" "${missing[@]}"
    exit
fi

command -v debootstrap >/dev/null || fail "needs debootstrap (apt-get install debootstrap)"
mirror=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(COMPONENT) $(REPO_URI)' "Created-By: Packages" |
    awk '$1 == "Debian" && $2 == "Debian" && $3 == "main" { print $4; exit }')}
[ -n "$mirror" ] || fail "apt knows no source of Debian here (run apt-get update), and DEBIAN_MIRROR is not set"
# What a run that was killed has left; the lock says that nobody is at it now.
rm -rf --one-file-system "$root".half-made.*
half=$(mktemp -d "$root.half-made.XXXXXX")
in_namespaces make_root "$half" "$suite" "$mirror" "$@"
# On one file system, so either the whole root is there or nothing.
mv -T "$half/root" "$root"
