#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Unpacks what the tests need for 64-bit Arm into DIRECTORY, from this machine's own Debian mirror.   aarch64-sysroot.sh DIRECTORY
# Nothing is installed and no architecture added: apt works on lists of its own, in DIRECTORY. cmake/aarch64-linux-gnu.cmake uses it.
set -eu

[ $# -eq 1 ] || { echo 'usage: aarch64-sysroot.sh DIRECTORY' >&2; exit 2; }
mkdir -p "$1"
cd "$1"
root=$PWD
packages='libutf8proc-dev libeigen3-dev nlohmann-json3-dev doctest-dev'
if [ "$(cat complete 2>/dev/null)" = "$packages" ]; then exit 0; fi
command -v apt-get >/dev/null 2>&1 || { echo 'aarch64-sysroot.sh: no apt-get here' >&2; exit 1; }

work=$root/apt
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/packages"
: >"$work/status"
as_arm64() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root -o Dir::Cache="$work" \
    -o Dir::State="$work" -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" "$@"
}
as_arm64 update
cd "$work/packages"
# shellcheck disable=SC2086  # a list
as_arm64 download $packages
for package in *.deb; do dpkg-deb -x "$package" "$root"; done
cd "$root"
# The shared library is in a package of its own: its name without it would break the static one's search.
find usr/lib -name 'lib*.so' -type l ! -exec test -e {} \; -exec rm {} +
rm -r "$work"
printf '%s\n' "$packages" >complete
