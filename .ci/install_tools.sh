#!/usr/bin/env bash
# Installs what single stages of the gate need besides a compiler and Python: Clang; a compiler for aarch64 and what runs its
# programs; nm and readelf; the sources of locales, of which a test makes one with a decimal comma. With apt, as root, and
# only what is not there. Never fails: a stage that lacks its tools says so itself.
set -uo pipefail

lacking=()
compgen -c clang++ | grep -qE '^clang\+\+(-[0-9]+)?$' || lacking+=(clang)
command -v aarch64-linux-gnu-g++ >/dev/null || lacking+=(g++-aarch64-linux-gnu)
command -v qemu-aarch64 >/dev/null || lacking+=(qemu-user)
command -v nm >/dev/null || lacking+=(binutils)
[ -e /usr/share/i18n/locales/de_DE ] || lacking+=(locales)
[ ${#lacking[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not here, and only root can install them, with apt: ${lacking[*]}"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
apt-get update -qq >"$log" 2>&1
if apt-get install -y -qq --no-install-recommends "${lacking[@]}" >>"$log" 2>&1; then
    echo "installed ${lacking[*]}"
else
    echo "apt-get could not install ${lacking[*]}:"
    tail -5 "$log"
fi
rm -f "$log"
