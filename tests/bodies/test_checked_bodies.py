"""Bodies are checked by a policy while they are read: no spelling of a forbidden field passes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twisted_vllm.api_routes import ROUTES, BodyFields, ModelPlace
from twisted_vllm.bodies.json_body import read_body
from twisted_vllm.errors import FieldNotAllowed, ModelUndetermined
from twisted_vllm.field_policy.media import CACHE_NAME, MAX_URLS, MAX_VALUES, URL_MEMBERS
from twisted_vllm.field_policy.policy import FieldPolicy, GatewayFields, policy_of
from twisted_vllm.field_policy.rules import DEFAULT_FORBIDDEN, NO_RULES, FieldRules, rules_of

FIELDS_OF = {
    row.path: row.fields
    for row in ROUTES
    if row.model in (ModelPlace.BODY, ModelPlace.HEADER) and not row.audio_uploads
}
CHAT = FIELDS_OF["/v1/chat/completions"]
LOCAL = "http://127.0.0.1:8000/metrics"


def policy(key: FieldRules = NO_RULES, **options: Any) -> FieldPolicy:
    found = policy_of(GatewayFields(), key, NO_RULES, **options)
    assert found is not None
    return found


DEFAULT = policy()


def passes(body: bytes, fields: BodyFields = CHAT, rules: FieldPolicy = DEFAULT) -> bool:
    try:
        read_body(body, fields, rules)
    except FieldNotAllowed:
        return False
    return True


def escaped(draw: st.DrawFn, text: str) -> str:
    """Write a key with some of its characters escaped."""
    return "".join(f"\\u{ord(each):04{draw(st.sampled_from('xX'))}}" if draw(st.booleans()) else each for each in text)


_SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, bytes]:
    """A forbidden top-level field, and a body that has it somewhere among others, once or more often."""
    name = draw(st.sampled_from([path for path in DEFAULT_FORBIDDEN if "." not in path]))
    value = draw(st.sampled_from(["-1000", '"x"', "[1]", '{"a":{"b":1}}', "1.5", "NaN", '"\\ud800"', "true", "7e3"]))
    members = [f'"{escaped(draw, name)}"{draw(_SPACE)}:{draw(_SPACE)}{value}']
    for other in draw(st.lists(st.sampled_from([name, "n", "model", "messages", "priority2", "user"]), max_size=4)):
        what = "null" if other == name else draw(st.sampled_from(['"a"', "[]", "1", '"priority"']))
        members.append(f'"{escaped(draw, other)}":{what}')
    members = draw(st.permutations(members))
    return name, (draw(_SPACE) + "{" + ",".join(members) + draw(_SPACE) + "}" + draw(_SPACE)).encode()


@given(spellings(), st.sampled_from(sorted(FIELDS_OF)))
def test_no_spelling_of_a_forbidden_field_passes(spelling: tuple[str, bytes], route: str) -> None:
    name, body = spelling
    assert json.loads(body).keys() & {name}
    with pytest.raises((FieldNotAllowed, ModelUndetermined)) as caught:
        read_body(body, FIELDS_OF[route], DEFAULT)
    if isinstance(caught.value, FieldNotAllowed):
        assert caught.value.param == name or caught.value.param == "n"


@given(spellings(), st.sampled_from(["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]))
def test_another_encoding_is_not_read_at_all(spelling: tuple[str, bytes], encoding: str) -> None:
    with pytest.raises(ModelUndetermined):
        read_body(spelling[1].decode().encode(encoding), CHAT, DEFAULT)


@pytest.mark.parametrize("path", [each for each in DEFAULT_FORBIDDEN if "." in each])
def test_fields_inside_others_are_found(path: str) -> None:
    outer, inner = path.split(".")
    key = f"\\u{ord(inner[0]):04x}" + inner[1:]
    for name in (inner, key):
        for value in (f'{{"a":1,"{name}":2}}', f'{{"{name}":2,"{name}":null}}', f'{{"{name}":null,"{name}":2}}'):
            body = f'{{"model":"m","{outer}":{value}}}'.encode()
            for route, fields in FIELDS_OF.items():
                assert not passes(body, fields), (route, body)
    assert passes(f'{{"model":"m","{outer}":{{"a":1,"{inner}":null}}}}'.encode())


@pytest.mark.parametrize("n", ["129", "129.0", '"129"', '" 129"', "1e3", "Infinity", "129129129129129129129129129"])
def test_numbers_are_read_as_vllm_reads_them(n: str) -> None:
    for route, fields in FIELDS_OF.items():
        assert not passes(f'{{"model":"m","n":{n}}}'.encode(), fields), route
    for within in ("128", "128.0", '"128"', "true", "null", '"many"'):
        assert passes(f'{{"model":"m","n":{within}}}'.encode())


@pytest.mark.parametrize("text", ['"n":1,"n":500', '"n":500,"n":1', '"n":500,"\\u006e":1'])
def test_each_of_several_equal_members_counts(text: str) -> None:
    assert not passes(b'{"model":"m",%b}' % text.encode())


def test_schemas_count_by_their_size_in_bytes() -> None:
    for fields in (CHAT, FIELDS_OF["/v1/completions"], FIELDS_OF["/classify"]):
        for size, allowed in ((65_536 - 13, True), (65_536 - 12, False)):
            body = b'{"model":"m","structured_outputs":{"regex": "%b"}}' % (b"a" * size)
            assert passes(body, fields) is allowed
            assert passes(body[:-1] + b',"structured_outputs":null}', fields) is allowed


#: what each route takes for a medium
MEDIA: dict[str, str] = {
    "/v1/chat/completions": '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]',
    "/v1/chat/completions/batch": '"messages":[[{"content":[{"type":"video_url","video_url":{"url":"%s"}}]}]]',
    "/v1/responses": '"input":[{"role":"user","content":[{"type":"input_image","image_url":"%s"}]}]',
    "/v1/messages": '"messages":[{"role":"user","content":[{"type":"image","source":{"type":"url","url":"%s"}}]}]',
    "/v1/messages/count_tokens": '"messages":[{"content":[{"type":"image","source":{"type":"url","url":"%s"}}]}]',
    "/cohere/v2/chat": '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]',
    "/v1/embeddings": '"messages":[{"role":"user","content":[{"type":"audio_url","audio_url":{"url":"%s"}}]}]',
    "/pooling": '"input":[{"role":"user","content":[{"image_url":"%s"}]}]',
    "/classify": '"messages":[{"role":"user","content":[{"image_url":"%s"}]}]',
    "/score": '"text_1":"a","text_2":{"content":[{"type":"image_url","image_url":{"url":"%s"}}]}',
    "/rerank": '"query":"a","documents":{"content":[{"type":"image_url","image_url":{"url":"%s"}}]}',
    "/v2/embed": '"images":["%s"]',
    "/v1/systemone": '"state":"s","questions":{},"videos":["%s"]',
    "/tokenize": '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]',
    "/invocations": '"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"%s"}}]}]',
    "/inference/v1/generate": '"token_ids":[1],"sampling_params":{},"content_parts":[{"type":"image_url","url":"%s"}]',
}


@pytest.mark.parametrize("route", MEDIA)
def test_urls_are_judged_on_every_route_that_fetches_them(route: str) -> None:
    fields = FIELDS_OF[route]
    for url, allowed in (
        (LOCAL, False),
        ("file:///etc/passwd", False),
        (r"\u0068ttp://localhost/", False),
        (r"http:\/\/10.0.0.1\/", False),
        ("https://example.com/a.png", True),
        ("data:image/png;base64,AA==", True),
    ):
        body = f'{{"model":"m",{MEDIA[route] % url}}}'.encode()
        json.loads(body)
        assert passes(body, fields) is allowed, body
        assert passes(body.replace(b"url", b"\\u0075rl"), fields) is allowed, body
        twice = body[:-1] + b"," + (MEDIA[route] % "data:,x").encode() + b"}"
        assert passes(twice, fields) is allowed, twice


@pytest.mark.parametrize("value", ["https://example.com/", "/etc/passwd", "data:image/png;base64,AAAA", "iVBORw0KGgo="])
def test_no_text_is_an_image_in_python(value: str) -> None:
    url = '{"type":"image_url","image_url":{"url":"https://example.com/"}}'
    for key in ("image_pil", "image_\\u0070il"):
        part = f'{{"type":"image_url","{key}":"{value}"}}'
        for parts in (part, f"{url},{part}", f"{part},{url}", f"{url},{part},{url}"):
            assert not passes(f'{{"model":"m","messages":[{{"role":"user","content":[{parts}]}}]}}'.encode())
    for harmless in ('{"type":"image_url","image_pil":null,"uuid":null}', '{"type":"text","text":"image_pil"}'):
        assert passes(f'{{"model":"m","messages":[{{"role":"user","content":[{harmless},{url}]}}]}}'.encode())


@pytest.mark.parametrize("key", [*sorted(URL_MEMBERS), CACHE_NAME])
@pytest.mark.parametrize("form", ["\\u%04x", "\\u%04X"])
def test_no_escape_hides_a_key_of_media(key: str, form: str) -> None:
    for at, letter in enumerate(key):
        escaped = key[:at] + form % ord(letter) + key[at + 1 :]
        assert json.loads(f'"{escaped}"') == key
        part = f'{{"type":"image_url","{escaped}":"http://10.0.0.1/"}}'
        assert not passes(f'{{"model":"m","messages":[{{"role":"user","content":[{part}]}}]}}'.encode()), escaped


@pytest.mark.parametrize("kind", ["image_url", "audio_url", "video_url", "input_audio", "image_embeds"])
def test_no_key_names_a_medium_in_the_cache_that_all_share(kind: str) -> None:
    url = '{"type":"image_url","image_url":{"url":"https://example.com/"}}'
    for key in ("uuid", "\\u0075uid"):
        for part in (f'{{"type":"{kind}","{key}":"1"}}', f'{{"{kind}":null,"{key}":"1"}}'):
            for parts in (part, f"{url},{part}", f"{part},{url}"):
                assert not passes(f'{{"model":"m","messages":[{{"role":"user","content":[{parts}]}}]}}'.encode())
    schema = '{"type":"function","function":{"name":"f","parameters":{"properties":{"uuid":{"type":"string"}}}}}'
    call = '{"role":"assistant","tool_calls":[{"id":"1","function":{"name":"f","arguments":"{\\"uuid\\":\\"1\\"}"}}]}'
    text = '{"role":"user","content":[{"type":"text","text":"uuid","uuid":"1"}]}'
    assert passes(f'{{"model":"m","messages":[{call},{text}],"tools":[{schema}]}}'.encode())


def test_urls_in_tools_and_in_the_arguments_of_calls_pass() -> None:
    call = '{"role":"assistant","content":[{"type":"tool_use","id":"1","name":"fetch","input":{"url":"URL"}}]}'
    schema = '{"name":"fetch","input_schema":{"properties":{"image_url":{"type":"string"},"url":{"default":"URL"}}}}'
    text = f'{{"model":"m","messages":[{call},{{"role":"user","content":"see {LOCAL}"}}],"tools":[{schema}]}}'
    assert passes(text.replace("URL", LOCAL).encode(), FIELDS_OF["/v1/messages"])


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        (rules_of(("stream_options",)), '"stream":true', '"stream_options":{"include_usage":true}'),
        (rules_of(("stream",)), '"stream":false', '"stream":true'),
        (rules_of(("metadata.user_id",)), '"metadata":{"a":1}', '"metadata":{"user_id":"u"}'),
        (
            rules_of(("messages.content.image_url",)),
            '"messages":[{"content":"a"}]',
            '"messages":[{"content":[{"image_url":"data:,"}]}]',
        ),
        (
            rules_of(("messages.content.uuid",)),
            '"messages":[{"content":[{"uuid":null}]}]',
            '"messages":[{"content":[{"uuid":"1"}]}]',
        ),
        (rules_of((), {"messages": 1}), '"messages":[1]', '"messages":[1,2]'),
        (rules_of((), {"max_tokens": 9}), '"max_tokens":9', '"max_completion_tokens":10'),
        (rules_of((), {"min_tokens": 9}), '"min_tokens":9', '"min_tokens":"10"'),
        (rules_of((), {"user": 2}), '"user":"ab"', '"user":"abc"'),
        (rules_of(("my-field",)), '"my_field":1', '"my-field":1'),
        (rules_of((), {"temperature": 1}), '"temperature":0.5', '"temperature":1.5'),
        (rules_of(("tools.function.strict",)), '"tools":[{"function":{}}]', '"tools":[{"function":{"strict":true}}]'),
    ],
)
def test_the_rules_of_a_key_hold_for_any_field(rules: FieldRules, good: str, bad: str) -> None:
    of_key = policy(rules)
    assert passes(f'{{"model":"m",{good}}}'.encode(), CHAT, of_key)
    assert not passes(f'{{"model":"m",{bad}}}'.encode(), CHAT, of_key)
    name, _, value = bad.partition(":")
    hidden = '"' + "".join(f"\\u{ord(each):04x}" for each in name.strip('"')) + '":' + value
    assert not passes(f'{{"model":"m",{hidden}}}'.encode(), CHAT, of_key)


@pytest.mark.parametrize("name", ["maxTokens", "data_1", "my-field", "a_b", "list[]"])
def test_one_escaped_character_hides_no_key(name: str) -> None:
    of_key = policy(rules_of((name,)))
    for place, letter in enumerate(name):
        for form in "xX":
            hidden = f"{name[:place]}\\u{ord(letter):04{form}}{name[place + 1 :]}"
            assert not passes(f'{{"model":"m","{hidden}":1}}'.encode(), CHAT, of_key), hidden


def test_a_limit_of_a_number_reads_text_as_a_number() -> None:
    for body in ('"thinking":{"budget_tokens":"2000"}', '"routed_experts_prompt_start":"2000"'):
        of_key = policy(rules_of((), {"thinking.budget_tokens": 1024, "routed_experts_prompt_start": 1024}))
        assert not passes(f'{{"model":"m",{body}}}'.encode(), CHAT, of_key)
        assert passes(f'{{"model":"m",{body.replace("2000", "1000")}}}'.encode(), CHAT, of_key)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        (b'"tools":[{"type":"function","x":%b}]' % (b"1" * 5000), "not one valid JSON object"),
        (b'"tools":{"type":[1%b]}' % (b",1" * MAX_VALUES), "too many values"),
        (b'"images":["data:,"%b]' % (b',"data:,"' * MAX_URLS), "too many values"),
    ],
    ids=["a number that vLLM cannot read", "values", "URLs"],
)
def test_a_member_that_cannot_be_looked_at_is_refused(members: bytes, says: str) -> None:
    of_responses = policy_of(GatewayFields(), NO_RULES, NO_RULES, server_tools=True)
    with pytest.raises(ModelUndetermined, match=says):
        read_body(b'{"model":"m",%b}' % members, FIELDS_OF["/v1/responses"], of_responses)


def test_a_size_is_judged_without_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal members, each is judged: that must not take a multiple of the time."""
    monkeypatch.setattr("json.loads", lambda *_, **__: pytest.fail("decoded"))
    assert passes(b'{"model":"m",' + b'"response_format":{"a":1},' * 3 + b'"user":"%b"}' % (b"a" * 140_000))


