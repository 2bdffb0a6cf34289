#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# level_symbols.sh LEVEL OBJECT: every function and variable that the object would share with others has the level in its name.
command -v nm >/dev/null || { echo 'skipped: no nm (binutils)'; exit 77; }
shared=$(nm --defined-only "$2" | awk '$2 ~ /^[TWVuBDR]$/ { print $3 }' | grep -v '^DW\.ref\.')
count=$(printf '%s\n' "$shared" | grep -c "$1")
others=$(printf '%s\n' "$shared" | grep -v "$1")
printf '%s: %d symbols\n' "$1" "$count"
[ "$count" -ge 50 ] || { echo "too few: is this the right object?"; exit 1; }
[ -z "$others" ] || { printf 'without the level in their names:\n%s\n' "$others" | c++filt; exit 1; }
