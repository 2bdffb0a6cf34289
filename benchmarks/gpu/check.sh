#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds everything for an NVIDIA GPU, checks it there and times it, in one call of at most nine minutes and without a network.
#   check.sh [--stage NAME]... [--out DIR] [--build DIR] [--prepared DIR] [--limit SECONDS] [--jobs N]
#   --stage NAME       only this part (again for another): build, conformance, sanitizer, federation, bench, peer
#   --out DIR          where results go; default build-gpu/results. A stage's file is complete when the stage ends.
#   --build DIR        default build-gpu in the project; what is built there already is used
#   --prepared DIR     what prepare.sh laid ready; default .gpu-prepared. Without it CMake looks for what the machine has.
#   --limit SECONDS    of all stages together; default 525. Stages that are named share it evenly.
#   --jobs N           compilers side by side; default one per processor and 3 GiB of memory
# Each stage has a time limit of its own; what it does not reach, its table says. In --out: STAGE.txt (what was said, and
# the stage's lines of the table), lora.json (the benches), table.md (the table of all stages that have been run with this --out).
# The table comes last on the screen too. Exit status: 0 if all that was asked for ran and agreed, 1 if something failed, 3 if
# something was left out or not done in its time (the table says what), 77 without a GPU.
# PYTHON names the python3 that has torch, transformers and peft; CUDACXX the nvcc.
set -u

root=$(cd "$(dirname "$0")/../.." && pwd) || exit 1
stages=
out=
build=$root/build-gpu
prepared=$root/.gpu-prepared
limit=525
jobs=
python=${PYTHON:-python3}
all_stages='build conformance sanitizer federation bench peer'

die() { printf 'check.sh: %s\n' "$*" >&2; exit 2; }
whole() { case $2 in '' | *[!0-9]* | 0?* | ????????*) die "$1 needs a whole number, not \"$2\"" ;; esac; }
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) sed -n '3,16s/^# //p' "$0"; exit 0 ;;
    --stage | --out | --build | --prepared | --limit | --jobs) [ $# -gt 1 ] || die "$1 needs a value" ;;
    *) die "unknown option $1 (--help lists them)" ;;
  esac
  case $1 in
    --stage)
      case $2 in build | conformance | sanitizer | federation | bench | peer) ;; *) die "--stage is one of: $all_stages" ;; esac
      stages="$stages $2" ;;
    --out) out=$2 ;;
    --build) build=$2 ;;
    --prepared) prepared=$2 ;;
    --limit) whole --limit "$2"; limit=$2 ;;
    --jobs) whole --jobs "$2"; jobs=$2 ;;
  esac
  shift 2
done
stages=${stages:-$all_stages}
out=${out:-$build/results}
mkdir -p "$out" "$build" || exit 1
out=$(cd "$out" && pwd)
build=$(cd "$build" && pwd)
{ : >"$out/table.new" && rm "$out/table.new"; } || die "cannot write to $out"
work=$(mktemp -d) || exit 1
running= # the process that `within` waits for
trap '[ -z "$running" ] || kill "$running" 2>/dev/null; rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
for tool in timeout awk sed tail; do command -v $tool >/dev/null || die "no $tool"; done
now() { date +%s; }
begun=$(now)
end=$((begun + limit))
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
[ -z "$nvcc" ] || toolkit=$("$nvcc" --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\), V\([0-9.]*\).*/\2/p')
if commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
  [ -z "$(git -C "$root" status --porcelain 2>/dev/null)" ] || commit="$commit and changes"
else
  commit=$(cat "$prepared/commit" 2>/dev/null || echo unknown)
fi
if [ -z "$jobs" ]; then
  jobs=$(nproc 2>/dev/null || echo 2)
  gib=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null)
  if [ -n "$gib" ] && [ "$gib" -lt $((3 * jobs)) ]; then jobs=$(((gib + 2) / 3)); fi
  [ "$jobs" -gt 0 ] || jobs=1
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
  [ ! -x "$build/bin/$2" ] || return 0
  failed "$1" "not run: $2 is not built"
  return 1
}
# summary_of LOG STATUS: what doctest said, in words
summary_of() {
  cases=$(sed -n 's/.*test cases: *\([0-9]*\) | *\([0-9]*\) passed | *\([0-9]*\) failed.*/\1 \2 \3/p' "$1" | tail -n 1)
  assertions=$(sed -n 's/.*assertions: *\([0-9]*\) .*/\1/p' "$1" | tail -n 1)
  if [ "$2" -eq 124 ]; then
    printf 'not done in its time'
  elif [ -z "$cases" ]; then
    printf 'ended with status %s and no result' "$2"
  elif [ "${cases##* }" -ne 0 ] || [ "$2" -ne 0 ]; then
    printf '%s of %s test cases failed' "${cases##* }" "${cases%% *}"
  elif [ "${cases%% *}" -eq 0 ]; then
    printf 'no such test case'
  else
    printf 'all %s test cases passed, %s assertions' "${cases%% *}" "$assertions"
  fi
}
# tests WHAT PROGRAM ARGUMENTS...: a line of the table
tests() {
  what=$1
  program=$build/bin/$2
  shift 2
  from=$(now)
  within 25 "$program" "$@" >"$work/tests" 2>&1 # one that hangs leaves the others their time
  status=$?
  cat "$work/tests"
  said=$(summary_of "$work/tests" "$status")
  case $said in
    all*) row "$what" "$said, $(($(now) - from)) s" ;;
    *) failed "$what" "$said" ;;
  esac
}

