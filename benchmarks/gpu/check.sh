#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks fedlora on an NVIDIA GPU and times it, without a network and, with what prepare.sh laid ready, without a compiler.
#   check.sh [--first | --second | --stage NAME...] [--out DIR] [--build DIR] [--prepared DIR] [--limit SECONDS] [--jobs N]
#   --first            what has to be known first, in at most 200 s: start, smoke, sanitizer, conformance, ceilings, blocks
#   --second           in at most 300 s: start, again, layers, step, peer, profile, minilm
#   --stage NAME       only this part (again for another): one of these, stories, or build
#   --out DIR          where results go; default build-gpu/results. A stage's file is complete when the stage ends.
#   --build DIR        default build-gpu in the project. Programs that are built there come before those of the kit.
#   --prepared DIR     what prepare.sh laid ready; default .gpu-prepared. Without it, --stage build, with what the machine has.
#   --limit SECONDS    of all stages together; without a choice 525. Stages that are named share it evenly.
#   --jobs N           processes side by side; default one per processor and 3 GiB of memory
# Stages: start      what the machine is, and whether each program starts; where one cannot, the smoke program alone is built
#         smoke      every family of kernels, type and shape in a process of its own, against sums in float64
#         sanitizer  compute-sanitizer on the smallest of these           conformance  the GPU tests, a process for each file
#         ceilings   what the device can do, and what our kernels reach   blocks       LoRA in two blocks, two variants
#         again      what has failed before (failed_cases.txt in --prepared, or in --out, where check.sh leaves one)
#         layers     LoRA in all blocks and in layers                     step         a step of BERT-base, with graphs and without
#         peer       the same in PyTorch + peft                           profile      ncu: our four kernels that take longest in a step
#         minilm     MiniLM on AG News, one and two threads, and a CPU    stories      stories260K on CLINC150 in every type
#         build      builds the programs here, for those who have a compiler and minutes
# In --out: STAGE.txt (what was said, and its lines of the table), lora.json, table.md, and both of a run in two files named after
# the GPU and the commit, table and tar; with a GPU these are copied into benchmarks/results too. The table comes last on the screen.
# Exit status: 0 if all that was asked for ran and agreed, 1 if something failed, 3 if something was left out or not done in its
# time (the table says what), 77 without a GPU, 2 for wrong options or a folder that cannot be written, 130 and 143 when stopped.
# PYTHON names the python3 that has torch, transformers and peft; CUDACXX the nvcc.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
stages=
out=
build=$root/build-gpu
prepared=$root/.gpu-prepared
limit=
jobs=
python=${PYTHON:-python3}
first_stages='start smoke sanitizer conformance ceilings blocks'
second_stages='again layers step peer profile minilm'
all_stages="build $first_stages $second_stages stories"
chosen= # named by --stage
share_of_all=0
part=   # _first or _second, for the names of results

die() { printf 'check.sh: %s\n' "$*" >&2; exit 2; }
whole() { case $2 in '' | *[!0-9]* | 0?* | ????????*) die "$1 needs a whole number, not \"$2\"" ;; esac; }
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit 0 ;;
    --first) stages="$stages $first_stages"; share_of_all=$((share_of_all + 200)); part=${part}_first; shift; continue ;;
    --second) stages="$stages start $second_stages"; share_of_all=$((share_of_all + 300)); part=${part}_second; shift; continue ;;
    --stage | --out | --build | --prepared | --limit | --jobs) [ $# -gt 1 ] || die "$1 needs a value" ;;
    *) die "unknown option $1 (--help lists them)" ;;
  esac
  case $1 in
    --stage)
      case " $all_stages " in *" $2 "*) ;; *) die "--stage is one of: $all_stages" ;; esac
      stages="$stages $2"
      chosen=yes ;;
    --out) out=$2 ;;
    --build) build=$2 ;;
    --prepared) prepared=$2 ;;
    --limit) whole --limit "$2"; limit=$2 ;;
    --jobs) whole --jobs "$2"; jobs=$2 ;;
  esac
  shift 2
done
[ "$share_of_all" -gt 0 ] || share_of_all=525
limit=${limit:-$share_of_all}
[ "$limit" -gt 0 ] || die '--limit needs a number above 0'
stages=${stages:-$first_stages layers step peer profile minilm stories}
out=${out:-$build/results}
mkdir -p "$out" "$build" || die "cannot make $out and $build"
out=$(cd "$out" && pwd)
build=$(cd "$build" && pwd)
(: >"$out/table.new") 2>/dev/null && rm "$out/table.new" || die "cannot write to $out"
work=$(mktemp -d) || exit 1
running= # the process that `within` waits for
trap '[ -z "$running" ] || kill "$running" 2>/dev/null; reap; rm -rf "$work"' EXIT
reap() { :; } # until there is something to end
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for tool in timeout awk sed tail xargs find; do command -v $tool >/dev/null || die "no $tool"; done
now() { date +%s; }
end=$(($(now) + limit))
deadline=$end
PATH=$PATH:/usr/local/cuda/bin
CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} # the first GPU, where there are several
CUDA_DEVICE_ORDER=PCI_BUS_ID
export PATH CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER

