#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes include/fedlora/hf/tokenizer/known_classes.hpp: which tokenizer class transformers' AutoTokenizer takes for a name or a model type.

With `--check` nothing is written; the exit status says whether the header is what this transformers would give.
"""
import collections
import glob
import importlib
import logging
import pathlib
import sys
import textwrap

import transformers
from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS
from transformers.models.auto import tokenization_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

logging.disable(logging.WARNING)
HEADER = pathlib.Path(__file__).parents[2] / "include/fedlora/hf/tokenizer/known_classes.hpp"
READ = ["TokenizersBackend", "BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "RobertaTokenizer", "GPT2Tokenizer", "DebertaTokenizer",
        "GPTNeoXTokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "GemmaTokenizer"]  # hf/tokenizer/classes.hpp builds these
PLAIN = ("MistralCommonBackend", "PreTrainedTokenizerFast")  # with no mistral-common installed, the former is tokenizer.json alone


def names():
    found = set(SLOW_TO_FAST_CONVERTERS) | {n for n in auto.TOKENIZER_MAPPING_NAMES.values() if n}
    found |= {n for n in dir(transformers) if n.endswith(("Tokenizer", "TokenizerFast"))}
    found |= {"TokenizersBackend", "PythonBackend", "SentencePieceBackend", "MistralCommonBackend", "PreTrainedTokenizerBase", "BloomTokenizer"}
    root = pathlib.Path(transformers.__file__).parent / "models"
    for file in glob.glob(str(root / "*/tokenization_*.py")):
        path = pathlib.Path(file)
        try:
            module = importlib.import_module(f"transformers.models.{path.parent.name}.{path.stem}")
        except Exception:  # a tokenizer whose own packages are not installed
            continue
        found |= {n for n in vars(module) if n.endswith(("Tokenizer", "TokenizerFast"))}
    return sorted(found | {n[:-4] for n in found if n.endswith("Fast")})


def resolved(name):
    try:
        found = auto.tokenizer_class_from_name(name)
    except Exception:  # it is known, but not to be had here
        return name
    if found is None:
        return None
    return "TokenizersBackend" if found.__name__ == "PythonBackend" else found.__name__  # AutoTokenizer takes it for that


def rows(groups):
    for key, members in groups:
        text = " ".join(sorted(members))
        lines = textwrap.wrap(text, 110, break_on_hyphens=False)
        body = "\n     ".join(f'"{line}{"" if i + 1 == len(lines) else " "}"' for i, line in enumerate(lines))
        gap = "\n     " if len(key) + len(text) > 104 else " "
        yield f'    {{"{key}",{gap}{body}}},'


def main():
    classes = collections.defaultdict(list)
    for name in names():
        found = resolved(name)
        if found is None or (name.endswith("Fast") and resolved(name[:-4]) == found):
            continue
        classes[found if found in READ else ""].append(name)
    types = collections.defaultdict(list)
    for model_type, name in auto.TOKENIZER_MAPPING_NAMES.items():
        if name is None:  # its own packages are not installed: as if it were not registered
            continue
        name = name.removesuffix("Fast")
        types["TokenizersBackend" if name in PLAIN else name].append(model_type)
    order = lambda groups: sorted(groups.items(), key=lambda g: (READ.index(g[0]) if g[0] in READ else len(READ), g[0]))
    strange = [t for t in auto.TOKENIZER_MAPPING_NAMES if t not in CONFIG_MAPPING_NAMES]
    wrapped = lambda members: "\n    ".join(f'"{line} "' for line in textwrap.wrap(" ".join(sorted(members)), 110, break_on_hyphens=False))
    text = f"""// SPDX-License-Identifier: Apache-2.0
// What transformers {transformers.__version__} calls tokenizers: the classes that tokenizer_config.json may name, and the class of each model type.
// Written by tests/golden/make_tokenizer_classes.py.
#pragma once

#include <cstddef>
#include <string_view>

#include "fedlora/core/standard.hpp"

namespace fedlora::detail {{

/// A tokenizer class and the names, or the model types, that lead to it; the names are separated by spaces.
struct TokenizerNames {{
  std::string_view tokenizer_class, names;
}};

// clang-format off

/// Names of classes, a "Fast" at their end left out, by the class that they load as. The last row: classes that transformers knows and this
/// library does not build.
inline constexpr TokenizerNames tokenizer_class_names[] = {{
{chr(10).join(rows(order(classes)))}
}};

/// Model types by the class that transformers registers for them.
inline constexpr TokenizerNames tokenizer_model_types[] = {{
{chr(10).join(rows(order(types)))}
}};

/// Model types that are registered without a configuration class of their own: they count only beside a tokenizer_class.
inline constexpr std::string_view tokenizer_types_without_configuration =
    {wrapped(strange)};

/// Model types whose checkpoints name a wrong tokenizer_class: the registered one counts.
inline constexpr std::string_view tokenizer_types_named_wrongly =
    {wrapped(auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)};

// clang-format on

/// Whether `name` stands in a list of names separated by spaces.
constexpr bool is_listed(std::string_view name, std::string_view list) {{
  for (std::size_t at = name.empty() ? list.npos : list.find(name); at != list.npos; at = list.find(name, at + 1)) {{
    const std::size_t end = at + name.size();
    if ((at == 0 || list[at - 1] == ' ') && (end == list.size() || list[end] == ' ')) return true;
  }}
  return false;
}}

}}  // namespace fedlora::detail
"""
    if "--check" in sys.argv:
        sys.exit(HEADER.read_text() != text)
    HEADER.write_text(text)


if __name__ == "__main__":
    main()