# --- build -----------------------------------------------------------------------------------------------------------
stage_build() {
  if [ -z "$nvcc" ]; then
    failed build 'no nvcc (CUDACXX names it)'
    return
  fi
  generator=Ninja
  command -v ninja >/dev/null || generator='Unix Makefiles'
  keep=-k0
  [ "$generator" = Ninja ] || keep=-k
  prefix=
  if [ -e "$prepared/libraries.tar.gz" ]; then
    if [ ! -e "$build/libraries" ] || [ -n "$(find "$prepared/libraries.tar.gz" -newer "$build/libraries")" ]; then
      rm -rf "$build/libraries" "$build/libraries.new"
      tar -C "$work" -xzf "$prepared/libraries.tar.gz" || { failed build "cannot unpack $prepared/libraries.tar.gz"; return; }
      cp -r "$work/libraries" "$build/libraries.new" && mv "$build/libraries.new" "$build/libraries" && touch "$build/libraries" ||
        { failed build "cannot write $build/libraries"; return; }
    fi
    prefix=$build/libraries
  else
    echo "no $prepared/libraries.tar.gz (benchmarks/gpu/prepare.sh makes it): taking what the machine has"
  fi
  CUDACXX=$nvcc within 900 cmake -S "$root" -B "$build" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$prefix" \
    -DCMAKE_CUDA_ARCHITECTURES="$arch" -DFEDLORA_CUDA=ON -DFEDLORA_GPU_TESTS=ON -DFEDLORA_BUILD_TESTS=ON -DFEDLORA_BUILD_EXAMPLES=ON \
    -DFEDLORA_BUILD_BENCHMARKS=ON -DFEDLORA_INSTALL=OFF || { failed build 'CMake failed; build.txt says why'; return; }
  from=$(now)
  within 900 cmake --build "$build" --parallel "$jobs" --target \
    fedlora_gpu_tests fedlora_gpu_kernel_tests fedlora-federation fedlora-bench-lora-cuda fedlora-bench-step-cuda -- "$keep"
  status=$?
  for program in fedlora_gpu_tests fedlora_gpu_kernel_tests fedlora-federation fedlora-bench-lora-cuda fedlora-bench-step-cuda; do
    [ -x "$build/bin/$program" ] || failed "$program" 'not built'
  done
  if [ "$status" -eq 0 ]; then
    row "sm_$arch, everything" "$(($(now) - from)) s with $jobs jobs"
  elif [ "$status" -eq 124 ]; then
    failed "sm_$arch, everything" "not done in $(($(now) - from)) s; another --stage build goes on"
  else
    failed "sm_$arch, everything" 'failed; build.txt says why'
  fi
}

# --- conformance -----------------------------------------------------------------------------------------------------
stage_conformance() {
  need_gpu 'operations and models against the CPU' || return
  need_program 'operations and models against the CPU' fedlora_gpu_tests || return
  for type in Float32:float32 Tf32:tf32 Bf16:bf16 F16:f16; do
    tests "operations, ${type#*:}" fedlora_gpu_tests "-tc=*Cuda${type%:*}>*"
    tests "whole models, ${type#*:}" fedlora_gpu_tests "-sf=*model_${type#*:}_test.cpp"
  done
  tests 'local training, graphs and threads' fedlora_gpu_tests '-sf=*training_test.cpp'
  tests 'low-rank terms by plain products' fedlora_gpu_tests '-tc=*CudaPlain*'
  need_program 'kernels by themselves' fedlora_gpu_kernel_tests || return
  tests 'kernels by themselves' fedlora_gpu_kernel_tests
}

