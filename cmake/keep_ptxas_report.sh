#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A compiler launcher for kernels: runs the command, and keeps what `ptxas -v` said of them in OBJECT.ptxas beside the
# object (tests/cuda/resources.sh reads it). Quiet if there is nothing else to say; whatever does not come from
# `ptxas -v`, and all of it if the command fails, is passed on.
#   keep_ptxas_report.sh COMPILER ARGUMENTS...
set -u
object=
previous=
for argument in "$@"; do
  [ "$previous" = -o ] && object=$argument
  previous=$argument
done
case $object in
  '' | /dev/*) exec "$@" ;;  # no object, and nowhere to keep a report
esac
report=$object.ptxas
said=$report.$$
trap 'rm -f "$said" "$said.out"' EXIT
trap 'exit 1' HUP INT TERM
rm -f "$report"  # that of another build must not outlive this one
"$@" 2>"$said"
status=$?
if [ "$status" -ne 0 ]; then
  cat "$said" >&2
  exit "$status"
fi
# What ptxas -v prints: a line of its own for each fact, and one that is indented for each kernel's stack.
usual='^ptxas info  *:|^    *[0-9]* bytes stack frame,'
grep -Ev "$usual" "$said" >&2
grep -E "$usual" "$said" >"$said.out"
if [ $? -gt 1 ] || ! mv "$said.out" "$report"; then
  echo "keep_ptxas_report.sh: cannot write $report" >&2
  rm -f "$object"
  exit 1
fi
