#!/usr/bin/env bash
# Runs the README's two commands, the demo and the tests, as they are written there, on another Debian than this machine's.
#
#   tools/other_system.sh [--user] [--dry-run] [SUITE]
#       SUITE: trixie (default), forky, sid, ... --user: as an ordinary user, else as root. --dry-run: says what would run.
#
# Needs root, debootstrap and a mirror of Debian as tools/debian_root.sh says, which makes the system in build/systems/SUITE
# and leaves it there for the next time; some 6 GB, 10 minutes. Each command runs in a copy of the working tree of its own
# (what git tracks, and what it would), which goes with it. The exit status is the first failing command's.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit "$1"
}

user=root suite='' dry=''
while [ $# -gt 0 ]; do
    case $1 in
        -h | --help) usage 0 ;;
        --user) user=tester ;;
        --dry-run) dry=1 ;;
        -*) usage 2 ;;
        *) [ -z "$suite" ] && suite=$1 || usage 2 ;;
    esac
    shift
done
suite=${suite:-trixie}

# A command of the README is a line of its shell examples.
mapfile -t commands < <(awk '/^```/ { inside = $0 == "```bash"; next } inside && /^python3 -m venv /' README.md)
[ ${#commands[@]} = 2 ] || { echo "README.md: found ${#commands[@]} commands that begin with a venv, expected 2" >&2; exit 2; }

if [ -n "$dry" ]; then
    echo "# in $suite, as $user"
    printf '%s\n' "${commands[@]}"
    exit
fi

root=build/systems/$suite
mkdir -p build/systems
# What the README asks for before its commands, and no more: Python with its headers, and a compiler.
tools/debian_root.sh "$suite" "$root" g++ python3-dev python3-venv

work=$(mktemp -d "$PWD/build/systems/run.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
cat >"$work/as_user" <<'END'
#!/bin/bash
# Arguments: the user, and the command, which runs in /checkout, which is the user's.
set -euo pipefail
if [ "$1" != root ]; then
    id "$1" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$1"
    chown -R "$1" /checkout
fi
. /etc/os-release
echo "=== $PRETTY_NAME, $(python3 --version), $(g++ --version | head -n 1), as $1: $2"
# A login, which brings nothing along, HOME least of all.
exec runuser -l "$1" -c "export LANG=C.UTF-8; cd /checkout && $2"
END
chmod 755 "$work" "$work/as_user"

for command in "${commands[@]}"; do
    rm -rf "$work/checkout"
    mkdir "$work/checkout"
    git ls-files -z --cached --others --exclude-standard |
        # A file that is deleted but still in the index has nothing to copy.
        while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
        tar --null --files-from=- --create | tar --extract --no-same-owner --directory="$work/checkout"
    begin=$SECONDS
    tools/debian_root.sh --run "$root" --bind "$work/checkout" /checkout --bind "$work/as_user" /as_user /as_user "$user" "$command"
    echo "=== passed in $((SECONDS - begin)) s: $command"
done