def test_large_members_are_checked_too() -> None:
    text = "a" * 2_000_000
    for url, allowed in ((LOCAL, False), ("https://example.com/", True)):
        body = (
            f'{{"model":"m","messages":[{{"content":[{{"\\u0069mage_url":"{url}"}},{{"text":"{text}"}}]}}]}}'.encode()
        )
        assert passes(body) is allowed
    assert not passes(f'{{"model":"m","vllm_\\u0078args":{{"a":"{text}"}}}}'.encode())
    assert not passes(f'{{"model":"m","\\u0073tructured_outputs":{{"regex":"{text}"}}}}'.encode())


def test_tools_of_the_server_are_refused_in_responses() -> None:
    rules, fields = policy(server_tools=True), FIELDS_OF["/v1/responses"]
    assert passes(b'{"model":"m","input":"a","tools":[{"type":"function","name":"f"}]}', fields, rules)
    for text in ('"type":"mcp","server_label":"x"', r'"\u0074ype":"m\u0063p"', '"type":"mcp","type":"function"'):
        assert not passes(b'{"model":"m","input":"a","tools":[{%b}]}' % text.encode(), fields, rules)


#: ordinary bodies of the clients of each route
ORDINARY: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
        "frequency_penalty": 0.1,
        "logit_bias": {"50256": -100},
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": 10,
        "max_completion_tokens": 100_000,
        "n": 4,
        "presence_penalty": -1.5,
        "seed": -1,
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 2,
        "top_p": 0.5,
        "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning_effort": "high",
        "response_format": {"type": "json_object"},
        "service_tier": "auto",
        "store": True,
        "metadata": {"a": "b"},
        "modalities": ["text"],
        "prediction": None,
        "audio": {"voice": "alloy", "format": "wav"},
        "web_search_options": {},
        "prompt_cache_key": "k",
        "top_k": 5,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "min_tokens": 1,
        "chat_template_kwargs": {"enable_thinking": False},
        "structured_outputs": {"choice": ["a", "b"]},
    },
    "/v1/completions": {
        "prompt": ["a", "b"],
        "best_of": 2,
        "echo": True,
        "logprobs": 5,
        "suffix": None,
        "max_tokens": 16,
    },
    "/v1/responses": {
        "input": "a",
        "background": False,
        "store": True,
        "include": ["reasoning.encrypted_content"],
        "instructions": "b",
        "max_output_tokens": 9,
        "previous_response_id": "resp_1",
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "tools": [{"type": "function", "name": "f"}],
        "truncation": "auto",
    },
    "/v1/messages": {
        "max_tokens": 100,
        "messages": [{"role": "user", "content": "a"}],
        "metadata": {"user_id": "u"},
        "system": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}],
        "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [{"name": "f", "input_schema": {}}],
    },
    "/v1/embeddings": {"input": ["a", "b"], "encoding_format": "base64", "dimensions": 256, "user": "u"},
    "/cohere/v2/chat": {
        "messages": [{"role": "user", "content": "a"}],
        "documents": [{"data": {"url": LOCAL}}],
        "k": 3,
    },
    "/v2/embed": {"texts": ["a"], "input_type": "search_query", "embedding_types": ["float"], "truncate": "END"},
    "/rerank": {"query": "a", "documents": ["b", "c"], "top_n": 1},
    "/score": {"text_1": "a", "text_2": ["b"]},
    "/classify": {"input": "a"},
    "/pooling": {"input": [1, 2, 3]},
    "/tokenize": {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True},
    "/detokenize": {"tokens": [1, 2]},
}


