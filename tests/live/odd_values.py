"""Values of JSON members, as JSON texts, that two readers may understand differently."""

from __future__ import annotations

import re


def _split(texts: str) -> tuple[str, ...]:
    """Return the texts between line breaks or two spaces."""
    return tuple(re.split(r"\s{2,}", texts.strip()))


#: what pydantic may take as an integer, and some that it does not
INTEGERS = (
    *_split(
        r"""
        1  2  3  7  40  400  1900  0  -0  -1  -7  16384  16385  1.0  7.0  7.00  7e0  70e-1  0.7e1  4E2  1e3
        1E+3  7.5  1e15  1e16  1e19  1e400  0.0  -0.0  "1"  "7"  " 7 "  "7\n"  "\t7"  "\u00a07"  "\u20037\u2003"
        "\u2028 7"  "\u001f7"  "+7"  "-7"  "07"  "0007"  "-0"  "0"  "00"  "7.0"  "7.000"  "1_0"  "1_9_0_0"
        "0__7"  "0_7"  "+00_7.0"  "-0__7"  "1_0.0"  "+1_0.00"  "\u0037"  "7."  ".7"  "7e0"  "7.0e0"  "0x7"
        "\uff17"  "\u0667"  "1__0"  "_1"  "1_"  "+ 7"  ""  " "  "7.5"  "7 7"  "7\u0000"  "seven"  "NaN"  "inf"
        9007199254740993  9223372036854775807  9223372036854775808  18446744073709551616  "9007199254740993"
        -9223372036854775808  NaN  Infinity  -Infinity  true  false  null  []  [7]  {}  {"n":7}  "true"
        """
    ),
    '"' + "0" * 5000 + '7"',
    '"' + "0" * 5000 + 'x"',
    '"' + "1" * 4301 + '"',
    "1" * 400,
)
#: likewise for a Boolean
BOOLEANS = _split(
    r"""
    true  false  null  1  0  -0  1.0  0.0  -0.0  1e0  10e-1  0.5  2  -1  1e400  NaN  "1"  "0"  "true"
    "True"  "TRUE"  "tRuE"  "yes"  "YES"  "on"  "On"  "y"  "Y"  "t"  "T"  "false"  "False"  "no"  "off"  "n"
    "f"  "F"  "2"  ""  " true"  "true "  "1 "  " 1"  "null"  "o\u006e"  "\u0074rue"  "yes\u0000"  "y\u0435s"
    []  [0]  [true]  {}  {"a":1}
    """
)
#: likewise for a text
TEXTS = (
    *_split(
        r"""
        "m"  "other"  ""  "\u006d"  " m"  "m "  "m\u0000"  "M"  "\ud800"  "\ud83d\ude00"  "é"  null  5  1.5
        true  ["m"]  {}  {"model":"m"}  "m/../other"  "\"model\":\"other\""
        """
    ),
    '"' + "m" * 300 + '"',
)
#: prompts and conversations of every shape, two of them with line breaks or tabs
SHAPES = (
    *_split(
        r"""
        "hi"  ""  null  []  [1,2,3]  ["hi"]  ["hi","ho"]  ["1","2"]  [1,"2"]  ["1",2]  [1.0,2]  [true,1]
        [[1],[2,3]]  [["1"],[2]]  [[]]  [[],[1]]  [[1],"hi"]  ["hi",[1]]  ["hi",null]  [null]  [-1]  [" 1 "]
        "h\u0069"  7  true  {}  {"prompt":["a","b"]}  [{"role":"user","content":"hi"}]
        [{"role":"user","content":"hi"},{"role":"user","content":"hi"}]  [[{"role":"user","content":"hi"}]]
        [[{"role":"user","content":"hi"}],[{"role":"user","content":"hi"}]]
        [[{"role":"user","content":"hi"}],[]]  {"role":"user","content":"hi"}
        ["hi",{"role":"user","content":"hi"}]  {"content":[{"type":"text","text":"long"}]}
        {"content":[{"type":"text","text":"long"}],"x":1}  [{"role":"user","content":"hi"},null]
        [{"role":"user","content":[{"type":"text","text":"\"model\": 1"}]}]
        [{"role":"system","content":"\\"},{"role":"user","content":"n"}]
        """
    ),
    '[ "hi" ,\n"ho" ]',
    "[\t[1] , [2]]",
    "[" + ",".join(['"hi"'] * 40) + "]",
)
#: options of a stream, and metadata
OBJECTS = _split(
    r"""
    {}  null  []  ""  true  {"include_usage":true}  {"include_usage":false}  {"include_usage":null}
    {"include_usage":"yes"}  {"include_usage":1}  {"include_usage":"0"}  {"include_usage":2}
    {"include_usage":[]}  {"include_usage":true,"include_usage":false}  {"include\u005fusage":true}
    {"continuous_usage_stats":true}  {"include_usage":true,"continuous_usage_stats":"on"}
    {"n":40,"max_tokens":1900}  {"user_id":"u"}  {"user_id":5}
    """
)
#: parameters of /inference/v1/generate
SAMPLING = _split(
    r"""
    {}  null  []  {"max_tokens":7}  {"max_tokens":1900}  {"max_tokens":null}  {"max_tokens":"7"}
    {"max_tokens":7.0}  {"n":3}  {"n":3,"max_tokens":7}  {"n":"3"}  {"n":3.0}  {"n":true}  {"n":null}
    {"n":0}  {"n":1,"n":5}  {"max\u005ftokens":400}  {"max_tokens":1,"max_tokens":400}
    {"n":2,"best_of":9,"min_tokens":3}  {"max_tokens":0}  {"max_tokens":true}  {"max_tokens":" 7 "}
    {"n":" 3 ","max_tokens":"1_0"}  {"stream_interval":50,"max_tokens":40}  {"n":1e0}
    {"n":2e0,"max_tokens":1e2}  {"max_tokens":1e400}  {"max_tokens":9223372036854775808}  {"n":16385}
    """
)
#: what questions and documents have in common
STATES = _split(
    r"""
    "a long state"  ""  null  5  {"a":"long","b":"state"}  ["a","long","state"]  {"a":{"b":["c","d"]}}
    [1,2]  [[1],[2]]  "max_length"  "do_not_pad"  {"content":[{"type":"text","text":"long"}],"x":1}
    """
)
#: the questions of /v1/systemone
QUESTIONS = (
    *("{}", "null", "[]", '{"q":{"type":"noul"}}', '{"q":{"type":"noul"},"q":{"type":"noul"},"r":{"type":"noul"}}'),
    "{" + ",".join(f'"q{number}":{{"type":"noul"}}' for number in range(30)) + "}",
    '{"q":{"type":"noul","instructions":"a"},"\\u0071":{"type":"noul"},"R":{"type":"score"}}',
)
SALTS = ('"s"', '""', "null", "5", '"a@b"', '"' + "s" * 129 + '"', "[]", "{}", '"\\u0073"')

