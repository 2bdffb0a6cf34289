#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Reads what ptxas -v said of every kernel (cmake/keep_ptxas_report.sh keeps it). On sm_90a none may use local memory, by
# spilling or otherwise, and those of resources.txt may have no more than 1.1 times the registers and the static shared
# memory that they have there. (Dynamic shared memory is looked at by resources_test.cpp.) Kernels for other
# architectures that use local memory are named, and no more. Without kernels for sm_90a the test counts as skipped.
#   resources.sh REPORT...
set -u
table=$(dirname "$0")/resources.txt
for report in "$@"; do
  if [ ! -s "$report" ]; then
    echo "$report: not there, or empty; the object beside it must be built again"
    exit 1
  fi
  compiled=$(grep -c 'Compiling entry function' "$report")
  used=$(grep -c 'Used [0-9]* registers' "$report")
  if [ ! -f "$report" ] || [ "$compiled" -eq 0 ] || [ "$compiled" -ne "$used" ]; then
    echo "$report: names $compiled kernels and what $used of them use; the object beside it must be built again"
    exit 1
  fi
done
if [ $# -eq 0 ]; then
  echo 'usage: resources.sh REPORT...'
  exit 1
fi
cat "$@" | c++filt | sed 's/fedlora::cuda:://g; s/fedlora:://g' | awk -v table="$table" '
  # The kernel of "void detail::run<NormKernel<Bf16> >(NormKernel<Bf16>)".
  function readable(name) {
    sub(/^void detail::run</, "", name)
    sub(/>\(.*/, "", name)
    sub(/ $/, "", name)
    return name
  }
  function leaves(what, how) {
    print what " (" arch "): " how
    if (arch == "sm_90a") failed = 1
  }
  function compare(what, old, new) {
    if (new * 10 > old * 11) {
      print kernel ": " what " " old " -> " new
      failed = 1
    } else if (new * 11 < old * 10) {
      print kernel ": " what " " old " -> " new ", so much fewer that resources.txt should say so"
    }
  }
  /Compiling entry function/ {
    name = $0
    sub(/^[^\047]*\047/, "", name)
    arch = name
    sub(/\047 for \047.*/, "", name)
    sub(/.*\047 for \047/, "", arch)
    sub(/\047.*/, "", arch)
    name = readable(name)
    ++kernels[arch]
  }
  /Function properties for/ {
    part = $0
    sub(/.*Function properties for /, "", part)
    part = readable(part)
  }
  /bytes stack frame/ && !/^ *0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/ {
    sub(/^ */, "")
    leaves(part, $0)
  }
  /Used [0-9]+ registers/ {
    count = $0
    sub(/.*Used /, "", count)
    count += 0
    bytes = 0
    if (match($0, /[0-9]+ bytes smem/)) bytes = substr($0, RSTART) + 0
    if (/bytes lmem/) leaves(name, $0)
    if (count > registers[arch, name]) registers[arch, name] = count
    if (bytes > shared[arch, name]) shared[arch, name] = bytes
    if (count > most[arch]) {
      most[arch] = count
      largest[arch] = name
    }
  }
  END {
    if ("sm_90a" in kernels) {
      while ((status = (getline line < table)) > 0) {
        if (line ~ /^#/ || line == "") continue
        split(line, columns, " ")
        kernel = line
        sub(/^ *[0-9]+ +[0-9]+ +[0-9]+ +/, "", kernel)
        ++rows
        if (!(("sm_90a", kernel) in registers)) {
          print kernel ": not among the kernels for sm_90a"
          failed = 1
          continue
        }
        new = registers["sm_90a", kernel]
        fixed = shared["sm_90a", kernel] + 0
        print new " registers, " fixed " bytes: " kernel
        compare("registers", columns[1] + 0, new)
        compare("bytes of static shared memory", columns[2] + 0, fixed)
      }
      if (status < 0 || rows == 0) {
        print table ": no kernels in it"
        failed = 1
      }
    }
    for (arch in kernels) {
      all += kernels[arch]
      print arch ": " kernels[arch] " kernels, most registers: " most[arch] ", " largest[arch]
    }
    if (all == 0) print "no kernel in the reports"
    if (failed || all == 0) exit 1
    if (!("sm_90a" in kernels)) exit 77
  }'
