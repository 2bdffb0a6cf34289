#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes json_texts.json: texts, and what Python's json.loads makes of each (absent: it refuses). Standard library alone.

  python3 make_json_golden.py > json_texts.json
"""
import json
import sys

TEXTS = r'''
NaN|[NaN]|[Infinity, -Infinity]|{"a": NaN, "b": [1, {"c": -Infinity}]}|nan|NAN|-NaN|+Infinity|infinity|Inf|NaNx|[NaN1]|Infinit
-Infinityx|- Infinity|{"NaN": "NaN Infinity"}|"NaN"|[1,NaN,"a\"NaN"]|{NaN: 1}|{"a":NaN,"b":Infinity}|[NaN,NaN]|NaNNaN|[-Infinity]
{"a":1,"a":1}|{"a":1,"a":1.0}|{"a":NaN,"a":NaN}|{"a":{"b":1},"a":{"b":1}}|[{"a":1},{"a":2}]|{"a":"x","\u0061":"x"}
"\ud83d\ude00"|"\uD83D\uDE00"|"\u0041\u00e9\u20ac\u0000"|"\u12"|"\u12G4"|"\x"|"\/"|"\b\f\n\r\t\"\\"|"\"|"abc|"abc\|"tab	here"|"é€😀"
1000000000000000019884624838656|1e30|1E400|-1E400|1e-400|12.0|-0|-0.0|0e0|0.1|123456789012345678|2.5e-3|1E+2|1e5.5|1-1|--1|00|01|-01|-
1.|.5|1e|1e+|0x10|1_000|123abc|18446744073709551615|18446744073709551616|-9223372036854775808|-9223372036854775809
[1,]|{"a":1,}|{,}|[,1]|[1 2]|{"a" 1}|{a:1}|{'a':1}|{"a":[}|[{]|{"a":|{"a"|{|[|[1|]|}|[1]]|[] []|[]x|{"a":1 "b":2}|{"a":1,,"b":2}
null|nul|true|True|tru|false|falsey|None|//c|/**/1|#|{}|[]|{"":0}|[[[[]]]]|  [ 1 , 2 ]  |{ "a" : 1 }|undefined|'''

texts = [text for line in TEXTS.strip("\n").split("\n") for text in line.split("|")]
texts += ["", "   ", "\n\t\r {}\n", "\u000b1", "\u00a01", "\ufeff{}", "\u2028[]", "\"\u2028\"", "\"\x7f\"", "\"\x1f\"", "\x00", "\"\x00\"", "1\x00"]


def parsed(text):
    entry = {"text": text}
    try:
        entry["value"] = json.loads(text, parse_int=lambda digits: int(digits) if -(2**63) <= int(digits) < 2**64 else float(digits))
    except ValueError:
        pass
    return entry


json.dump([parsed(text) for text in dict.fromkeys(texts)], sys.stdout, indent=0)
sys.stdout.write("\n")