# --- compute-sanitizer -----------------------------------------------------------------------------------------------
stage_sanitizer() {
  need_gpu 'compute-sanitizer' || return
  need_program 'compute-sanitizer' fedlora_gpu_tests || return
  if ! command -v compute-sanitizer >/dev/null; then
    missed 'compute-sanitizer' 'not run: it is not installed'
    return
  fi
  some='*several terms keep*,*dropout of probabilities*,*grouped queries*,*far mean*,*residual sum*,*cross-entropy*,*rotary*'
  some="$some,*mean pooling*,*gated activations*,*trainable linear*,*a language model computes*,*must grow*"
  for tool in memcheck racecheck; do
    part=$(left)
    [ $tool = racecheck ] || part=$((part / 2))
    from=$(now)
    within "$part" compute-sanitizer --tool $tool --error-exitcode 86 --print-limit 20 "$build/bin/fedlora_gpu_tests" "-tc=$some" \
      >"$work/tests" 2>&1
    status=$?
    cat "$work/tests"
    said=$(summary_of "$work/tests" "$status")
    found=$(sed -n 's/^=* *\(ERROR\|RACECHECK\) SUMMARY: *//p' "$work/tests" | tail -n 1)
    if grep -qi 'device not supported\|not supported on\|unable to launch\|failed to initialize' "$work/tests"; then
      missed $tool 'this machine does not allow it'
    elif [ "$status" -eq 124 ]; then
      findings=$(grep -c '^========= .*\(Invalid\|Race\|hazard\)' "$work/tests")
      said="not done in $(($(now) - from)) s; $findings findings until then"
      if [ "$findings" -eq 0 ]; then missed $tool "$said"; else failed $tool "$said"; fi
    elif [ -z "$found" ]; then
      failed $tool "ended with status $status and no summary; sanitizer.txt says more"
    else
      case $found in
        0\ *) case $said in all*) row $tool "$found; $said, $(($(now) - from)) s" ;; *) failed $tool "$found; $said" ;; esac ;;
        *) failed $tool "$found" ;;
      esac
    fi
  done
}

# --- the example federation ------------------------------------------------------------------------------------------
# federation NAME EXAMPLES ARGUMENTS...: runs it; sets $accuracy, $seconds (training), $per_second (examples trained; a client
# trains EXAMPLES of them in a round, or "all" it has)
federation() {
  name=$1
  each=$2
  shift 2
  rm -rf "$build/federation/$name"
  mkdir -p "$build/federation"
  within 300 "$build/bin/fedlora-federation" --mode federated --out "$build/federation/$name" "$@"
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
stage_federation() {
  need_gpu 'the example federation' || return
  need_program 'the example federation' fedlora-federation || return
  reference=
  for dtype in cpu f32 tf32 bf16 f16; do
    what="stories260K on CLINC150, GPU $dtype"
    set -- --device cuda --dtype "$dtype"
    if [ $dtype = cpu ]; then
      what='stories260K on CLINC150, CPU f32'
      set --
    fi
    if federation $dtype all --rounds 20 "$@"; then
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
      failed "$what" "failed with status $status; federation.txt says why"
    fi
  done
  if [ ! -e "$prepared/model/model.safetensors" ] || [ ! -e "$prepared/tables.tar.gz" ]; then
    missed 'MiniLM on AG News' 'not run: prepare.sh laid no model or no tables ready'
    return
  fi
  tar -C "$build" -xzf "$prepared/tables.tar.gz" || { failed 'MiniLM on AG News' "cannot unpack $prepared/tables.tar.gz"; return; }
  head -n 200 "$build/tables/ag_news/test.csv" >"$build/tables/few.csv"
  set -- --model "$prepared/model" --train "$build/tables/ag_news/train.csv" --text-column 2,3 --label-column 1 \
    --targets query,value --dropout 0.1 --batch 8 --cohort 0.25
  fast=
  if federation minilm-bf16 all "$@" --test "$build/tables/ag_news/test.csv" --rounds 20 --eval-every 4 --device cuda --dtype bf16; then
    row 'MiniLM on AG News, GPU bf16' "accuracy $accuracy, $seconds s in training, $per_second examples a second"
    fast=$per_second
  elif [ "$status" -eq 124 ]; then
    missed 'MiniLM on AG News, GPU bf16' "not done in its time; $per_second examples a second"
    fast=$per_second
  else
    failed 'MiniLM on AG News, GPU bf16' "failed with status $status; federation.txt says why"
  fi
  gemm=Eigen
  if ldd "$build/bin/fedlora-federation" | grep -q dnnl; then gemm=oneDNN; fi
  federation minilm-cpu $((12 * 8)) "$@" --test "$build/tables/few.csv" --rounds 1 --local-steps 12 --threads 2
  if [ "$status" -ne 0 ] && [ "$status" -ne 124 ]; then
    failed 'the same, two CPU threads' "failed with status $status; federation.txt says why"
  elif [ -n "$per_second" ]; then
    row "the same, two CPU threads, $gemm" "$per_second examples a second"
    [ -z "$fast" ] || row 'GPU over two CPU threads (goal: 10)' "$(awk -v a="$fast" -v b="$per_second" 'BEGIN { printf "%.1f", a / b }')"
  else
    missed 'the same, two CPU threads' 'not done in its time'
  fi
}

# --- benches of LoRA kernels -----------------------------------------------------------------------------------------
stage_bench() {
  need_gpu 'LoRA kernels' || return
  need_program 'LoRA kernels' fedlora-bench-lora-cuda || return
  rm -f "$work"/lora-*.json
  measured=
  for block in 8192/768/3072 8192/1024/4096 8192/2048/8192 8192/4096/14336; do
    file=$work/lora-$(printf '%s' "$block" | tr / -).json
    within 60 "$build/bin/fedlora-bench-lora-cuda" --shapes= --blocks="$block" --dropouts=0 --benchmark_min_time=0.1 \
      --benchmark_out="$file" --benchmark_out_format=json
    status=$?
    case $status in
      0) measured="$measured $file" ;;
      124) missed "block $block" 'not done in its time' ;;
      *) failed "block $block" "failed with status $status; bench.txt says why" ;;
    esac
  done
  # What time is left goes to single layers.
  file=$work/lora-layers.json
  if [ -n "$measured" ] && within 60 "$build/bin/fedlora-bench-lora-cuda" --blocks= --shapes=8192/768/768,8192/4096/4096 --ops=both \
    --benchmark_min_time=0.1 --benchmark_out="$file" --benchmark_out_format=json; then
    measured="$measured $file"
  fi
  [ -n "$measured" ] || return
  if ! command -v "$python" >/dev/null; then
    for file in $measured; do cp "$file" "$out/"; done
    missed 'LoRA kernels' 'no python3: lora-*.json hold the figures'
    return
  fi
  # shellcheck disable=SC2086  # a list
  "$python" "$root/benchmarks/gpu/merge_json.py" $measured >"$out/lora.json" || { failed 'LoRA kernels' 'lora-*.json: not JSON'; return; }
  "$python" "$root/benchmarks/lora_table.py" "$out/lora.json"
  "$python" "$root/benchmarks/gpu/merge_json.py" --ratios "$out/lora.json" >"$work/ratios"
  while IFS='	' read -r what ratio; do row "$what" "$ratio"; done <"$work/ratios"
}

