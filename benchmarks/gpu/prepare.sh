#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds everything for an NVIDIA GPU here, where there need not be one, and lays it, with all that it needs, into one folder that
# git ignores. That folder goes along with the working tree to a GPU machine without a network or a compiler; check.sh runs it there.
#   prepare.sh [--model DIR] [--data DIR] [--without-model] [--arch NAME] [--build DIR] [WHERE]   (WHERE: .gpu-prepared in the project)
#   --model DIR      a BERT in safetensors, instead of the one that examples/get_minilm.sh brings
#   --data DIR       holds ag_news/ and sst2/; default $FEDLORA_DATA, else ../shared/data. Without them check.sh goes on without.
#   --arch NAME      CMake's name of the GPU's architecture; default 90a-real, which is Hopper
#   --build DIR      where it is built; default build-kit in the project
# It holds kit.tar.xz (programs, and libraries that a bare system lacks; they need an x86-64 with AVX2, glibc 2.36 and libstdc++ of
# GCC 12, or newer; cuBLAS and the driver are the GPU machine's), libraries.tar.xz (the headers of Eigen, doctest, Google Benchmark,
# CLI11, JSON, utf8proc and OpenSSL with the three of these that are libraries, to build there all the same), tables.tar.xz,
# model.tar.xz in F16, xz/ (to unpack them with), and `commit`. Run it again after every commit; a model that is there stays.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
where=$root/.gpu-prepared
given=
model=
with_model=yes
arch=90a-real
build=$root/build-kit
data=${FEDLORA_DATA:-$root/../shared/data}
# packed NAME: $work/NAME as NAME.tar.xz
packed() {
  tar -C "$work" -cf - "$1" | xz -9 >"$where/.new"
  mv "$where/.new" "$where/$1.tar.xz"
}
say() { printf 'prepare.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { say "$*"; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --model) [ $# -gt 1 ] || usage '--model needs a directory'; model=$2; shift 2 ;;
    --data) [ $# -gt 1 ] || usage '--data needs a directory'; data=$2; shift 2 ;;
    --without-model) with_model=; shift ;;
    --arch) [ $# -gt 1 ] || usage '--arch needs a name'; arch=$2; shift 2 ;;
    --build) [ $# -gt 1 ] || usage '--build needs a directory'; build=$2; shift 2 ;;
    -h | --help) sed -n '3,/^set /s/^# //p' "$0"; exit 0 ;;
    -*) usage "unknown option $1 (--help lists them)" ;;
    *) [ -z "$given" ] || usage "one WHERE, not \"$given\" and \"$1\""; given=$1; where=$1; shift ;;
  esac
done
if [ -n "$with_model" ] && [ -n "$model" ]; then
  for file in config.json tokenizer.json tokenizer_config.json model.safetensors; do
    [ -e "$model/$file" ] || die "no $file in $model"
  done
fi
mkdir -p "$where" "$build"
where=$(cd "$where" && pwd)
build=$(cd "$build" && pwd)
case $build in *[[:space:]]*) usage "--build needs a path without blanks, not \"$build\"" ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# --- programs --------------------------------------------------------------------------------------------------------
programs='fedlora-gpu-smoke fedlora_gpu_tests fedlora_gpu_kernel_tests fedlora-bench-ceilings-cuda fedlora-bench-lora-cuda
  fedlora-bench-step-cuda fedlora-federation'
generator=Ninja
command -v ninja >/dev/null || generator='Unix Makefiles'
# shellcheck disable=SC2016  # $ORIGIN is for the dynamic linker
cmake -S "$root" -B "$build" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CUDA_ARCHITECTURES="$arch" \
  -DCMAKE_CXX_FLAGS=-march=x86-64-v3 -DFEDLORA_NATIVE=OFF -DFEDLORA_ONEDNN=OFF -DOPENSSL_USE_STATIC_LIBS=ON -DFEDLORA_INSTALL=OFF \
  -DFEDLORA_CUDA=ON -DFEDLORA_CUBLAS_AT_RUN_TIME=ON -DCMAKE_CUDA_RUNTIME_LIBRARY=Shared -DBUILD_SHARED_LIBS=ON \
  -DFEDLORA_BUILD_TESTS=ON -DFEDLORA_GPU_TESTS=ON -DFEDLORA_BUILD_EXAMPLES=ON -DFEDLORA_BUILD_BENCHMARKS=ON \
  -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON -DCMAKE_INSTALL_RPATH='$ORIGIN/../lib;/usr/local/cuda/lib64' >"$work/configured" 2>&1 ||
  { cat "$work/configured" >&2; die 'CMake failed'; }
