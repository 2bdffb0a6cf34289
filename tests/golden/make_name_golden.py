#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/name_patterns.json: which names of modules an expression matches, for Python's re (3.11 or later) as PEFT asks it.

`names`; `read`: for each expression one digit a name, `whole` of re.fullmatch (target_modules) and `end` of PEFT's pattern for the keys of
rank_pattern and alpha_pattern; null where Python refuses the expression. Flags at the beginning of a key go before PEFT's pattern: Python up
to 3.10 takes them so, later ones refuse them behind the beginning. `refused`: expressions that Python reads and fedlora does not.

  python3 make_name_golden.py
"""
import json
import pathlib
import re
import sys
import warnings

NAMES = """query
QUERY
self.query
layer.0.attention.self.query
bert.encoder.layer.0.attention.self.query
bert.encoder.layer.1.attention.self.key
bert.encoder.layer.11.attention.self.value
bert.encoder.layer.10.attention.output.dense
bert.encoder.layer.2.output.dense
bert.pooler.dense
classifier
classifier.out_proj
model.layers.0.self_attn.q_proj
model.layers.3.self_attn.v_proj
model.layers.12.mlp.down_proj
model.layers.31.mlp.gate_up_proj
model.vision-tower.blocks.7.Linear_fc1
lm_head
h.5.attn.c_attn
a+b[0]{2}&&c""".split("\n")

READ = [
    # What people write.
    "query", "self.query", r".*\.query", r".*(query|value)", r".*\.(q|v)_proj$", r"^(?!.*vision).*\.layers\.\d{1,2}\..*$",
    r"layers\.([0-9]|1[0-5])\..*(q|k|v|o)_proj", r"model\.layers\.\d+\.(self_attn|mlp)\.(.+)_proj", r".*layer\.(?:1|2|11)\..*",
    r"^classifier$", "dense|key", r"layer.*?\.dense", r"(.*\.)?out_proj", r".*\.layer\.1[01]\.attention\.(?:self|output)\..*",
    "(?i)QUERY", "(?P<x>query)", r"(?<=self\.)query", "query(?#c)", r"(?=.*attn).*proj", r".*(?<!down)_proj", r"(?!lm_head)\w+",
    # Flags.
    "(?i)CLASSIFIER", "(?i)Linear_FC1", "(?i:QUERY)|key", "(?i)(?s).*[A-Z]_PROJ", "(?#note)(?ims)lm_HEAD", "(?i)(?-i:Linear)_FC1", "(?i-s:q)uery",
    "(?s-i:query)", "(?a)\\w+", "(?u)query", "(?m)^query$", "(?ai)QUERY", "(?i)[^q]UERY", "(?i)[P-R]uery", "(?i)[Z-a]m_head", "(?i)\\x51uery", "que(?i)ry",
    "(?L)query", "(?)query", "(?-)query", "(?i-i:q)uery", "(?i-)query", "(?-:query)", "(?i-u:query)", "a|(?i)QUERY", "(?:(?i)QUERY)",
    # Quantifiers.
    r"model\.layers\.\d{2}.*", r".*\.\d{2,}\..*", r".*\.1{,1}\..*", ".*1{,}.*", ".*l{1,2}ayer.*", "a{2,1}", ".*s{2}+ifier", "clas{1,2}+ifier", "(?:[a-z]+){2}+", "(?:qu?|u)*+ery", "(?:q|qu)*+ery", "clas{1,2}+sifier",
    "clas{1,2}sifier", "cla(?:s){1}?s.*", ".*+query", ".*?query", ".*a++yer.*", "(?>.*)query", "(?>[^.]*\\.)*query", "(?:[^.]++\\.)*+query", "a**", "a*+*", "a???", "a{2}{3}",
    "(?:q*)*uery", "(?:|q)*uery", "(?:q|)+?uery", "(q{0,2}){2}uery", "(?:\\w+\\.?)+", "(?=q)*query", "(?:)*query", "^*query", "\\b+query", "*", "|*", "(?#c)*", "quer(?#c)y*", "qu*(?#c)?ery",
    "a+b{0}.*", "x{", "q{a}", "q{}", "{query", "{2}", ".*{2}.*", "a\\+b\\[0]\\{2\\}&&c", "a.b.0.{2}.{2}c", "a.b.0.{3}&+c", "a{99999}", "a{99999999999999}",
    # Classes.
    "[a-z]+", "[^.]+", "[a-z_.]+", "[]query]+", "[^]]+", "[[:alpha:]]query", "[a[b]+.*", "[a-z&&[^q]]uery", "[a&&b+\\[\\]0{2}c]+", "[[a]query", "[\\w.]+", "[\\w.-]+", "[\\W\\w]+", "[\\D]+",
    r"[^\d]+", r"[^\W]+", "[--q]uery", "[+--a]+.*", "[a-]query", "[\\]q]uery", "[\\x71]uery", "[\\161]uery", r".*layer\.[\61]\..*", "[q-\\x71]uery", "[\\b]query", "[\\8]", "[b-a]", "[a-\\d]", "[\\d-a]", "[a", "[]", "[^]",
    "[~~q]uery", "[||q]uery", "[a-z--[q]]uery", "[.]*query", "[\\d][\\s]", "[^\\n]+", "[\\Z]",
    # Escapes and anchors.
    r"\Aquery\Z", r"query\z", r"^query$", r"query$.*", r"(^)query", r"q\Auery", r".*\bquery\b", r".*\Bquery", r".*q\Buery", r".*\b\d\b.*", r".*_\b.*", r".*\w\b\W\w+", r"\161uery", r"\0161uery", r"\x71\u0075\U00000065ry",
    r"\x7", r"\u007", r"\hquery", r"\H+", r"\Rquery", r"\O+", r"\X+", r"\Kquery", r"\Gquery", r"\p{L}+", r"\P{L}", r"\yquery", r"\equery", r"\cq", r"\_", r"vision\-tower.*", r"model\.vision\-tower\..*", r"\.query", r"\/",
    r"\9query", r"\Query", r"\S+", r"\s*query", "query\\", r"\\query", r"\a", r"\tquery", r"q\u\ery", r"\d", r".*\d",
    # Groups.
    "(?<x>query)", "(?'x'query)", "(?P<1>query)", "(?P<x>q)(?P<x>uery)", "(?P<x>q)(?P<y_1>uery)", "(?P<>query)", "(?P<x", "(query", "query)", "()query", "(?:query", "(?!query)", "(?=)query", "(?!)", "(?!)*query",
    "(?#query", "(?<=q*)uery", "(?<=q|qu)ery", "(?:q(?<=q)u)ery", ".*(?<=self)\\.query", ".*(?<=(?:self|outp)(?:\\.))query", ".*(?<=self\\.(?=query)).*", ".*(?<=\\bself\\.)query", "(?<=a{2,3})b", "(?<!.)query", "(?<=^)query",
    ".*(?<!\\d\\.)[a-z_]+", "(?>query|que)", "(?>que|query)", "(?>q|qu)ery", "(?|a)", "(?*q)", "(*FAIL)", "|query", "query|", "(|self\\.)query", "a|b|(c|d|(e|query))",
    "", ".", ".*", "()", "^$", "(?:.*\\.)?(?:query)",
]
REFUSED = {  # what the message says
    r"(q)uery\1": "back-references", r"(?P<x>q)(?P=x)?uery": "back-references", r"(q)?(?(1)uery|key)": "conditions", r"(?x) query": "no flag x", r"(?x:qu ery)": "no flag x",
    "(?t)query": "flags a, i, m, s, u alone",  # a flag that Python has and does not document
    r"\N{LATIN SMALL LETTER Q}uery": r"\N{…}", "é|query": "ASCII", r"[\xe9]|query": "ASCII", r"\u00e9|query": "ASCII", "a{100001}|query": "100000 repetitions",
    r"query(?#é)": "ASCII",
}


def digits(match, pattern):
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError):
        return None
    return "".join("1" if match(compiled, name) else "0" for name in NAMES)


def whole(expression):
    return digits(re.Pattern.fullmatch, expression)


def end(expression):
    """PEFT 0.21, get_pattern_key."""
    try:
        re.compile(expression)
    except (re.error, OverflowError):
        return None  # a key that is no expression by itself: "a)|(b"
    flags = re.match(r"(?:\(\?#[^)]*\)|\(\?[aimsu]+\))*", expression).group()
    return digits(re.Pattern.match, flags + rf"(.*\.)?({expression[len(flags):]})$")


if __name__ == "__main__":
    assert sys.version_info >= (3, 11)
    warnings.simplefilter("ignore", FutureWarning)
    for expression in REFUSED:
        re.compile(expression)
    golden = {"names": NAMES, "read": [{"expression": e, "whole": whole(e), "end": end(e)} for e in READ],
              "refused": [{"expression": e, "message": m} for e, m in REFUSED.items()]}
    lines = ",\n".join(f" {json.dumps(key)}: [\n" + ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows) + "\n ]"
                       for key, rows in golden.items())
    (pathlib.Path(__file__).parent / "name_patterns.json").write_text("{\n" + lines + "\n}\n")