# --- PyTorch + peft --------------------------------------------------------------------------------------------------
stage_peer() {
  need_gpu 'a step against PyTorch + peft' || return
  need_program 'a step against PyTorch + peft' fedlora-bench-step-cuda || return
  if ! command -v "$python" >/dev/null; then
    missed 'a step against PyTorch + peft' 'not run: no python3'
    return
  fi
  within 300 "$python" "$root/benchmarks/gpu/compare_torch_gpu.py" --ours "$build/bin/fedlora-bench-step-cuda" --limit "$(left)" \
    --rows "$work/peer" >"$work/said" 2>&1
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

# --- all of them -----------------------------------------------------------------------------------------------------
heading() {
  printf '%s; driver %s; CUDA toolkit %s; commit %s; %s\n' "${gpu:-no NVIDIA GPU}" "${driver:-none}" "$toolkit" "$commit" "$(date -u +%F)"
}
rm -f "$work/failed" "$work/no_gpu"
named=0 # how many stages that were asked for by name are left
[ "$stages" = "$all_stages" ] || for stage in $all_stages; do case " $stages " in *" $stage "*) named=$((named + 1)) ;; esac; done
for stage in $all_stages; do
  case " $stages " in *" $stage "*) ;; *) continue ;; esac
  case $stage in
    build) share=270 ;;
    bench) share=70 ;;
    peer) share=100 ;;
    sanitizer) share=50 ;;
    *) share=60 ;;
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
  { printf -- '--- %s s; lines of the table\n' $(($(now) - from_stage)); cat "$work/rows"; } >>"$out/$stage.txt"
  sed 's/^/  /' "$work/rows" >&2

  {
    heading
    printf '\n| stage | what | result |\n|---|---|---|\n'
    for each in $all_stages; do
      [ ! -e "$out/$each.txt" ] || sed '1,/^--- [0-9]* s; lines of the table$/d' "$out/$each.txt"
    done
  } >"$work/table.md"
  cp "$work/table.md" "$out/table.new" && mv "$out/table.new" "$out/table.md" || { echo "check.sh: cannot write to $out" >&2; exit 1; }
done
echo
cat "$out/table.md"
[ ! -e "$work/failed" ] || exit 1
[ ! -e "$work/no_gpu" ] || exit 77
[ ! -e "$work/missed" ] || exit 3