# --- the machine -----------------------------------------------------------------------------------------------------
gpu=
driver=
arch=90a
if command -v nvidia-smi >/dev/null 2>&1; then
  facts=$(timeout 30 nvidia-smi -i 0 --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>/dev/null) || facts=
  case $facts in
    *,*) gpu=${facts%%,*}; driver=$(printf '%s' "$facts" | cut -d, -f2 | tr -d ' ') ;;
  esac
  case ${facts##*, } in
    9.0) ;;
    [0-9].[0-9] | [0-9][0-9].[0-9]) arch=$(printf '%s' "${facts##*, }" | tr -d .) ;;
  esac
fi
nvcc=${CUDACXX:-$(command -v nvcc || true)}
toolkit=none
[ -z "$nvcc" ] || toolkit=$(timeout 10 "$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\), V\([0-9.]*\).*/\2/p')
cores=$(nproc 2>/dev/null || echo 2)
if [ -z "$jobs" ]; then
  jobs=$cores
  gib=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null)
  if [ -n "$gib" ] && [ "$gib" -lt $((3 * jobs)) ]; then jobs=$(((gib + 2) / 3)); fi
  [ "$jobs" -gt 0 ] || jobs=1
fi
beside=8 # processes that share the GPU
[ "$beside" -le "$cores" ] || beside=$cores

programs='fedlora-gpu-smoke fedlora_gpu_tests fedlora_gpu_kernel_tests fedlora-bench-ceilings-cuda fedlora-bench-lora-cuda
  fedlora-bench-step-cuda fedlora-federation'
# unpacked NAME: NAME.tar.xz of what is prepared, in $build/NAME; what is there already and is the same stays.
unpacked() {
  sum=$(cksum <"$prepared/$1.tar.xz") || return 1
  [ "$(cat "$build/$1/cksum" 2>/dev/null)" != "$sum" ] || return 0
  rm -rf "$build/$1" "$build/$1.new"
  mkdir "$build/$1.new" || return 1
  if command -v xz >/dev/null; then xz -dc <"$prepared/$1.tar.xz"; else
    LD_LIBRARY_PATH=$prepared/xz "$prepared/xz/xz" -dc <"$prepared/$1.tar.xz"
  fi >"$build/$1.new/tar" && tar -C "$build/$1.new" -xf "$build/$1.new/tar" && echo "$sum" >"$build/$1.new/$1/cksum" &&
    mv "$build/$1.new/$1" "$build/$1" && rm -r "$build/$1.new" || { echo "cannot unpack $prepared/$1.tar.xz into $build"; return 1; }
}
# Where they are: built here, else the kit's.
bin=$build/bin
if commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
  [ -z "$(git -C "$root" status --porcelain -- . ':!benchmarks/results' 2>/dev/null)" ] || commit="$commit and changes"
else
  commit=$(cat "$prepared/commit" 2>/dev/null || echo unknown)
fi
if [ ! -x "$bin/fedlora-gpu-smoke" ] && [ -e "$prepared/kit.tar.xz" ]; then
  said=$(unpacked kit) || die "$said"
  bin=$build/kit/bin
  sources=$commit
  commit=$(cat "$prepared/commit" 2>/dev/null || echo unknown)
fi
# Programs of the kit open cuBLAS themselves: the toolkit's, else the one that PyTorch brings; of the runtime's major version.
major=$(ls "$build"/kit/lib/libcudart.so.* 2>/dev/null | sed -n '1s/.*libcudart\.so\.\([0-9]*\).*/\1/p')
if [ ! -e "/usr/local/cuda/lib64/libcublas.so.${major:-13}" ] && command -v "$python" >/dev/null; then
  theirs=$(timeout 10 "$python" -c 'import glob, sys, sysconfig
where = sysconfig.get_paths()["purelib"] + "/nvidia/*/lib/libcublas.so." + sys.argv[1]
print(*(path.rpartition("/")[0] for path in glob.glob(where)[:1]))' "${major:-13}" 2>/dev/null)
  [ -z "$theirs" ] || LD_LIBRARY_PATH=$theirs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:-}"
fi

