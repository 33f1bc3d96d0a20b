"""The page to sign in, signing out, and tickets for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.sign_in import CANNOT_SEAL
from twisted_vllm.auth.own_pages import own_page
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.auth.sessions import TICKET_SECONDS, Session
from twisted_vllm.errors import ERROR_HEADER, GatewayError, RouteNotAllowed
from twisted_vllm.storage.transaction import Transaction

if TYPE_CHECKING:
    # loaded where there is a provider
    from twisted_vllm.identification.oidc.relying_party import RelyingParty

pages = Pages()

#: why somebody who was signed in must sign in again
_REASONS = {
    "invalid_api_key": "Your session is over: its key was deleted or replaced, or the ways to sign in changed.",
    "expired_api_key": "Your session is over: its key has expired.",
    "blocked_api_key": "Your session is over: its key or team was blocked. Ask an administrator.",
    "token_not_allowed": "Your session is over: your user or team is not known here any more. Ask an administrator.",
    "signed_out": "You have signed out.",
}


def party_of(call: PageCall) -> RelyingParty | None:
    """Return what signs people in at an OpenID provider; None if there is none."""
    found: RelyingParty | None = call.console.parts.get("relying_party", lambda: None)()
    return found


def show_form(
    call: PageCall, wanted: str, problem: str, status: int = 200, *, reason: str = "", again: bool = False
) -> bytes:
    """Show the ways to sign in.

    Args:
        call: the request.
        wanted: the page that follows.
        problem: why it did not work.
        status: the status of the answer.
        reason: why somebody must sign in again.
        again: whether signing in at the provider just failed, perhaps because of the account.
    """
    party = party_of(call)
    provider = party.name if party is not None and call.console.sign_in.sealer().can_seal else ""
    values = {"next": wanted, "problem": problem, "reason": reason, "provider": provider, "again": again}
    return call.render("sign_in.html", status=status, **values)


def show_refusal(call: PageCall, wanted: str, error: GatewayError, *, again: bool = False) -> bytes:
    """Show the ways to sign in after one failed; the other arguments are those of `show_form`."""
    call.request.setHeader(ERROR_HEADER, error.code.encode("ascii"))
    return show_form(call, wanted, error.message, error.status, again=again)


@pages.get("/ui/sign-in", open=True)
async def show(call: PageCall) -> bytes:
    """Show the form."""
    if call.context.authenticator.is_open:
        return call.redirect("/ui")
    problem = "" if call.console.sign_in.sealer().can_seal else CANNOT_SEAL
    reason = _REASONS.get(call.query.get("reason", ""), "")
    return show_form(call, own_page(call.query.get("next", "")), problem, reason=reason)


@pages.post("/ui/sign-in", open=True)
async def sign_in(call: PageCall) -> bytes:
    """Begin a session, or say why not."""
    form = await call.form()
    wanted = own_page(form.get("next", [""])[0])
    try:
        await call.console.sign_in.begin(call.request, form.get("key", [""])[0].strip())
    except GatewayError as error:
        return show_refusal(call, wanted, error)
    return call.redirect(wanted)


@pages.post("/ui/sign-out")
async def sign_out(call: PageCall) -> bytes:
    """End the session."""
    session = call.session
    call.console.sign_in.end(call.request)
    if session is not None and session.kind == "user":
        return call.redirect("/ui/oidc/sign-out")
    return call.redirect("/ui/sign-in", reason="signed_out")


@pages.post("/ui/ticket")
async def ticket(call: PageCall) -> bytes:
    """Give a script of a page a credential for vLLM's routes: the caller's own, or that of one of its keys.

    The form's ``key`` is the hash of the key; without it the ticket acts as the session does.
    """
    form = await call.form()
    wanted = form.get("key", [""])[0]
    session, sign_in = call.session, call.console.sign_in
    if session is None:
        # open mode: every request is an administrator's
        return send_json(call.request, {"ticket": "", "expires_in": TICKET_SECONDS})
    if wanted:
        # whoever may not see a key gets no ticket of it
        info = (await call.get("/key/info", key=wanted))["info"]
        if not _is_own(call, session, info):
            await _act_for_another(call, info)
        session = msgspec.structs.replace(session, kind="key", token=token_of(info["token"]), caller=None, provider="")
    made = sign_in.sealer().ticket(session, sign_in.now())
    return send_json(call.request, {"ticket": made, "expires_in": TICKET_SECONDS})


def _is_own(call: PageCall, session: Session, info: dict[str, Any]) -> bool:
    user_id = call.principal.user_id
    return info["token"] == session.token or (user_id is not None and info["user_id"] == user_id)


async def _act_for_another(call: PageCall, info: dict[str, Any]) -> None:
    """Let an administrator act as somebody else's key, which the audit log tells.

    Viewers and administrators of teams see keys of others too, and may not use them.

    Raises:
        RouteNotAllowed: the caller is no administrator.
    """
    if not call.principal.may_administer:
        raise RouteNotAllowed("This key belongs to somebody else. Choose one of your own.")
    admin = AdminCall(call.request, call.context, call.principal, "console/ticket", {}, {})
    prefix, seconds = info["token"][:HASH_PREFIX_LENGTH], TICKET_SECONDS

    def work(transaction: Transaction) -> None:
        admin.audit.record(transaction, "key", prefix, None, {"acts_as_key_seconds": seconds})

    await admin.change(work)
