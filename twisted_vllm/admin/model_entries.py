"""Entries of the model list that administrators add at run time, in LiteLLM's shapes. The database keeps them.

The structs, the operations on one transaction, and the routes. Each change is written to the audit log, without the
server's key, which is encrypted and never shown again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import attrs
import msgspec

from twisted_vllm.admin.context import AdminCall, AuditContext, ModelSource
from twisted_vllm.admin.fields import PRINTABLE, Alias, check_alias, check_depth, check_printable, redacted
from twisted_vllm.admin.models import Body, Json, Response, described
from twisted_vllm.admin.routing import Routes
from twisted_vllm.config.problems import ConfigError, Problem
from twisted_vllm.config.providers import PROVIDER
from twisted_vllm.config.stored_models import API_KEY, MAX_MODELS, CheckedModel, StoredModel, check_model, join
from twisted_vllm.errors import Conflict, InvalidRequest, NotFound
from twisted_vllm.storage.records import ModelRecord
from twisted_vllm.storage.transaction import Transaction

#: the bytes of an entry's settings and description in JSON
MAX_BYTES = 65_536

_KIND = "model"
#: what LiteLLM writes into a description by itself
_OWN_INFO = ("id", "db_model")

Params = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description="The settings of the server, as in the configuration file. null counts as left out.",
        extra_json_schema={
            "properties": {
                "model": {"type": "string", "pattern": f"^{PROVIDER}/[^?\\s]+$"},
                "api_base": {"type": ["string", "null"]},
                API_KEY: {"type": ["string", "null"], "description": "Kept encrypted, and never shown again."},
            }
        },
    ),
]
Info = Annotated[
    dict[str, Any],
    msgspec.Meta(
        description="A description of the model. `id` is the entry's id; without one it is chosen.",
        extra_json_schema={"properties": {"id": {"type": ["string", "null"], "pattern": PRINTABLE, "maxLength": 255}}},
    ),
]


class NewModelRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /model/new``."""

    model_name: Annotated[
        Alias, described("The name by which callers ask for the model. Entries with one name share its requests.")
    ]
    litellm_params: Params
    model_info: Annotated[Info | None, described("A description of the model. `id` is the entry's id.")] = None

    def check(self) -> None:
        """Check the names; the rest is checked as in the file."""
        check_alias(self.model_name, "model_name")
        check_id(self.model_info)


class UpdateModelRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /model/update``. Settings that are absent stay as they are; null takes a setting out.

    ``model_info.id`` names the entry, as in LiteLLM; ``id`` does so in what LiteLLM's command line sends.
    """

    id: Annotated[Alias | None, described("The entry to change, if `model_info.id` does not name it.")] = None
    model_info: Annotated[Info | None, described("A description of the model. `id` is the entry's id.")] = None
    model_name: Annotated[Alias | None, described("The name by which callers ask for the model.")] = None
    litellm_params: Annotated[
        Params | None,
        described("The settings of the server, as in the configuration file. null takes a setting out."),
    ] = None

    def check(self) -> None:
        """Check the names; the rest is checked as in the file."""
        check_alias(self.model_name, "model_name")
        named = check_id(self.model_info)
        if named is None and self.id is None:
            raise InvalidRequest("`model_info.id` is required: it names the entry.", param="model_info.id")
        if None not in (named, self.id) and named != self.id:
            raise InvalidRequest("`id` and `model_info.id` name two entries: send one of them.", param="id")

    @property
    def entry_id(self) -> str:
        """The id of the entry, of a body that was checked."""
        return check_id(self.model_info) or self.id or ""


class PatchModelRequest(Body, frozen=True, kw_only=True):
    """The body of ``PATCH /model/{model_id}/update``, as that of ``POST /model/update``."""

    model_id: Annotated[Alias, described("The entry to change.")]
    model_name: Annotated[Alias | None, described("The name by which callers ask for the model.")] = None
    litellm_params: Annotated[
        Params | None,
        described("The settings of the server, as in the configuration file. null takes a setting out."),
    ] = None
    model_info: Annotated[Info | None, described("A description of the model. `id` is the entry's id.")] = None

    def check(self) -> None:
        """Check the names; the rest is checked as in the file."""
        check_alias(self.model_name, "model_name")
        if check_id(self.model_info) not in (None, self.model_id):
            raise InvalidRequest("The path names another id than the body: name it once.", param="model_info.id")


class DeleteModelRequest(Body, frozen=True, kw_only=True):
    """The body of ``POST /model/delete``."""

    id: Annotated[Alias, described("The entry to delete.")]


class ModelReport(Response, kw_only=True):
    """An entry that was added at run time. The server's key is not shown."""

    model_id: str
    model_name: str
    litellm_params: Json
    model_info: Json
    has_api_key: Annotated[bool, msgspec.Meta(description="Whether the server has a key of its own.")]
    created_at: datetime
    created_by: str
    updated_at: datetime
    updated_by: str
    warnings: Annotated[
        tuple[str, ...], msgspec.Meta(description="Settings that this gateway does not implement; they are not kept.")
    ]