# --- what stages use -------------------------------------------------------------------------------------------------
left() { echo $((deadline - $(now))); }
row() { printf '| %s | %s | %s |\n' "$stage" "$(printf '%s' "$1" | tr '|' '/')" "$(printf '%s' "$2" | tr '|' '/')" >>"$work/rows"; }
missed() { row "$1" "$2"; : >"$work/missed"; }
failed() { row "$1" "**$2**"; : >"$work/failed"; }
# within SECONDS COMMAND...: runs it until then, or until the stage's time is over. 124: it was not done.
within() {
  seconds=$1
  shift
  rest=$(left)
  [ "$seconds" -le "$rest" ] || seconds=$rest
  [ "$seconds" -gt 0 ] || return 124
  printf '$ %s\n' "$*"
  timeout -k 5 "$seconds" "$@" & # which a signal to this script reaches through the trap
  running=$!
  wait "$running"
  ended=$?
  running=
  return "$ended"
}
need_gpu() {
  [ -z "$gpu" ] || return 0
  row "$1" 'not run: no NVIDIA GPU'
  echo "no NVIDIA GPU: nvidia-smi finds none"
  : >"$work/no_gpu"
  return 1
}
need_program() {
  [ ! -x "$bin/$2" ] || return 0
  failed "$1" "not run: no $2 in $bin (prepare.sh makes a kit, --stage build builds here)"
  return 1
}
# side_by_side COUNT SECONDS FOLDER COMMAND...: for each line that is read, the command with {} replaced by it, so many at once, each
# for so many seconds. What it says is in FOLDER/NAME.log, its status in FOLDER/NAME.rc; NAME is the line with _ for what is not a
# letter, digit, dot or dash. Whatever has no .rc was not begun.
cat >"$work/one.sh" <<'END'
until=$1 folder=$2 seconds=$3 name=$(printf '%s' "$4" | tr -c 'A-Za-z0-9.-' _)
shift 4
left=$((until - $(date +%s)))
[ "$seconds" -le "$left" ] || seconds=$left
[ "$seconds" -gt 0 ] || exit 0
printf '$ %s\n' "$*" >"$folder/$name.log"
timeout -k 3 "$seconds" "$@" >>"$folder/$name.log" 2>&1 & # a group of its own, which `reap` knows
echo $! >"$folder/$name.pid"
status=0
wait $! || status=$?
rm -f "$folder/$name.pid"
echo "$status" >"$folder/$name.rc"
END
# reap: ends what side_by_side has begun and not ended.
reap() {
  find "$out" -name '*.pid' 2>/dev/null | while read -r file; do
    group=$(cat "$file" 2>/dev/null) && [ -n "$group" ] && kill -s KILL -- "-$group" 2>/dev/null
    rm -f "$file"
  done
}
side_by_side() {
  count=$1 each=$2 folder=$3
  shift 3
  mkdir -p "$folder"
  rm -f "$folder"/*.log "$folder"/*.rc
  cat >"$work/lines"
  # shellcheck disable=SC2016  # the inner shell expands
  within 900 sh -c 'lines=$1; shift; exec xargs -d "\n" -P "$@" <"$lines"' sh "$work/lines" \
    "$count" -I '{}' sh "$work/one.sh" "$deadline" "$folder" "$each" '{}' "$@"
  reap
  cat "$folder"/*.log 2>/dev/null
}
name_of() { printf '%s' "$1" | tr -c 'A-Za-z0-9.-' _; }
status_of() { # of a line that side_by_side has read
  found=$(cat "$1/$(name_of "$2").rc" 2>/dev/null)
  if [ -n "$found" ]; then echo "$found"; elif [ -e "$1/$(name_of "$2").log" ]; then echo 124; else echo none; fi
}
why() { # STATUS: of a program that gave no result
  case $1 in
    none) printf 'not begun in its time' ;;
    124 | 137) printf 'not done in its time' ;;
    134 | 139) printf 'died (status %s)' "$1" ;;
    *) printf 'ended with status %s and no result' "$1" ;;
  esac
}
# summary_of LOG STATUS: what doctest said, in words
summary_of() {
  cases=$(sed -n 's/.*test cases: *\([0-9]*\) | *\([0-9]*\) passed | *\([0-9]*\) failed.*/\1 \2 \3/p' "$1" | tail -n 1)
  assertions=$(sed -n 's/.*assertions: *\([0-9]*\) .*/\1/p' "$1" | tail -n 1)
  if [ -z "$cases" ]; then
    why "$2"
  elif [ "${cases##* }" -ne 0 ]; then
    printf '%s of %s test cases failed' "${cases##* }" "${cases%% *}"
  elif [ "$2" -ne 0 ]; then
    printf 'ended with status %s after %s test cases' "$2" "${cases%% *}"
  elif [ "${cases%% *}" -eq 0 ]; then
    printf 'no such test case'
  else
    printf 'all %s test cases passed, %s assertions' "${cases%% *}" "$assertions"
  fi
}
again() { printf '%s\n' "$*" >>"$work/again"; } # what the next --second begins with

# --- start -----------------------------------------------------------------------------------------------------------
stage_start() {
  uname -a
  free -m 2>/dev/null
  [ -z "$gpu" ] || within 5 nvidia-smi
  row machine "${gpu:-no NVIDIA GPU}, $cores processors, $(awk '/^MemTotal/ { printf "%d GiB", $2 / 1048576 }' /proc/meminfo)"
  [ "${sources:-$commit}" = "$commit" ] || row 'the kit' "of $commit; the working tree is of $sources"
  if [ ! -x "$bin/fedlora-gpu-smoke" ]; then
    failed programs "none in $bin: prepare.sh makes a kit, --stage build builds here"
    return
  fi
  cannot=
  for program in $programs; do
    case $program in *_tests) ask=-ltc ;; *) ask=--help ;; esac
    need_program "$program" "$program" || continue
    within 20 "$bin/$program" "$ask" >"$work/said" 2>&1
    status=$?
    cat "$work/said"
    [ "$status" -ne 0 ] || continue
    [ "$program" != fedlora-gpu-smoke ] || cannot=yes
    timeout 5 ldd "$bin/$program"
    failed "$program" "cannot start (status $status): $(tail -n 1 "$work/said")"
  done
  if [ -n "$cannot" ] && [ "$bin" != "$build/bin" ]; then
    deadline=$end # without it nothing else is worth its time
    if configured OFF && within 300 cmake --build "$build" --parallel "$jobs" --target fedlora-gpu-smoke; then
      bin=$build/bin
      row fedlora-gpu-smoke 'built here, alone'
    else
      failed fedlora-gpu-smoke 'could not be built here; start.txt says why'
    fi
  fi
}

