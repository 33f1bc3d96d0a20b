"""``vllm-passthrough keys`` and ``usage`` against a real gateway."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import MASTER_KEY, PATIENCE, Foreground, ask, environment, wait_until
from twisted_vllm.cli.client.output import as_csv, as_table, columns, dollars, printable, shown

CHAT = '{"model": "simulated-model", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreground]:
    with Foreground(
        tmp_path_factory.mktemp("gateway"), free_port(), "--quickstart", LITELLM_MASTER_KEY=MASTER_KEY
    ) as running:
        yield running


def client(
    *arguments: str, url: str, key: str = MASTER_KEY, text: str | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "twisted_vllm", *arguments],
        env=environment(VLLM_PASSTHROUGH_URL=url, VLLM_PASSTHROUGH_KEY=key, PYTHONUTF8="1", **variables),
        input=text,
        stdin=subprocess.DEVNULL if text is None else None,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def at(gateway: Foreground) -> str:
    return f"http://127.0.0.1:{gateway.port}"


def done(gateway: Foreground, *arguments: str, key: str = MASTER_KEY) -> str:
    ended = client(*arguments, url=at(gateway), key=key)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert MASTER_KEY not in ended.stdout + ended.stderr
    return ended.stdout


def refused(gateway: Foreground, *arguments: str, key: str = MASTER_KEY, status: int = 1) -> str:
    ended = client(*arguments, url=at(gateway), key=key)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert key not in ended.stderr
    return " ".join(ended.stderr.split())


def test_the_life_of_a_key(gateway: Foreground) -> None:
    key = done(
        gateway, "keys", "create", "ada", "--models", "sim*", "--models", "qwen", "--rpm-limit", "2", "-q"
    ).strip()
    assert ask(gateway.port, "/v1/chat/completions", key, "POST", CHAT)[0] == 200
    record = json.loads(done(gateway, "keys", "show", "ada", "-o", "json"))
    assert (record["models"], record["rpm_limit"], record["status"]) == (["sim*", "qwen"], 2, "active")
    changed = done(gateway, "keys", "update", "ada", "--tags", "a", "--clear", "rpm-limit", "--max-budget", "7.50")
    assert "max_budget" in changed
    record = json.loads(done(gateway, "keys", "show", "ada", "-o", "json"))
    assert (record["rpm_limit"], record["max_budget"], record["tags"]) == (None, 7.5, ["a"])
    assert done(gateway, "keys", "may-call", "ada", "simulated-model").startswith("yes: ada and simulated-model")
    assert done(gateway, "keys", "block", "ada") == "blocked ada\n"
    assert ask(gateway.port, "/v1/chat/completions", key, "POST", CHAT)[0] == 401
    no = client("keys", "may-call", "ada", "simulated-model", url=at(gateway))
    assert no.returncode == 1
    assert "NO  key       This API key was blocked." in no.stdout
    assert done(gateway, "keys", "unblock", record["token"]) == f"unblocked {record['token']}\n"
    other = done(gateway, "keys", "regenerate", "ada", "-q").strip()
    assert ask(gateway.port, "/v1/chat/completions", key, "POST", CHAT)[0] == 401
    assert ask(gateway.port, "/v1/chat/completions", other, "POST", CHAT)[0] == 200
    assert "ada: 1 key stops working at once." in refused(gateway, "keys", "delete", "ada", status=2)
    assert done(gateway, "keys", "delete", "ada", "--yes") == "deleted ada\n"
    assert ask(gateway.port, "/v1/chat/completions", other, "POST", CHAT)[0] == 401


def test_a_new_key_is_shown_with_what_it_may_do(gateway: Foreground) -> None:
    lines = dict(
        line.split(None, 1) for line in done(gateway, "keys", "create", "eve", "--rpm-limit", "9").splitlines()
    )
    assert lines["key"].startswith("sk-")
    assert (lines["key_alias"], lines["rpm_limit"]) == ("eve", "9")
    assert lines["created_at"].endswith(" UTC")


def test_a_list_has_pages_filters_and_an_order(gateway: Foreground) -> None:
    for number in range(3):
        done(gateway, "keys", "create", f"listed-{number}", "--max-budget", str(number))
    table = done(gateway, "keys", "list", "--search", "listed-", "--sort", "key_alias", "--ascending").splitlines()
    assert table[0].split() == ["Alias", "Key", "Status", "Spent", "Budget", "Team", "User", "Models", "Expires"]
    assert [line.split()[0] for line in table[1:]] == ["listed-0", "listed-1", "listed-2"]
    ended = client("keys", "list", "--search", "listed-", "--limit", "2", url=at(gateway))
    assert len(ended.stdout.splitlines()) == 3
    assert "2 of 3 keys: --limit shows more" in ended.stderr
    rows = list(csv.DictReader(io.StringIO(done(gateway, "keys", "list", "--search", "listed-2", "-o", "csv"))))
    assert [(row["alias"], row["budget"]) for row in rows] == [("listed-2", "$2.00")]
    found = json.loads(done(gateway, "keys", "list", "--status", "blocked", "-o", "json"))
    assert [key for key in found if key["key_alias"].startswith("listed-")] == []


def test_several_keys_are_blocked_and_those_that_fail_are_named(gateway: Foreground) -> None:
    done(gateway, "keys", "create", "several-1")
    ended = client("keys", "block", "several-1", "nobody", url=at(gateway))
    assert ended.returncode == 1
    assert ended.stdout == "blocked several-1\n"
    assert "Error: nobody: No key has the alias `nobody`." in ended.stderr


def test_usage_is_reported_with_its_sum(gateway: Foreground) -> None:
    key = done(gateway, "keys", "create", "user-of-tokens", "-q").strip()
    for _ in range(2):
        assert ask(gateway.port, "/v1/chat/completions", key, "POST", CHAT)[0] == 200

    def rows() -> list[list[str]]:
        table = done(gateway, "usage", "report", "--by", "key", "--since", "1d").splitlines()
        return [line.split() for line in table if "user-of-tokens" in line]

    wait_until(rows)
    [(_, alias, requests, failed, prompt, _, completion, spend)] = rows()
    assert (alias, requests, failed, completion, spend) == ("user-of-tokens", "2", "0", "10", "$0.00")
    assert int(prompt) > 0
    assert done(gateway, "usage", "top", "--by", "key").splitlines()[-1].startswith("all ")
    listed = done(gateway, "usage", "requests", "--limit", "5")
    assert "user-of-tokens" in listed
    answer = json.loads(done(gateway, "usage", "requests", "--limit", "1", "-o", "json"))
    request = answer["data"][0]["request_id"]
    assert request in done(gateway, "usage", "request", request)
    as_text = done(gateway, "usage", "report", "--by", "key,model", "-o", "csv")
    assert as_text.startswith("start,key_id,api_key,key_alias,model,requests,")
    assert "this month" in done(gateway, "usage", "spend")


def test_a_member_sees_its_own_key_alone_and_may_make_none(gateway: Foreground) -> None:
    key = done(gateway, "keys", "create", "member", "-q").strip()
    assert "status 403" in refused(gateway, "keys", "create", "another", key=key)
    told = client("usage", "report", url=at(gateway), key=key)
    assert told.returncode == 0
    assert "user-of-tokens" not in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said", "status"),
    [
        (["keys", "lits"], "'lits' is not a command of vllm-passthrough keys; did you mean list?", 2),
        (["keys", "create", "x", "--rmp-limit", "3"], "--rmp-limit is not an option; did you mean --rpm-limit?", 2),
        (["keys", "create", "x", "--rpm-limit", "many"], "--rpm-limit: This must be a whole number", 2),
        (["keys", "create", "x", "--model-rpm-limit", "qwen"], "--model-rpm-limit: ", 2),
        (["keys", "create", "x", "--metadata", "{"], "--metadata: ", 2),
        (["keys", "update", "x"], "nothing to change", 2),
        (["keys", "update", "x", "--clear", "rpm"], "--clear rpm: there is no such field", 2),
        (["keys", "show", "sk-0123456789abcdef"], "a key among the arguments is visible", 2),
        (["keys", "list", "--key", "sk-0123456789abcdef"], "write --key-file FILE", 2),
        (["keys", "show", "nobody"], "there is no key 'nobody'", 1),
        (["keys", "delete", "nobody", "-y"], "there is no key 'nobody'", 1),
        (["usage", "report", "--by", "kye"], "'kye' is none of key, user, team", 2),
        (["usage", "report", "--since", "soon"], "--since takes a number and h, d or w", 2),
        (["usage", "report", "--start", "yesterday"], "status 400", 1),
        (["usage", "request", "0123"], "status 404", 1),
    ],
)
def test_a_mistake_is_named(gateway: Foreground, arguments: list[str], said: str, status: int) -> None:
    assert said in refused(gateway, *arguments, status=status)


def test_a_wrong_key_and_none_are_said(gateway: Foreground, tmp_path: Path) -> None:
    assert "is it the key of this gateway?" in refused(gateway, "keys", "list", key="sk-of-somebody-else")
    ended = client("keys", "list", url=at(gateway), key="")
    assert ended.returncode == 2
    assert "no key: set VLLM_PASSTHROUGH_KEY, or name a file" in ended.stderr


def test_the_key_comes_from_a_file_or_standard_input(gateway: Foreground, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{MASTER_KEY}\n")
    assert client("keys", "list", "--key-file", str(file), url=at(gateway), key="").returncode == 0
    assert client("keys", "list", "--key-file", "-", url=at(gateway), key="", text=MASTER_KEY).returncode == 0
    missing = client("keys", "list", "--key-file", "missing", url=at(gateway))
    assert (missing.returncode, "--key-file missing: No such file" in missing.stderr) == (2, True)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1", "nothing listens at http://127.0.0.1:1"),
        ("unix:/nowhere/socket", "nothing listens at unix:/nowhere/socket"),
        ("http://name.invalid:80", "the name in http://name.invalid:80 is not known"),
        ("127.0.0.1:4000", "is not the address of a gateway"),
        ("http://u:secret-word@127.0.0.1:1", "nothing listens at http://127.0.0.1:1"),
    ],
)
def test_an_address_without_a_gateway_is_said(url: str, said: str) -> None:
    ended = client("keys", "list", url=url)
    assert ended.returncode in (2, 3)
    assert said in " ".join(ended.stderr.split())
    assert "secret-word" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<p/>", "does not answer as a gateway does"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
            "it has no /key/list: it is no gateway, or an older one",
        ),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n", "sends us elsewhere"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not answer in HTTP"),
        (b"", "does not answer in HTTP"),
    ],
)
def test_another_program_at_the_address_is_noticed_and_gets_no_second_request(answer: bytes, said: str) -> None:
    accepted = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                accepted.append(connection.recv(65536))
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        ended = client("keys", "list", url=f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert ended.returncode == 3
    assert said in " ".join(ended.stderr.split())
    assert len(accepted) == 1


def test_a_gateway_at_a_unix_socket(tmp_path: Path) -> None:
    where = tmp_path / "s"
    listen = f"--listen=unix:{where}"
    with Foreground(tmp_path, free_port(), "--quickstart", listen, LITELLM_MASTER_KEY=MASTER_KEY):
        assert client("keys", "create", "near", url=f"unix:{where}").returncode == 0
        assert "near" in client("keys", "list", url=f"unix:{where}").stdout


def test_a_name_does_nothing_to_the_terminal() -> None:
    text = as_table([["\x1b[2Jevil\r\u202e", 1]], ["Name", "Count"], frozenset((1,)))
    assert text.splitlines()[1].startswith("\\x1b[2Jevil\\r\\u202e")
    assert text.isprintable() or "\n" in text
    assert printable("žluťoučký 模型") == "žluťoučký 模型"


def test_columns_are_aligned_by_what_a_terminal_shows() -> None:
    lines = as_table([["模型", 1], ["abcd", 22]], ["N", "C"], frozenset((1,))).splitlines()
    assert {columns(line) for line in lines} == {8}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "$0.00"), (1234.5, "$1,234.50"), (0.00001234, "$0.00001234"), (0.005, "$0.005"), (None, "")],
)
def test_amounts_keep_what_small_ones_say(value: float | None, text: str) -> None:
    assert dollars(value) == text


def test_moments_say_that_they_are_utc() -> None:
    assert shown("2026-12-01T12:07:47.123456Z") == "2026-12-01 12:07:47 UTC"
    assert shown("not-a-momentTat all, really") == "not-a-momentTat all, really"


def test_csv_has_no_formulas() -> None:
    assert as_csv([["=1+1", None, "a,b"]], ["x", "y", "z"]).splitlines()[1] == '\'=1+1,,"a,b"'


def test_a_reader_that_goes_away_is_no_error(gateway: Foreground) -> None:
    script = f"{sys.executable} -m twisted_vllm keys list -o json | head -c 1"
    ended = subprocess.run(
        ["bash", "-c", script],
        env=environment(VLLM_PASSTHROUGH_URL=at(gateway), VLLM_PASSTHROUGH_KEY=MASTER_KEY),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.stderr == ""


def test_the_key_is_not_in_the_arguments_that_others_see(gateway: Foreground) -> None:
    assert not any(MASTER_KEY in argument for argument in sys.argv)
    process = subprocess.Popen(
        [sys.executable, "-m", "twisted_vllm", "keys", "list", "--key-file", "-"],
        env=environment(VLLM_PASSTHROUGH_URL=at(gateway)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert MASTER_KEY.encode() not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
    process.communicate(MASTER_KEY, timeout=PATIENCE)
    assert process.returncode == os.EX_OK


def test_a_key_is_made_of_a_file_once_and_never_shown(gateway: Foreground, tmp_path: Path) -> None:
    value = "sk-of-a-file-0123456789"
    (tmp_path / "value").write_text(value + "\n")
    made = ("keys", "create", "scraper", "--value-file", str(tmp_path / "value"), "--allowed-routes", "management")
    assert value not in done(gateway, *made, "-o", "json")
    assert ask(gateway.port, "/metrics/upstreams", value)[0] == 200
    assert done(gateway, *made, "--if-missing") == ""
    assert "This key exists already" in refused(gateway, *made)
    assert "--if-missing needs the alias" in refused(gateway, "keys", "create", "--if-missing", status=2)
    assert "--value-file /none: No such file" in refused(gateway, "keys", "create", "--value-file", "/none", status=2)


def test_the_key_may_be_of_the_file_that_a_variable_names(gateway: Foreground, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(MASTER_KEY)
    ended = client("keys", "list", url=at(gateway), key="", LITELLM_MASTER_KEY_FILE=str(tmp_path / "key"))
    assert ended.returncode == 0, ended.stderr


def test_health_asks_without_a_key(gateway: Foreground) -> None:
    asked = client("health", url="", key="", VLLM_PASSTHROUGH_LISTEN=f"tcp:{gateway.port}")
    assert (asked.returncode, asked.stdout) == (0, "healthy\n"), asked.stderr
    assert client("health", url=at(gateway), key="").returncode == 0
