"""``ssl_verify``, ``ssl_ca``, ``ssl_certificate`` and ``ssl_key``: where they may stand, and what they come to."""

from __future__ import annotations

import pytest

from tests.config.config_harness import Loader, Refusal, default_server
from twisted_vllm.config.describe import describe
from twisted_vllm.config.server_tls import DEFAULT_TLS, ServerTls
from twisted_vllm.config.settings import Settings

ENTRY = """
model_list:
  - model_name: a
    litellm_params: {model: hosted_vllm/a, api_base: "https://gpu", SETTINGS}
  - model_name: b
    litellm_params: {model: hosted_vllm/b, api_base: "https://gpu/v1/"}
"""
KEY = {"LITELLM_MASTER_KEY": "sk-master"}


def of_entries(settings: Settings) -> list[ServerTls]:
    return [entry.server.tls_options for entry in settings.models]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("ssl_verify: true", DEFAULT_TLS),
        ("ssl_verify: null, ssl_ca: ''", DEFAULT_TLS),
        ("ssl_verify: false", ServerTls(verify=False)),
        ("ssl_verify: os.environ/VERIFY", ServerTls(verify=False)),
        ("ssl_verify: ca.pem", ServerTls(ca_file="ca.pem")),
        ("ssl_ca: ca.pem", ServerTls(ca_file="ca.pem")),
        ("ssl_certificate: own.pem", ServerTls(certificate_file="own.pem")),
        ("ssl_certificate: own.pem, ssl_key: own.key", ServerTls(certificate_file="own.pem", key_file="own.key")),
    ],
)
def test_what_one_entry_says_holds_for_the_server(load_text: Loader, settings: str, expected: ServerTls) -> None:
    found = load_text(ENTRY.replace("SETTINGS", settings), {"VERIFY": "False", **KEY})
    assert of_entries(found) == [expected, expected]
    assert found.models[0].server == found.models[1].server


def test_a_certificate_that_is_not_checked_is_a_warning_and_stands_in_the_description(load_text: Loader) -> None:
    found = load_text(ENTRY.replace("SETTINGS", "ssl_verify: false"), KEY)
    [warning] = found.warnings
    assert warning.startswith("model_list[0].litellm_params.ssl_verify: the certificate of gpu:443 is not checked")
    assert any("a at https://gpu:443, certificate not checked" in line for line in describe(found))


def test_the_default_server_has_its_own_in_servers_which_win(load_text: Loader) -> None:
    text = """
    model_list: [{model_name: a, litellm_params: {model: hosted_vllm/a, ssl_ca: other.pem}}]
    passthrough:
      api_base: https://gpu
      servers: {"https://gpu/v1": {ssl_ca: ca.pem, ssl_certificate: own.pem}}
    """
    found = load_text(text, KEY)
    assert default_server(found).tls_options == ServerTls(ca_file="ca.pem", certificate_file="own.pem")
    assert found.models[0].server == default_server(found)


def test_litellm_s_general_settings_are_for_all_that_say_nothing(load_text: Loader) -> None:
    text = """
    model_list:
      - {model_name: a, litellm_params: {model: hosted_vllm/a, api_base: "https://one"}}
      - {model_name: b, litellm_params: {model: hosted_vllm/b, api_base: "https://two", ssl_ca: ca.pem}}
      - {model_name: c, litellm_params: {model: hosted_vllm/c, api_base: "http://three"}}
    litellm_settings: {ssl_verify: false, ssl_certificate: own.pem}
    """
    assert of_entries(load_text(text, KEY)) == [
        ServerTls(verify=False, certificate_file="own.pem"),
        ServerTls(ca_file="ca.pem", certificate_file="own.pem"),
        DEFAULT_TLS,
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("ssl_verify: false, ssl_ca: ca.pem", "ssl_ca: contradicts ssl_verify: false (remove one of them)"),
        ("ssl_verify: a.pem, ssl_ca: ca.pem", "ssl_ca: stands twice, in ssl_verify as well (remove one of them)"),
        ("ssl_key: own.key", "ssl_key: is the key of no certificate (write ssl_certificate, or remove it)"),
        ("ssl_verify: 1", "ssl_verify: must be text, not a number (put it into quotes)"),
    ],
)
def test_what_contradicts_itself_is_refused(problems_of: Refusal, settings: str, told: str) -> None:
    assert problems_of(ENTRY.replace("SETTINGS", settings), KEY) == [f"model_list[0].litellm_params.{told}"]


def test_entries_of_one_server_that_differ_are_refused(problems_of: Refusal) -> None:
    text = ENTRY.replace("SETTINGS", "ssl_ca: a.pem").replace('gpu/v1/"', 'gpu/v1/", ssl_ca: b.pem')
    [problem] = problems_of(text, KEY)
    assert problem.startswith(
        "model_list[1].litellm_params.ssl_ca: differs from model_list[0].litellm_params.ssl_ca, and both are of the "
        "same server"
    )


@pytest.mark.parametrize("base", ["http://gpu", "unix:/run/vllm.sock"])
def test_they_are_refused_for_a_server_without_tls(problems_of: Refusal, base: str) -> None:
    text = f"""
    model_list:
      - {{model_name: a, litellm_params: {{model: hosted_vllm/a, api_base: "{base}", ssl_verify: false}}}}
    """
    assert problems_of(text, KEY) == [
        "model_list[0].litellm_params.ssl_verify: is for servers with https:// in their api_base alone (remove it)"
    ]


def test_servers_with_other_files_are_other_servers(load_text: Loader) -> None:
    one = load_text(ENTRY.replace("SETTINGS", "ssl_ca: a.pem"), KEY).models[0].server
    two = load_text(ENTRY.replace("SETTINGS", "ssl_ca: b.pem"), KEY).models[0].server
    assert one != two
    assert one.url == two.url


def test_a_unix_socket_has_urls_of_its_own(load_text: Loader) -> None:
    found = default_server(load_text(environ={"HOSTED_VLLM_API_BASE": "unix:/run/vllm.sock:/a", **KEY}))
    assert (found.name, found.socket, found.base_path) == ("unix:/run/vllm.sock:/a", "/run/vllm.sock", b"/a")
    assert found.url == b"http+unix://%2Frun%2Fvllm.sock/a"
    assert found.host_header == b"localhost"