# --- build -----------------------------------------------------------------------------------------------------------
# configured ALL: makes $build ready to build everything in (ON), or what needs CUDA alone (OFF); says what is wrong.
configured() {
  all=$1
  [ -n "$nvcc" ] || { echo 'no nvcc (CUDACXX names it)'; return 1; }
  generator=Ninja
  command -v ninja >/dev/null || generator='Unix Makefiles'
  prefix=
  if [ -e "$prepared/libraries.tar.xz" ]; then
    unpacked libraries || return 1
    prefix=$build/libraries
  else
    echo "no $prepared/libraries.tar.xz (prepare.sh makes it): taking what the machine has"
  fi
  CUDACXX=$nvcc within 300 cmake -S "$root" -B "$build" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_CUDA_ARCHITECTURES="$arch-real" -DFEDLORA_CUDA=ON -DFEDLORA_GPU_TESTS="$all" -DFEDLORA_BUILD_TESTS="$all" \
    -DFEDLORA_BUILD_EXAMPLES="$all" -DFEDLORA_BUILD_BENCHMARKS=ON -DFEDLORA_INSTALL=OFF
}
stage_build() {
  configured ON || { failed build 'CMake failed; build.txt says why'; return; }
  keep=-k0
  [ "$generator" = Ninja ] || keep=-k
  from=$(now)
  # shellcheck disable=SC2086  # a list
  within 1800 cmake --build "$build" --parallel "$jobs" --target $programs -- "$keep"
  status=$?
  bin=$build/bin
  for program in $programs; do [ -x "$bin/$program" ] || failed "$program" 'not built'; done
  case $status in
    0) row "sm_$arch, everything" "$(($(now) - from)) s with $jobs jobs" ;;
    124) failed "sm_$arch, everything" "not done in $(($(now) - from)) s; another --stage build goes on" ;;
    *) failed "sm_$arch, everything" 'failed; build.txt says why' ;;
  esac
}

# --- smoke -----------------------------------------------------------------------------------------------------------
# smoke CASES_FILE: a process for each; lines of the table for each family, and for each case that is not right
smoke() {
  side_by_side "$beside" 20 "$out/smoke" "$bin/fedlora-gpu-smoke" '{}' <"$1"
  sed 's,/.*,,' "$1" | LC_ALL=C sort -u >"$work/families"
  while read -r family; do
    good=0
    bad=0
    while read -r name; do
      case $name in "$family" | "$family"/*) ;; *) continue ;; esac
      status=$(status_of "$out/smoke" "$name")
      log=$out/smoke/$(name_of "$name").log
      if [ "$status" = 0 ] && grep -q '^ok ' "$log"; then
        good=$((good + 1))
      else
        bad=$((bad + 1))
        said=$(grep '^FAILED ' "$log" 2>/dev/null | head -n 1)
        case $status in none | 124 | 137) missed "$name" "$(why "$status")" ;; *) failed "$name" "${said:-$(why "$status")}" ;; esac
        again "smoke $name"
      fi
    done <"$1"
    [ "$good" -eq 0 ] || row "$family" "$good of $((good + bad)) right"
  done <"$work/families"
}
stage_smoke() {
  need_gpu 'every family of kernels' || return
  need_program 'every family of kernels' fedlora-gpu-smoke || return
  within 10 "$bin/fedlora-gpu-smoke" --list >"$work/cases"
  sed -i '/^\$ /d' "$work/cases"
  [ -s "$work/cases" ] || { failed 'every family of kernels' 'no list of cases'; return; }
  smoke "$work/cases"
}

# --- compute-sanitizer -----------------------------------------------------------------------------------------------
stage_sanitizer() {
  need_gpu 'compute-sanitizer' || return
  need_program 'compute-sanitizer' fedlora-gpu-smoke || return
  if ! command -v compute-sanitizer >/dev/null; then
    missed 'compute-sanitizer' 'not run: it is not installed'
    return
  fi
  within 10 "$bin/fedlora-gpu-smoke" --list >"$work/cases"
  grep '/bf16/odd$' "$work/cases" >"$work/odd" || { failed 'compute-sanitizer' 'no list of cases'; return; }
  for tool in memcheck racecheck; do
    [ $tool = memcheck ] || grep -E '^(attention|low_rank)' "$work/odd" >"$work/some"
    [ $tool = racecheck ] || cp "$work/odd" "$work/some"
    side_by_side "$beside" 30 "$out/$tool" compute-sanitizer --tool $tool --error-exitcode 86 --print-limit 20 \
      "$bin/fedlora-gpu-smoke" '{}' <"$work/some"
    clean=0
    while read -r name; do
      status=$(status_of "$out/$tool" "$name")
      log=$out/$tool/$(name_of "$name").log
      found=$(sed -n 's/^=* *\(ERROR\|RACECHECK\) SUMMARY: *//p' "$log" 2>/dev/null | tail -n 1)
      if grep -qi 'device not supported\|not supported on\|unable to launch\|failed to initialize' "$log" 2>/dev/null; then
        missed "$tool, $name" 'this machine does not allow it'
      elif [ "$status" = 0 ] && [ -n "$found" ]; then
        clean=$((clean + 1))
      elif [ -n "$found" ]; then
        failed "$tool, $name" "$found (status $status)"
      else
        missed "$tool, $name" "$(why "$status")"
      fi
    done <"$work/some"
    [ "$clean" -eq 0 ] || row $tool "$clean cases without a finding"
  done
}