@pytest.mark.parametrize("route", ORDINARY)
def test_ordinary_requests_pass(route: str) -> None:
    rules = policy(server_tools=route == "/v1/responses")
    body = json.dumps({"model": "m", **ORDINARY[route]}).encode()
    facts = read_body(body, FIELDS_OF[route], rules)
    assert facts == read_body(body, FIELDS_OF[route])
    assert facts.plain, "the fast path reads it"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([LOCAL, "data:,x", "40"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["url", "image_url", "type", "b"]), inner)
    ),
    max_leaves=8,
)
#: routes that ignore lists of URLs at the top level
WITHOUT_LISTS = {"/v1/chat/completions", "/v1/chat/completions/batch", "/v1/messages", "/cohere/v2/chat"}
_NAMES = st.sampled_from(
    ["n", "max_tokens", "priority", "messages", "images", "logit_bias", "stop", "tools", "chat_template_kwargs"]
)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=5), st.sampled_from(sorted(FIELDS_OF)))
def test_the_fast_path_decides_as_the_parser_of_vllm_does(members: list[tuple[str, Any]], route: str) -> None:
    if route in WITHOUT_LISTS:
        members = [(name, value) for name, value in members if name != "images"]
    inner = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in members)
    body = b'{"model":"m"%b}' % (f",{inner}" if inner else "").encode()
    # an escaped key is always read whole
    whole = b'{"\\u006dodel":"m"%b}' % (f",{inner}" if inner else "").encode()
    if route in WITHOUT_LISTS and body.count(b"[") <= 1:
        # without a list within a list the server fetches nothing; read whole, a URL is judged all the same
        assert passes(body, FIELDS_OF[route]) >= passes(whole, FIELDS_OF[route])
    else:
        assert passes(body, FIELDS_OF[route]) == passes(whole, FIELDS_OF[route])
