"""People sign in to the console at a real OpenID provider: two gateways as one, one provider of another make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks.free_ports import free_port
from tests.end_to_end.twistd_harness import Foreground, ask, wait_until
from tests.services.private_provider import (
    CLIENT,
    SECRET,
    Person,
    PrivateProvider,
    is_installed,
    private_provider,
)

MASTER_KEY = "sk-master-of-both-gateways-0123"


@attrs.frozen
class Gateways:
    """Two gateways with one database and one secret, behind nothing: a person's cookies go to both."""

    provider: PrivateProvider
    ports: tuple[int, int]
    logs: tuple[Path, Path]

    @property
    def origins(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.ports]

    def api(self, method: str, path: str, body: object = None) -> Any:
        status, text = ask(self.ports[0], path, MASTER_KEY, method, None if body is None else json.dumps(body))
        assert status == 200, text
        return json.loads(text)

    @contextmanager
    def reloaded(self, **oidc: object) -> Iterator[None]:
        """Have the first gateway, with its workers, use other settings of the provider for a while."""
        file = self.logs[0].parent / "gateway.yaml"
        before = file.read_text()
        settings = json.loads(before)
        settings["passthrough"]["console"]["oidc"] |= oidc
        try:
            file.write_text(json.dumps(settings))
            self.api("POST", "/config/reload")
            yield
        finally:
            file.write_text(before)
            self.api("POST", "/config/reload")

    def log(self) -> str:
        return "".join(path.read_text() for path in self.logs)