# --- conformance -----------------------------------------------------------------------------------------------------
# conformance FILE: a process for each line "PROGRAM TOPIC"; one that dies is asked for its cases one by one
conformance() {
  for program in fedlora_gpu_tests fedlora_gpu_kernel_tests; do
    sed -n "s/^$program //p" "$1" >"$work/topics"
    [ -s "$work/topics" ] || continue
    need_program 'operations and models' $program || continue
    side_by_side "$beside" 60 "$out/$program" "$bin/$program" '-sf=*tests/cuda/{}_test.cpp' <"$work/topics"
    while read -r topic; do
      status=$(status_of "$out/$program" "$topic")
      said=$(summary_of "$out/$program/$(name_of "$topic").log" "$status" 2>/dev/null)
      case $said in
        all*) row "$topic" "$said" ;;
        not*) missed "$topic" "$said"; again "$program $topic" ;;
        *) failed "$topic" "$said"; again "$program $topic" ;;
      esac
      case $said in died* | ended*) ;; *) continue ;; esac
      timeout 10 "$bin/$program" -ltc "-sf=*tests/cuda/${topic}_test.cpp" 2>/dev/null | sed '/^\[doctest\]/d; /^=*$/d; s/,/\\,/g' >"$work/singles"
      side_by_side "$beside" 20 "$out/$program/$topic" "$bin/$program" "-sf=*tests/cuda/${topic}_test.cpp" '-tc={}' <"$work/singles"
      while read -r one; do
        status=$(status_of "$out/$program/$topic" "$one")
        said=$(summary_of "$out/$program/$topic/$(name_of "$one").log" "$status" 2>/dev/null)
        case $said in all*) ;; *) failed "$topic: $one" "$said" ;; esac
      done <"$work/singles"
    done <"$work/topics"
  done
}
stage_conformance() {
  need_gpu 'operations and models' || return
  [ -s "$bin/gpu_tests.txt" ] || { failed 'operations and models' "no $bin/gpu_tests.txt"; return; }
  conformance "$bin/gpu_tests.txt"
}
stage_again() {
  need_gpu 'what failed before' || return
  before=$prepared/failed_cases.txt
  [ -s "$before" ] || before=$out/failed_cases.txt
  if [ ! -s "$before" ]; then
    row 'what failed before' "nothing: no failed_cases.txt in $prepared or $out"
    return
  fi
  cp "$before" "$work/before"
  sed -n 's/^smoke //p' "$work/before" >"$work/cases"
  [ ! -s "$work/cases" ] || smoke "$work/cases"
  grep -v '^smoke ' "$work/before" >"$work/files"
  conformance "$work/files"
}

# --- what the device can do ------------------------------------------------------------------------------------------
stage_ceilings() {
  need_gpu 'ceilings' || return
  need_program 'ceilings' fedlora-bench-ceilings-cuda || return
  rm -f "$out/ceilings.json" # which is written in the end alone
  within 60 "$bin/fedlora-bench-ceilings-cuda" --limit "$(left)" --out "$out/ceilings.json" >"$work/said" 2>"$work/complaints"
  status=$?
  cat "$work/said" "$work/complaints"
  while IFS='	' read -r what value unit spread; do
    case $value in
      '') ;;
      failed) failed "$what" "$unit" ;;
      *) row "$what" "$value $unit${spread:+, spread $spread}" ;;
    esac
  done <"$work/said"
  case $status in
    0) ;;
    124) missed ceilings 'not all done in its time' ;;
    *) failed ceilings "status $status; ceilings.txt says more" ;;
  esac
}

