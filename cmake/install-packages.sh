#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, with apt, as root or through sudo.   install-packages.sh [programs] [tests] [benchmarks] [checks] [aarch64]
#   programs    to build the programs of examples/      tests       and the tests
#   benchmarks  and the benchmarks                      checks      and what .ci/run uses beside
#   aarch64     to compile for 64-bit Arm and run it here (cmake/aarch64-linux-gnu.cmake)
set -eu

packages='g++ cmake ninja-build libeigen3-dev nlohmann-json3-dev libutf8proc-dev libdnnl-dev libcli11-dev libssl-dev'
for group in "$@"; do
  case $group in
    programs) ;;
    tests) packages="$packages doctest-dev" ;;
    benchmarks) packages="$packages libbenchmark-dev" ;;
    checks) packages="$packages doctest-dev libbenchmark-dev clang libclang-rt-14-dev ccache python3 python3-pip xz-utils" ;;
    aarch64) packages="$packages g++-aarch64-linux-gnu qemu-user" ;;
    *) echo "install-packages.sh: unknown group $group" >&2; exit 2 ;;
  esac
done

if ! command -v apt-get >/dev/null 2>&1; then
  echo "install-packages.sh: no apt-get here; on Debian 12 the packages are: $packages" >&2
  exit 0  # CMake names what it does not find
fi

missing=
for package in $packages; do
  dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

as_root=
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null 2>&1 || { echo "install-packages.sh: needs root or sudo to install:$missing" >&2; exit 1; }
  as_root=sudo
fi
echo "installing:$missing"
$as_root apt-get update -qq
# shellcheck disable=SC2086  # a list
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