@pytest.fixture(scope="module", params=["with a secret", "public"])
def gateways(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    """Two gateways and their provider; skipped, with the reason, where there is none."""
    if not is_installed():
        pytest.skip("Canaille is not installed (pip install 'canaille[front,oidc]')")
    shared = tmp_path_factory.mktemp("gateways")
    ports = (free_port(), free_port())
    logs = []
    with ExitStack() as stack:
        provider = stack.enter_context(private_provider([f"http://127.0.0.1:{port}" for port in ports]))
        oidc = provider.settings(secret=SECRET if request.param == "with a secret" else None)
        for port in ports:
            directory = shared / str(port)
            directory.mkdir()
            logs.append(directory / "gateway.log")
            settings = {
                "general_settings": {"database_url": f"sqlite:///{shared}/shared.sqlite3"},
                "passthrough": {
                    "console": {"oidc": oidc},
                    "log": {"file": "gateway.log", "level": "debug"},
                    "ledger": {"spool_directory": f"{directory}/spool"},
                },
            }
            (directory / "gateway.yaml").write_text(json.dumps(settings))
            variables = {"LITELLM_MASTER_KEY": MASTER_KEY, "HOSTED_VLLM_API_BASE": "http://127.0.0.1:9"}
            # the first is of several processes
            workers = ("--workers=2",) if port == ports[0] else ()
            stack.enter_context(Foreground(directory, port, "--config=gateway.yaml", *workers, **variables))
        yield Gateways(provider, ports, (logs[0], logs[1]))


def is_signed_in(person: Person, gateway: str) -> bool:
    return "/ui/sign-in" not in person.open(f"{gateway}/ui").url


def test_somebody_signs_in_at_one_gateway_and_is_known_to_both(gateways: Gateways) -> None:
    gateways.api("POST", "/team/new", {"team_id": "physics"})
    person = Person()
    page = person.sign_in(gateways.origins[0], "grace")
    assert (page.status, page.target) == (200, f"{gateways.origins[0]}/ui")
    assert "You are grace@example.com." in page.text
    for origin in gateways.origins:
        shown = person.open(page.target.replace(gateways.origins[0], origin))
        assert "grace@example.com" in shown.text
    user = gateways.api("GET", "/user/info?user_id=grace")["user_info"]
    assert (user["user_id"], user["user_email"]) == ("grace", "grace@example.com")


def test_what_began_at_one_gateway_is_finished_at_the_other(gateways: Gateways) -> None:
    person = Person()
    begun, other = gateways.origins
    person.moved = lambda url: url.replace(begun, other, 1) if url.startswith(f"{begun}/ui/oidc/callback") else url
    page = person.sign_in(begun, "ada")
    assert page.target == f"{other}/ui"
    assert all(is_signed_in(person, origin) for origin in gateways.origins)


def test_an_administrator_administers_and_a_member_does_not(gateways: Gateways) -> None:
    for name, role in (("ada", "proxy_admin"), ("grace", "internal_user")):
        person = Person()
        person.sign_in(gateways.origins[0], name)
        shown = person.open(f"{gateways.origins[0]}/ui")
        assert f'<span class="badge">{role}</span>' in shown.text


def test_a_stranger_is_refused_with_words(gateways: Gateways) -> None:
    person = Person()
    page = person.sign_in(gateways.origins[0], "eve")
    assert page.status == 403
    assert "This account has none of the roles that are let in, in its claim groups." in page.text
    assert not is_signed_in(person, gateways.origins[0])
    wait_until(lambda: "Nobody was signed in at http://localhost" in gateways.log())


def test_an_answer_that_was_stolen_is_of_no_use(gateways: Gateways) -> None:
    person, thief = Person(), Person()
    person.sign_in(gateways.origins[0], "ada")
    for each in (thief, person):
        assert each.open(person.callback).status == 403
    assert not is_signed_in(thief, gateways.origins[0])


def test_signing_out_ends_both_sessions(gateways: Gateways) -> None:
    person = Person()
    person.sign_in(gateways.origins[0], "ada")
    page = person.sign_out(gateways.origins[0])
    assert page.target.startswith(f"{gateways.provider.issuer}/oauth/end_session?client_id=")
    assert "id_token_hint=" in page.target
    back = person.open(page.target)
    assert back.url.startswith(f"{gateways.origins[0]}/ui/sign-in?reason=signed_out")
    assert not is_signed_in(person, gateways.origins[0])
    # the provider asks for the password again
    assert person.open(f"{gateways.origins[0]}/ui/oidc/sign-in").url.endswith("/login")


def test_a_blocked_team_and_a_deleted_user_end_their_sessions_everywhere(gateways: Gateways) -> None:
    person = Person()
    person.sign_in(gateways.origins[1], "grace")
    assert all(is_signed_in(person, origin) for origin in gateways.origins)
    gateways.api("POST", "/team/block", {"team_id": "physics"})
    try:
        assert "reason=blocked_api_key" in person.open(f"{gateways.origins[0]}/ui").url
    finally:
        gateways.api("POST", "/team/unblock", {"team_id": "physics"})
    person = Person()
    person.sign_in(gateways.origins[1], "grace")
    gateways.api("POST", "/user/delete", {"user_ids": ["grace"]})
    assert "reason=token_not_allowed" in person.open(f"{gateways.origins[0]}/ui").url


def test_a_reload_with_other_claims_ends_the_sessions_that_they_made(gateways: Gateways) -> None:
    person, origin = Person(), gateways.origins[0]
    person.sign_in(origin, "ada")
    with gateways.reloaded(name="Another name"):
        assert is_signed_in(person, origin)
    with gateways.reloaded(claims={"user_id_upsert": True}):
        assert "reason=invalid_api_key" in person.open(f"{origin}/ui").url
        # the provider knows who it is, and the role is gone with the claim that gave it
        person.sign_in(origin, "ada")
        assert '<span class="badge">internal_user</span>' in person.open(f"{origin}/ui").text


def test_a_client_that_the_provider_refuses_is_told_to_the_operator(gateways: Gateways) -> None:
    with gateways.reloaded(client_id=CLIENT, client_secret="the-wrong-secret"):
        page = Person().sign_in(gateways.origins[0], "ada")
        assert page.status == 403
        assert "Canaille did not accept the gateway. Tell an administrator" in page.text
    wait_until(lambda: "invalid_client" in gateways.log() and "compare client_id and client_secret" in gateways.log())


def test_nothing_secret_is_in_the_log(gateways: Gateways) -> None:
    person = Person()
    page = person.sign_in(gateways.origins[0], "ada")
    assert page.status == 200, page.text
    cookies = [cookie.value or "" for cookie in person.cookies if "127.0.0.1" in cookie.domain]
    fields = dict(part.split("=") for part in person.callback.partition("?")[2].split("&"))
    person.open(f"{gateways.origins[0]}/ui/the-last-page")
    wait_until(lambda: '"error":"not_found"' in gateways.log())
    log = gateways.log()
    assert "ada@example.com signed in at http://localhost" in log
    assert len(cookies) == 2
    for secret in (*cookies, fields["code"], fields["state"], SECRET, "Bearer", "eyJ"):
        assert secret not in log