# --- benches of LoRA kernels -----------------------------------------------------------------------------------------
# lora NAME SECONDS ARGUMENTS...: a file for `lora_rows`
lora() {
  file=$work/lora-$(name_of "$1").json
  each=$2
  what=$1
  shift 2
  within "$each" "$bin/fedlora-bench-lora-cuda" "$@" --benchmark_min_time=0.1 --benchmark_out="$file" --benchmark_out_format=json
  status=$?
  case $status in
    0) measured="$measured $file" ;;
    124) missed "$what" 'not done in its time' ;;
    *) failed "$what" "failed with status $status; $stage.txt says why" ;;
  esac
}
lora_rows() {
  [ -n "$measured" ] || return
  # shellcheck disable=SC2086  # a list
  if ! command -v "$python" >/dev/null; then
    cp $measured "$out/"
    missed 'LoRA kernels' 'no python3: lora-*.json hold the figures'
    return
  fi
  [ ! -e "$out/lora.json" ] || { cp "$out/lora.json" "$work/before.json"; measured="$work/before.json $measured"; }
  # shellcheck disable=SC2086  # a list
  "$python" "$root/benchmarks/gpu/merge_json.py" $measured >"$work/lora.json" || { failed 'LoRA kernels' 'not JSON'; return; }
  cp "$work/lora.json" "$out/lora.json"
  "$python" "$root/benchmarks/lora_table.py" "$out/lora.json"
  { [ -s "$out/ceilings.json" ] && "$python" "$root/benchmarks/gpu/model.py" "$out/lora.json" --ceilings "$out/ceilings.json"; } ||
    "$python" "$root/benchmarks/gpu/model.py" "$out/lora.json"
  "$python" "$root/benchmarks/gpu/merge_json.py" --ratios "$out/lora.json" >"$work/ratios"
  while IFS='	' read -r what ratio; do row "$what" "$ratio"; done <"$work/ratios"
}
stage_blocks() {
  need_gpu 'LoRA kernels' || return
  need_program 'LoRA kernels' fedlora-bench-lora-cuda || return
  measured=
  for block in 8192/768/3072 8192/4096/14336; do
    lora "block $block" 20 --shapes= --blocks=$block --dropouts=0 '--benchmark_filter=(base|fused|augmented)/.*cold'
  done
  lora_rows
}
stage_layers() {
  need_gpu 'LoRA kernels' || return
  need_program 'LoRA kernels' fedlora-bench-lora-cuda || return
  measured=
  for block in 8192/768/3072 8192/1024/4096 8192/2048/8192 8192/4096/14336; do
    lora "block $block" 30 --shapes= --blocks=$block --dropouts=0,0.1 '--benchmark_filter=cold'
  done
  lora layers 40 --blocks= --shapes=8192/768/768,8192/768/3072,8192/4096/4096 --ops=forward,backward
  lora_rows
}

# --- a step, and the same elsewhere ----------------------------------------------------------------------------------
stage_step() {
  need_gpu 'a step of BERT-base' || return
  need_program 'a step of BERT-base' fedlora-bench-step-cuda || return
  for arguments in 'bf16 fused on' 'bf16 fused off' 'bf16 plain on' 'tf32 fused on'; do
    # shellcheck disable=SC2086  # a list
    set -- $arguments
    within 30 "$bin/fedlora-bench-step-cuda" --dtype "$1" --path "$2" --graphs "$3" --seconds 2 >"$work/said" 2>&1
    status=$?
    cat "$work/said"
    what="BERT-base 32x128, $1, $2, graphs $3"
    said=$(sed -n 's/.*"ms_per_step": \([0-9.]*\), "peak_mib": \([0-9.]*\).*/\1 ms, \2 MiB in use/p' "$work/said")
    if [ "$status" -eq 0 ] && [ -n "$said" ]; then
      row "$what" "$said"
    elif [ "$status" -eq 124 ]; then
      missed "$what" 'not done in its time'
    else
      failed "$what" "status $status: $(tail -n 1 "$work/said")"
    fi
  done
}
stage_peer() {
  need_gpu 'a step against PyTorch + peft' || return
  need_program 'a step against PyTorch + peft' fedlora-bench-step-cuda || return
  if ! command -v "$python" >/dev/null; then
    missed 'a step against PyTorch + peft' 'not run: no python3'
    return
  fi
  modes=eager,compile,reduce-overhead
  [ "$part" != _second ] || modes=eager,compile # for want of time
  within 300 "$python" "$root/benchmarks/gpu/compare_torch_gpu.py" --ours "$bin/fedlora-bench-step-cuda" --limit "$(left)" \
    --modes $modes --rows "$work/peer" >"$work/said" 2>&1
  status=$?
  cat "$work/said"
  if [ -s "$work/peer" ]; then
    while IFS='	' read -r what result; do row "$what" "$result"; done <"$work/peer"
  fi
  case $status in
    0) ;;
    3) missed 'a step against PyTorch + peft' "not run: $(tail -n 1 "$work/said")" ;;
    124) missed 'a step against PyTorch + peft' 'not all done in its time' ;;
    *) failed 'a step against PyTorch + peft' "failed with status $status; peer.txt says why" ;;
  esac
}