#: the values of each field
KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            *("n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens", "min_tokens", "priority"),
            *(
                "stream_interval",
                "top_n",
                "max_tokens_per_doc",
                "dimensions",
                "max_tool_calls",
                "truncate_prompt_tokens",
            ),
        ),
        INTEGERS,
    ),
    **dict.fromkeys(
        (
            *("stream", "use_beam_search", "echo", "ignore_eos", "background", "store", "include_reasoning"),
            *("stream_include_usage", "apply_softmax"),
        ),
        BOOLEANS,
    ),
    **dict.fromkeys(("model", "user", "safety_identifier", "previous_response_id", "request_id", "task"), TEXTS),
    **dict.fromkeys(
        (
            *("prompt", "messages", "input", "prompt_embeds", "texts", "items", "documents", "queries", "query"),
            *("text_1", "text_2", "data_1", "data_2", "token_ids", "tokens", "images"),
        ),
        SHAPES,
    ),
    **dict.fromkeys(("stream_options", "metadata"), OBJECTS),
    "sampling_params": SAMPLING,
    "cache_salt": SALTS,
    "questions": QUESTIONS,
    **dict.fromkeys(("state", "instructions", "instruction", "padding"), STATES),
}
#: the values of any field
ANY = (*INTEGERS, *BOOLEANS, *TEXTS, *SHAPES, *OBJECTS)
