"""A real gateway process takes tokens by LiteLLM's file and environment, and no token gets into its log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.end_to_end.many_callers import serve
from tests.end_to_end.process_harness import served
from tests.end_to_end.test_ledger_kill import BODY
from tests.end_to_end.twistd_harness import Configured, ask
from tests.identification.issuer import AUDIENCE, ISSUER, SigningKey, key_set

SETTINGS = """
general_settings:
  enable_jwt_auth: true
  litellm_jwtauth: {user_id_jwt_field: sub, user_email_jwt_field: email, user_id_upsert: true}
passthrough:
  log: {file: gateway.log}
"""
KEY = SigningKey(alg="ES256")


class Issuer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = key_set(KEY)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def issuer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Issuer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/keys"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_gateway_process_takes_tokens(tmp_path: Path, issuer: str) -> None:
    environment = {"JWT_PUBLIC_KEY_URL": issuer, "JWT_AUDIENCE": AUDIENCE, "JWT_ISSUER": ISSUER}
    now = time.time()
    good = KEY.token(now, email="ada@example.com")
    forged = SigningKey(alg="ES256").token(now)
    with served(serve) as server, Configured(tmp_path, server.port, SETTINGS, **environment) as gateway:

        def complete(token: str) -> int:
            return ask(gateway.port, "/vllm/v1/chat/completions", token, "POST", BODY.decode())[0]

        assert [complete(good), complete(good)] == [200, 200]
        assert complete(KEY.token(now - 3600)) == 401
        assert complete(KEY.token(now, aud="other")) == 401
        status, body = ask(gateway.port, "/vllm/v1/models", forged)
        assert (status, "invalid_token" in body) == (401, True)
        administrator = KEY.token(now, sub="root", scope="litellm_proxy_admin")
        assert ask(gateway.port, "/key/generate", administrator, "POST", "{}")[0] == 200
        assert ask(gateway.port, "/team/new", good, "POST", "{}")[0] == 403
        assert ask(gateway.port, "/vllm/v1/models", "eyJ.a.b")[0] == 401
        gateway.terminate()
    log = (tmp_path / "gateway.log").read_text()
    assert "ada@example.com" in log
    for token in (good, forged, administrator):
        assert all(part not in log for part in token.split("."))
