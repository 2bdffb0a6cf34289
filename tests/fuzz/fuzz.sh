#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs one fuzzer:   fuzz.sh BUILD/…/fuzz_TARGET [SECONDS [OPTION OF LIBFUZZER …]]
# What it finds on the way is kept beside the executable, in TARGET.corpus/; an input that breaks something in
# TARGET.findings/, and its path is printed. Status 0: nothing broke.
set -eu
fuzzer=$1
seconds=${2:-10}
shift "$(($# < 2 ? $# : 2))"
here=$(cd "$(dirname "$0")" && pwd)
target=${fuzzer##*/fuzz_}
kept=${fuzzer%/*}/$target.corpus
findings=${fuzzer%/*}/$target.findings
mkdir -p "$kept" "$findings"
set -- "-max_total_time=$seconds" -max_len=8192 -len_control=30 -timeout=25 -rss_limit_mb=768 -malloc_limit_mb=128 -print_final_stats=1 \
  "-artifact_prefix=$findings/" "$@"
if [ -f "$here/dictionaries/$target.txt" ]; then set -- "-dict=$here/dictionaries/$target.txt" "$@"; fi
# No fake stacks: exceptions leave frames in them, and each call then looks for room among thousands.
export ASAN_OPTIONS="detect_stack_use_after_return=0:quarantine_size_mb=16:malloc_context_size=8${ASAN_OPTIONS:+:$ASAN_OPTIONS}"
export UBSAN_OPTIONS="print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}"
exec "$fuzzer" "$@" "$kept" "$here/corpus/$target"