class DeletedModel(Response, kw_only=True):
    """What became of an entry."""

    message: str


def check_id(info: Mapping[str, Any] | None) -> str | None:
    """Return the id that a description names.

    Raises:
        InvalidRequest: it is not an id.
    """
    found = (info or {}).get("id")
    if found is None:
        return None
    if not isinstance(found, str) or not 0 < len(found) <= 255:
        raise InvalidRequest("`model_info.id` must be text of 1 to 255 characters.", param="model_info.id")
    check_printable("model_info.id", found)
    check_alias(found, "model_info.id")
    return found


def add_model(
    transaction: Transaction, audit: AuditContext, body: NewModelRequest, model_id: str, source: ModelSource
) -> tuple[ModelRecord, tuple[str, ...]]:
    """Add an entry; return it, and what of it is not implemented.

    Raises:
        InvalidRequest: it cannot be used, or there are too many.
        Conflict: another entry has its id.
    """
    _check_allowed(source)
    of_file = any(entry.model_id == model_id for entry in source.settings.models)
    if of_file or transaction.models.get(model_id) is not None:
        raise Conflict("Another model has this id already. Send another `model_info.id`.", param="model_info.id")
    checked = _checked(body.model_name, body.litellm_params, body.model_info or {})
    record = ModelRecord(
        model_id=model_id,
        model_name=body.model_name,
        litellm_params=dict(checked.litellm_params),
        model_info=_info(body.model_info),
        api_key=_sealed(checked, model_id, source),
        **audit.created,
    )
    if transaction.models.count() >= MAX_MODELS:
        raise InvalidRequest(f"There are {MAX_MODELS} models already, which is the most that are kept.")
    _check_together(transaction, record, source)
    transaction.models.insert(record)
    audit.record(transaction, _KIND, model_id, None, _report(record))
    return record, checked.warnings


def update_model(
    transaction: Transaction,
    audit: AuditContext,
    model_id: str,
    body: UpdateModelRequest | PatchModelRequest,
    source: ModelSource,
) -> tuple[ModelRecord, tuple[str, ...]]:
    """Change an entry; return it, and what of the change is not implemented.

    Raises:
        InvalidRequest: it could not be used.
        NotFound: there is no such entry.
    """
    _check_allowed(source)
    before = _find(transaction, model_id, source)
    given = body.litellm_params or {}
    params = _merged(before.litellm_params, given)
    info = _merged(before.model_info, _info(body.model_info))
    name = body.model_name or before.model_name
    checked = _checked(name, params, info)
    after = attrs.evolve(
        before,
        model_name=name,
        litellm_params=dict(checked.litellm_params),
        model_info=info,
        api_key=_sealed(checked, model_id, source) if API_KEY in given else before.api_key,
        **audit.updated,
    )
    _check_together(transaction, after, source)
    transaction.models.replace(model_id, after)
    audit.record(transaction, _KIND, model_id, _report(before), _report(after))
    return after, checked.warnings


def delete_model(transaction: Transaction, audit: AuditContext, model_id: str, source: ModelSource) -> None:
    """Delete an entry. Requests that run go on.

    Raises:
        InvalidRequest: it is an entry of the configuration file.
        NotFound: there is no such entry.
    """
    record = _find(transaction, model_id, source)
    transaction.models.delete([model_id])
    audit.record(transaction, _KIND, model_id, _report(record), None)


def _find(transaction: Transaction, model_id: str, source: ModelSource) -> ModelRecord:
    record = transaction.models.get(model_id)
    if record is not None:
        return record
    if any(model_id in (entry.model_id, entry.model_name) for entry in source.settings.models):
        raise InvalidRequest(
            f"`{redacted(model_id)}` is a model of the configuration file, which the API does not change. Change the "
            "file and reload it.",
            param="id",
        )
    raise NotFound(f"No model that was added with POST /model/new has the id `{redacted(model_id)}`.", param="id")


def _check_allowed(source: ModelSource) -> None:
    if source.settings.store_model_in_db is False:
        raise InvalidRequest("Models cannot be added or changed here: general_settings.store_model_in_db is false.")