# shellcheck disable=SC2086  # a list
cmake --build "$build" --parallel --target $programs || die 'the build failed'
times >"$work/times" # of this shell, then of what it ran
say "built in $(sed -n '2s/ .*//p' "$work/times") of CPU time (what was built before is not counted)"
mkdir -p "$work/kit/bin" "$work/kit/lib"
for program in $programs; do strip -o "$work/kit/bin/$program" "$build/bin/$program"; done
cp "$build/bin/gpu_tests.txt" "$work/kit/bin/"
# What they are linked with and a system need not have; cuBLAS is opened at run time and stays where it is.
needed() { ldd "$@" | awk '$2 == "=>" && $3 ~ "^/" { print $3 }' | LC_ALL=C sort -u |
  grep -vE '/(libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+)\.so\.'; }
for library in $(LD_LIBRARY_PATH=$build needed "$work"/kit/bin/fedlora*); do
  strip -o "$work/kit/lib/$(basename "$library")" "$library"
done
rm -f "$where/commit" # the last thing that is written
packed kit
# A bare system has no xz.
rm -rf "$where/xz"
mkdir "$where/xz"
xz=$(command -v xz) || die 'no xz (Debian: xz-utils)'
for file in "$xz" $(ldd "$xz" | awk '$3 ~ "/liblzma" { print $3 }'); do strip -o "$where/xz/$(basename "$file")" "$file"; done

# --- libraries -------------------------------------------------------------------------------------------------------
compiler=${CXX:-c++}
command -v "$compiler" >/dev/null || die "no C++ compiler $compiler"
triplet=$("$compiler" -print-multiarch 2>/dev/null || true)
search=$("$compiler" -E -v -x c++ /dev/null 2>&1 | sed -n '/^#include <\.\.\.>/,/^End/s/^ //p')