# --- where the time of a kernel goes ---------------------------------------------------------------------------------
# slowest COUNT: of what ncu --csv says, the kernels that took most time together: 'name TAB what was seen' of each
slowest() {
  awk -F '","' -v most="$1" '
    function seen(metric, unit) { return (id, metric) in of ? sprintf("%.0f%s", of[id, metric], unit) : "?" }
    { gsub(/^"|"$/, "") }
    $1 == "ID" { for (i = 1; i <= NF; ++i) at[$i] = i }
    $1 ~ /^[0-9]+$/ && "Metric Value" in at {
      kernel = $at["Kernel Name"]
      sub(/^void fedlora::cuda::detail::run</, "", kernel)
      sub(/ *>\(.*/, "", kernel)
      gsub(/fedlora::(cuda::)?/, "", kernel)
      value = $at["Metric Value"]
      gsub(/,/, "", value)
      if (value !~ /^[0-9.]+(e[+-]?[0-9]+)?$/) next
      of[$1, $at["Metric Name"]] = value
      if ($at["Metric Name"] != "gpu__time_duration.sum") next
      ++launches[kernel]
      time[kernel] += value
      ++all
      whole += value
      if (launches[kernel] == 1 || value + 0 > of[longest[kernel], $at["Metric Name"]] + 0) longest[kernel] = $1
    }
    END {
      if (whole == 0) exit
      while (most-- > 0) {
        worst = ""
        for (kernel in time) if (worst == "" || time[kernel] > time[worst]) worst = kernel
        if (worst == "") exit
        id = longest[worst]
        printf "ncu: `%s`\t%.0f %% of the time of %d launches of ours, in %d; the longest %.1f us, ", worst,
          100 * time[worst] / whole, all, launches[worst], of[id, "gpu__time_duration.sum"] / 1000
        printf "memory %s, multiprocessors %s, warps %s, %s registers\n", seen("dram__throughput.avg.pct_of_peak_sustained_elapsed", " %"),
          seen("sm__throughput.avg.pct_of_peak_sustained_elapsed", " %"),
          seen("sm__warps_active.avg.pct_of_peak_sustained_active", " %"), seen("launch__registers_per_thread", "")
        delete time[worst]
      }
    }'
}
stage_profile() {
  need_gpu 'ncu' || return
  need_program 'ncu' fedlora-bench-step-cuda || return
  if ! command -v ncu >/dev/null; then
    missed ncu 'not run: it is not installed'
    return
  fi
  # From the steps of a model that has every kernel of BERT-base and starts quickly, after launches that only warm up.
  count=120
  metrics=gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__throughput.avg.pct_of_peak_sustained_elapsed
  metrics=$metrics,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
  within 60 ncu --clock-control none --kernel-name-base demangled -k regex:fedlora --launch-skip 200 --launch-count $count \
    --kill yes --metrics $metrics --print-units base --csv "$bin/fedlora-bench-step-cuda" --layers 3 --graphs off >"$work/said" 2>&1
  status=$?
  cat "$work/said"
  slowest 4 <"$work/said" >"$work/slowest"
  while IFS='	' read -r what said; do row "$what" "$said"; done <"$work/slowest"
  # Its status says little: --kill ends the program.
  launches=$(grep -c '"gpu__time_duration.sum"' "$work/said")
  [ "$launches" -ge $count ] && [ -s "$work/slowest" ] || {
    said=$(sed -n '/^==ERROR==/p' "$work/said" | head -n 1)
    missed ncu "$launches of $count launches (status $status)${said:+: $said}"
  }
}

# --- example federations ---------------------------------------------------------------------------------------------
# federation NAME EXAMPLES ARGUMENTS...: runs it; sets $accuracy, $seconds (training), $per_second (examples trained; a client
# trains EXAMPLES of them in a round, or "all" it has)
federation() {
  name=$1
  each=$2
  shift 2
  rm -rf "$build/federation/$name"
  mkdir -p "$build/federation"
  within 300 "$bin/fedlora-federation" --mode federated --out "$build/federation/$name" "$@"
  status=$?
  accuracy=
  seconds=
  per_second=
  [ -e "$build/federation/$name/metrics.csv" ] || return "$status"
  # mode,round,clients,examples,train_loss,accuracy,loss,macro_f1,bytes_up,bytes_down,train_seconds
  accuracy=$(awk -F, '$6 != "" && NR > 1 { a = $6 } END { if (a != "") printf "%.4f", a }' "$build/federation/$name/metrics.csv")
  seconds=$(awk -F, 'NR > 1 { s = $11 } END { printf "%.1f", s }' "$build/federation/$name/metrics.csv")
  per_second=$(awk -F, -v each="$each" 'NR > 1 { n += each == "all" ? $4 : $3 * each; s = $11 } END { if (s > 0) printf "%.1f", n / s }' "$build/federation/$name/metrics.csv")
  return "$status"
}
stage_minilm() {
  need_gpu 'MiniLM on AG News' || return
  need_program 'MiniLM on AG News' fedlora-federation || return
  if [ ! -e "$prepared/model.tar.xz" ] || [ ! -e "$prepared/tables.tar.xz" ]; then
    missed 'MiniLM on AG News' 'not run: prepare.sh laid no model or no tables ready'
    return
  fi
  { unpacked model && unpacked tables; } || { failed 'MiniLM on AG News' 'its files cannot be unpacked; minilm.txt says why'; return; }
  head -n 200 "$build/tables/ag_news/test.csv" >"$build/tables/few.csv"
  set -- --model "$build/model" --train "$build/tables/ag_news/train.csv" --text-column 2,3 --label-column 1 \
    --targets query,value --dropout 0.1 --batch 8 --cohort 0.25
  fast=
  for threads in 1 2; do
    what="MiniLM on AG News, GPU bf16, $threads clients at once"
    federation minilm-$threads all "$@" --test "$build/tables/few.csv" --rounds 8 --eval-every 8 --device cuda --dtype bf16 \
      --threads $threads
    status=$?
    if [ "$status" -eq 0 ] && [ -n "$accuracy" ] && [ -n "$per_second" ]; then
      row "$what" "accuracy $accuracy, $seconds s in training, $per_second examples a second"
    elif [ "$status" -eq 124 ]; then
      missed "$what" "not done in its time; $per_second examples a second"
    else
      failed "$what" "failed with status $status; minilm.txt says why"
    fi
    fast=${per_second:-$fast}
  done
  gemm=Eigen
  if ldd "$bin/fedlora-federation" | grep -q dnnl; then gemm=oneDNN; fi
  federation minilm-cpu $((12 * 8)) "$@" --test "$build/tables/few.csv" --rounds 1 --local-steps 12 --threads 2
  status=$?
  if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
    failed 'the same, two CPU threads' "failed with status $status; minilm.txt says why"
  elif [ -n "$per_second" ]; then
    row "the same, two CPU threads, $gemm" "$per_second examples a second"
    [ -z "$fast" ] || row 'GPU over two CPU threads (goal: 10)' "$(awk -v a="$fast" -v b="$per_second" 'BEGIN { printf "%.1f", a / b }')"
  else
    missed 'the same, two CPU threads' 'not done in its time'
  fi
}
stage_stories() {
  need_gpu 'stories260K on CLINC150' || return
  need_program 'stories260K on CLINC150' fedlora-federation || return
  reference=
  for dtype in cpu f32 tf32 bf16 f16; do
    what="stories260K on CLINC150, GPU $dtype"
    set -- --device cuda --dtype "$dtype"
    if [ $dtype = cpu ]; then
      what='stories260K on CLINC150, CPU f32'
      set --
    fi
    if federation $dtype all --rounds 20 "$@" && [ -n "$accuracy" ]; then
      said="accuracy $accuracy, $seconds s in training"
      [ $dtype != cpu ] || reference=$accuracy
      if [ -n "$accuracy" ] && awk -v a="$accuracy" -v b="${reference:-$accuracy}" 'BEGIN { exit !(a < b - 0.05) }'; then
        failed "$what" "$said; the CPU's is $reference"
      else
        row "$what" "$said"
      fi
    elif [ "$status" -eq 124 ]; then
      missed "$what" 'not done in its time'
    else
      failed "$what" "failed with status $status; stories.txt says why"
    fi
  done
}

# --- all of them -----------------------------------------------------------------------------------------------------
heading() {
  printf '%s; driver %s; CUDA toolkit %s; commit %s; %s\n' "${gpu:-no NVIDIA GPU}" "${driver:-none}" "$toolkit" "$commit" "$(date -u +%F)"
}
rm -f "$work/failed" "$work/no_gpu"
: >"$work/again"
named=0 # how many stages that were asked for by name are left
[ -z "$chosen" ] || for stage in $all_stages; do case " $stages " in *" $stage "*) named=$((named + 1)) ;; esac; done
for stage in $all_stages; do
  case " $stages " in *" $stage "*) ;; *) continue ;; esac
  # What a stage may take at most; those of --first add up to 200 s, those of --second to 300. What one leaves, later ones do not get:
  # their own time is enough.
  case $stage in
    start | sanitizer) share=20 ;;
    smoke) share=30 ;;
    conformance) share=65 ;;
    ceilings) share=35 ;;
    blocks) share=30 ;;
    again) share=25 ;;
    layers) share=75 ;;
    step) share=35 ;;
    peer) share=70 ;;
    profile) share=30 ;;
    minilm | stories) share=45 ;;
    build) share=$limit ;;
  esac
  if [ "$named" -gt 0 ]; then
    share=$(((end - $(now)) / named))
    named=$((named - 1))
  fi
  deadline=$(($(now) + share))
  [ "$deadline" -le "$end" ] || deadline=$end
  from_stage=$(now)
  : >"$work/rows"
  printf 'check.sh: %s, at most %s s\n' "$stage" "$(left)" >&2
  if [ "$(left)" -le 0 ]; then
    missed "$stage" 'not run: no time was left'
    heading >"$out/$stage.txt"
  else
    { heading; "stage_$stage"; } </dev/null >"$out/$stage.txt" 2>&1
  fi
  [ -s "$work/rows" ] || failed "$stage" 'said nothing'
  { printf -- '--- %s s; lines of the table\n' $(($(now) - from_stage)); cat "$work/rows"; } >>"$out/$stage.txt"
  sed 's/^/  /' "$work/rows" >&2

  {
    heading
    printf '\n| stage | what | result |\n|---|---|---|\n'
    for each in $all_stages; do
      # Of another GPU, driver or commit is another table.
      [ "$(head -n 1 "$out/$each.txt" 2>/dev/null)" = "$(heading)" ] || continue
      sed '1,/^--- [0-9]* s; lines of the table$/d' "$out/$each.txt"
    done
  } >"$work/table.md"
  cp "$work/table.md" "$out/table.new" && mv "$out/table.new" "$out/table.md" || { echo "check.sh: cannot write to $out" >&2; exit 1; }
done
cp "$work/again" "$out/failed_cases.txt" || { echo "check.sh: cannot write to $out" >&2; exit 1; }
result=$(printf '%s_%s%s' "${gpu:-no-gpu}" "$commit" "$part" | tr -c 'A-Za-z0-9._\n-' -)
rm -f "$out/$result.tar.gz"
(cd "$out" && tar -czf "$work/results.tar.gz" --exclude=./*.tar.gz .) && mv "$work/results.tar.gz" "$out/$result.tar.gz" &&
  cp "$out/table.md" "$out/$result.md" || { echo "check.sh: cannot write to $out" >&2; exit 1; }
[ -z "$gpu" ] || cp "$out/$result.md" "$out/$result.tar.gz" "$root/benchmarks/results/" || echo "check.sh: $out alone has them" >&2
echo
cat "$out/table.md"
[ ! -e "$work/failed" ] || exit 1
[ ! -e "$work/no_gpu" ] || exit 77
[ ! -e "$work/missed" ] || exit 3
