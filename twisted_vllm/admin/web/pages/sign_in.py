"""The page to sign in, signing out, and tickets for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.sign_in import CANNOT_SEAL
from twisted_vllm.auth.own_pages import own_page
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.auth.sessions import TICKET_SECONDS, Session
from twisted_vllm.errors import ERROR_HEADER, GatewayError, NotFound, RouteNotAllowed
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
        session = await _session_of_key(call, session, token_of(wanted))
    made = sign_in.sealer().ticket(session, sign_in.now())
    return send_json(call.request, {"ticket": made, "expires_in": TICKET_SECONDS})


async def _session_of_key(call: PageCall, session: Session, wanted: str) -> Session:
    """Return a session that acts as another key, which the caller could have by regenerating it.

    So nobody gets more rights than by the API. That an administrator acts as somebody else's key stands in the audit
    log.

    Raises:
        NotFound, RouteNotAllowed: there is no such key, or the caller may not see it or act as it.
    """
    principal = call.principal
    if wanted != session.token and not call.may("POST /key/regenerate"):
        raise RouteNotAllowed("This key may not act as another one: it may not call POST /key/regenerate.")
    admin = AdminCall(call.request, call.context, principal, "console/ticket", {}, {})

    def work(transaction: Transaction) -> str:
        missing = NotFound("No such key is known.", param="key")
        record = admin.scope.visible_key(transaction, transaction.keys.get(wanted), missing)
        admin.scope.check_holding(transaction, record)
        if principal.may_administer and (record.user_id is None or record.user_id != principal.user_id):
            told = {"acts_as_key_seconds": TICKET_SECONDS}
            admin.audit.record(transaction, "key", record.token[:HASH_PREFIX_LENGTH], None, told)
        return record.token

    token = await (admin.change(work) if principal.may_administer else admin.read(work))
    return msgspec.structs.replace(session, kind="key", token=token, caller=None, provider="")