def _checked(name: str, params: Mapping[str, Any], info: Mapping[str, Any]) -> CheckedModel:
    """Check an entry by itself, as one of the file."""
    for path, value in (("litellm_params", params), ("model_info", info)):
        check_depth(value, path)
    if len(msgspec.json.encode((params, info))) > MAX_BYTES:
        raise InvalidRequest(f"`litellm_params` and `model_info` must not be over {MAX_BYTES} bytes together.")
    try:
        return check_model(name, params, info)
    except ConfigError as error:
        raise _refused(error.problems) from None


def _sealed(checked: CheckedModel, model_id: str, source: ModelSource) -> str | None:
    if checked.api_key is None:
        return None
    if not source.sealer.can_seal:
        raise InvalidRequest(
            "The key of a server is kept encrypted, and there is no key to encrypt it with. Set a master key or "
            "VLLM_PASSTHROUGH_SALT_KEY.",
            param=f"litellm_params.{API_KEY}",
        )
    return source.sealer.seal(checked.api_key, model_id)


def _check_together(transaction: Transaction, record: ModelRecord, source: ModelSource) -> None:
    """Check that an entry can be used together with those of its name, and that these still can."""
    known = [_stored(each) for each in transaction.models.find(model_name=record.model_name)]
    others = [each for each in known if each.model_id != record.model_id]
    unseal = source.sealer.key_of
    before = join(source.settings, known, unseal).problems
    after = join(source.settings, (*others, _stored(record)), unseal).problems
    if record.model_id in after:
        raise _refused(after[record.model_id])
    worse = [identity for identity, problems in after.items() if before.get(identity) != problems]
    if worse:
        raise InvalidRequest(
            f"The model `{redacted(worse[0])}` could not be served any more: {after[worse[0]][0]}.",
            param="litellm_params",
        )


def _refused(problems: Sequence[Problem]) -> InvalidRequest:
    what = "; ".join(f"`{each.path}` {each.message}" if each.path else each.message for each in problems)
    return InvalidRequest(what if what.endswith("?") else f"{what}.", param=problems[0].path or "litellm_params")


def _merged(before: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**before, **given}.items() if value is not None}


def _info(info: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (info or {}).items() if name not in _OWN_INFO}


def _stored(record: ModelRecord) -> StoredModel:
    return StoredModel(
        record.model_id,
        record.model_name,
        record.litellm_params,
        record.model_info,
        record.api_key,
        record.created_at.timestamp(),
    )


def _report(record: ModelRecord) -> Json:
    return {
        "model_id": record.model_id,
        "model_name": record.model_name,
        "litellm_params": record.litellm_params,
        "model_info": {**record.model_info, "id": record.model_id, "db_model": True},
        "has_api_key": record.api_key is not None,
        "created_at": record.created_at,
        "created_by": record.created_by,
        "updated_at": record.updated_at,
        "updated_by": record.updated_by,
    }


def report_model(record: ModelRecord, warnings: tuple[str, ...] = ()) -> Json:
    """Return an entry as `ModelReport` describes it."""
    return {**_report(record), "warnings": warnings}


routes = Routes()


@routes.post("/model/new", body=NewModelRequest, response=ModelReport, errors=(409,))
async def new(call: AdminCall, body: NewModelRequest) -> Json:
    """Add an entry to the model list: from the next request on, and after a restart."""
    source, model_id = call.context.model_source(), check_id(body.model_info) or call.new_id()
    return report_model(
        *await call.change(lambda transaction: add_model(transaction, call.audit, body, model_id, source))
    )


@routes.post("/model/update", body=UpdateModelRequest, response=ModelReport, errors=(404,))
async def update(call: AdminCall, body: UpdateModelRequest) -> Json:
    """Change an entry that was added at run time. Settings that are absent stay as they are; null takes one out."""
    source, model_id = call.context.model_source(), body.entry_id
    return report_model(
        *await call.change(lambda transaction: update_model(transaction, call.audit, model_id, body, source))
    )


@routes.patch("/model/<string:model_id>/update", body=PatchModelRequest, response=ModelReport, errors=(404,))
async def patch(call: AdminCall, body: PatchModelRequest) -> Json:
    """Change an entry that was added at run time, as ``POST /model/update``."""
    source = call.context.model_source()
    return report_model(
        *await call.change(lambda transaction: update_model(transaction, call.audit, body.model_id, body, source))
    )


@routes.post("/model/delete", body=DeleteModelRequest, response=DeletedModel, errors=(404,))
async def delete(call: AdminCall, body: DeleteModelRequest) -> Json:
    """Delete an entry that was added at run time. Requests that run go on."""
    source = call.context.model_source()
    await call.change(lambda transaction: delete_model(transaction, call.audit, body.id, source))
    return {"message": f"Model: {body.id} deleted successfully"}