# header NAME PACKAGE: the directory that holds it
header() {
  for directory in $search /usr/include/eigen3; do
    [ -e "$directory/$1" ] && { printf '%s\n' "$directory"; return; }
  done
  die "no $1 (Debian: $2)"
}
# library FILE PACKAGE: its path
library() {
  path=$("$compiler" -print-file-name="$1")
  [ -e "$path" ] || die "no $1 (Debian: $2)"
  printf '%s\n' "$path"
}
# config NAME VERSION TARGET LINES...: a CMake package, whose lines may use ${prefix}
config() {
  folder=$prefix/lib/cmake/$1
  mkdir -p "$folder"
  printf '%s\n' "set(PACKAGE_VERSION $2)" 'if(NOT PACKAGE_VERSION VERSION_LESS PACKAGE_FIND_VERSION)' \
    '  set(PACKAGE_VERSION_COMPATIBLE TRUE)' 'endif()' >"$folder/$1ConfigVersion.cmake"
  name=$1
  target=$3
  shift 3
  {
    # shellcheck disable=SC2016  # for CMake
    printf 'get_filename_component(prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)\nif(NOT TARGET %s)\n' "$target"
    printf '  %s\n' "$@"
    printf 'endif()\n'
  } >"$folder/${name}Config.cmake"
}
# version DIRECTORY MACRO MACRO MACRO: what the headers in it define them as, with dots between
version() {
  folder=$1
  shift
  for macro in "$@"; do
    cat "$folder"/* 2>/dev/null | awk -v macro="$macro" '$1 == "#define" && $2 == macro { print $3; exit }'
  done | paste -s -d .
}

prefix=$work/libraries
include=$prefix/include
mkdir -p "$include" "$prefix/lib"
if [ "$(uname -m)" != x86_64 ]; then
  say "this machine is no x86-64: the libraries taken along are for machines like this one"
fi
eigen=$(header Eigen/Core libeigen3-dev)
mkdir -p "$include/eigen3"
cp -r "$eigen/Eigen" "$include/eigen3/"
json=$(header nlohmann/json.hpp nlohmann-json3-dev)
cp -r "$json/nlohmann" "$include/"
doctest=$(header doctest/doctest.h doctest-dev)
cp -r "$doctest/doctest" "$include/"
cli=$(header CLI/CLI.hpp libcli11-dev)
cp -r "$cli/CLI" "$include/"
cp "$(header utf8proc.h libutf8proc-dev)/utf8proc.h" "$include/"
bench=$(header benchmark/benchmark.h libbenchmark-dev)
cp -r "$bench/benchmark" "$include/"
ssl=$(header openssl/evp.h libssl-dev)
cp -rL "$ssl/openssl" "$include/"
if [ -n "$triplet" ] && [ -d "/usr/include/$triplet/openssl" ]; then cp -rL "/usr/include/$triplet/openssl" "$include/"; fi
cp "$(library libutf8proc.a libutf8proc-dev)" "$prefix/lib/"
cp "$(library libcrypto.a libssl-dev)" "$prefix/lib/"
# Debian has Google Benchmark as a shared library; by the name that programs look for it at run time.
shared=$(library libbenchmark.so libbenchmark-dev)
name=$(basename "$(readlink -f "$shared")")
soname=$(objdump -p "$shared" 2>/dev/null | awk '$1 == "SONAME" { print $2 }')
cp -L "$shared" "$prefix/lib/${soname:-$name}"

# shellcheck disable=SC2016  # for CMake
{
  config Eigen3 "$(version "$eigen/Eigen/src/Core/util" EIGEN_WORLD_VERSION EIGEN_MAJOR_VERSION EIGEN_MINOR_VERSION)" \
    Eigen3::Eigen 'add_library(Eigen3::Eigen INTERFACE IMPORTED)' \
    'set_target_properties(Eigen3::Eigen PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include/eigen3")'
  folder=$json/nlohmann
  [ ! -e "$folder/detail/abi_macros.hpp" ] || folder=$folder/detail
  config nlohmann_json "$(version "$folder" NLOHMANN_JSON_VERSION_MAJOR NLOHMANN_JSON_VERSION_MINOR NLOHMANN_JSON_VERSION_PATCH)" \
    nlohmann_json::nlohmann_json \
    'add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)' \
    'set_target_properties(nlohmann_json::nlohmann_json PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include")'
  config doctest 2.4.0 doctest::doctest 'add_library(doctest::doctest INTERFACE IMPORTED)' \
    'set_target_properties(doctest::doctest PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include")'
  config CLI11 2.0.0 CLI11::CLI11 'add_library(CLI11::CLI11 INTERFACE IMPORTED)' \
    'set_target_properties(CLI11::CLI11 PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include")'
  config benchmark 1.7.0 benchmark::benchmark 'add_library(benchmark::benchmark SHARED IMPORTED)' \
    'set_target_properties(benchmark::benchmark PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include"' \
    '  IMPORTED_LOCATION "${prefix}/lib/'"${soname:-$name}"'" IMPORTED_SONAME '"${soname:-$name}"')'
  config utf8proc 2.5.0 utf8proc::utf8proc 'add_library(utf8proc::utf8proc STATIC IMPORTED)' \
    'set_target_properties(utf8proc::utf8proc PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "${prefix}/include"' \
    '  IMPORTED_LOCATION "${prefix}/lib/libutf8proc.a" INTERFACE_COMPILE_DEFINITIONS UTF8PROC_STATIC)'
}
packed libraries

# --- tables ----------------------------------------------------------------------------------------------------------
# Their terms limit AG News and SST-2 to research: they go into the ignored folder alone.
mkdir "$work/tables"
for table in ag_news/train.csv ag_news/test.csv sst2/train.tsv sst2/dev.tsv; do
  [ -e "$data/$table" ] || continue
  mkdir -p "$work/tables/${table%/*}"
  cp "$data/$table" "$work/tables/$table"
  chmod u+w "$work/tables/$table"
done
if [ -e "$work/tables/ag_news/train.csv" ] && [ -e "$work/tables/ag_news/test.csv" ]; then
  packed tables
else
  say "no ag_news/ in $data: check.sh will have stories260K and CLINC150 alone (--data names another directory)"
  rm -f "$where/tables.tar.xz"
fi

# --- the model -------------------------------------------------------------------------------------------------------
if [ -n "$with_model" ] && [ ! -e "$where/model.tar.xz" ]; then
  [ -n "$model" ] || model=$(cd "$root" && sh examples/get_minilm.sh)
  mkdir "$work/model"
  cp "$model/config.json" "$model/tokenizer.json" "$model/tokenizer_config.json" "$work/model/"
  python3 "$root/benchmarks/gpu/f16.py" "$model/model.safetensors" "$work/model/model.safetensors"
  packed model
elif [ -z "$with_model" ]; then
  rm -f "$where/model.tar.xz"
fi

# --- which sources ---------------------------------------------------------------------------------------------------
if commit=$(git -C "$root" rev-parse --short=12 HEAD 2>/dev/null); then
  [ -z "$(git -C "$root" status --porcelain -- . ':!benchmarks/results' 2>/dev/null)" ] || commit="$commit and changes"
else
  commit=unknown
fi
printf '%s\n' "$commit" >"$where/commit"

kib=$(($(find "$where" -type f -exec cat {} + | wc -c) / 1024))
if git -C "$root" rev-parse >/dev/null 2>&1; then # tracked files go along
  tracked=$(git -C "$root" ls-files -z | (cd "$root" && xargs -0 cat | wc -c) | awk '{ print int($1 / 1024) }')
else
  tracked=0
fi
printf '%s: %d.%d MiB for commit %s\n' "$where" $((kib / 1024)) $((kib % 1024 * 10 / 1024)) "$commit"
limit_mib=60
[ -n "$with_model" ] || limit_mib=25
[ $((kib + tracked)) -le $((limit_mib * 1024)) ] || die "more than $limit_mib MiB with the tracked files: too much to go along"
