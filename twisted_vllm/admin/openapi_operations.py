"""What each route of the admin API takes and answers, for its document."""

from __future__ import annotations

from typing import Any

from twisted_vllm.admin import (
    answers,
    customer_answers,
    customer_schemas,
    key_answers,
    key_schemas,
    people_answers,
    people_schemas,
    queries,
)
from twisted_vllm.admin.fields import one_of_fields
from twisted_vllm.admin.operation import Operation as Operation
from twisted_vllm.admin.spend_operations import SPEND_OPERATIONS

_GIVEN = {"type": "string"}
_NULL = {"type": "null"}


#: a type of key sets what the key may call
_ROUTES_ONCE = {
    "anyOf": [
        {"properties": {"key_type": {"enum": ["default", None]}}},
        {"properties": {"allowed_routes": {"anyOf": [_NULL, {"maxItems": 0}]}}},
    ]
}

_A_KEY = one_of_fields("key", "key_alias")
_A_KEY_TO_CHANGE = {"allOf": [_A_KEY, _ROUTES_ONCE]}
_LIST = {"type": "array", "minItems": 1}

_CUSTOMERS = {
    "new": Operation(customer_answers.CustomerReport, customer_schemas.NewCustomerRequest, refusals=(409,)),
    "info": Operation(customer_answers.CustomerReport, query=customer_schemas.CustomerInfoQuery, refusals=(404,)),
    "update": Operation(customer_answers.CustomerReport, customer_schemas.UpdateCustomerRequest, refusals=(404,)),
    "delete": Operation(customer_answers.DeletedCustomers, customer_schemas.CustomersRequest, refusals=(404,)),
    "list": Operation(tuple[customer_answers.CustomerReport, ...], query=customer_schemas.CustomerListQuery),
    "block": Operation(customer_answers.BlockedCustomers, customer_schemas.CustomersRequest),
    "unblock": Operation(customer_answers.UnblockedCustomers, customer_schemas.CustomersRequest, refusals=(404,)),
}

#: by path; every route has an entry
OPERATIONS: dict[str, Operation] = {
    "/key/generate": Operation(
        key_answers.GeneratedKey, key_schemas.GenerateRequest, _ROUTES_ONCE, refusals=(409,), may_be_empty=True
    ),
    "/key/service-account/generate": Operation(
        key_answers.GeneratedKey,
        key_schemas.GenerateRequest,
        {"required": ["team_id"], "properties": {"team_id": _GIVEN, "user_id": _NULL}, **_ROUTES_ONCE},
        refusals=(409,),
    ),
    "/key/update": Operation(key_answers.ChangedKey, key_schemas.UpdateRequest, _A_KEY_TO_CHANGE, refusals=(404, 409)),
    "/key/bulk_update": Operation(key_answers.BulkAnswer, key_schemas.BulkRequest),
    "/key/block": Operation(key_answers.KeyReport, key_schemas.NameRequest, _A_KEY, refusals=(404,)),
    "/key/unblock": Operation(key_answers.KeyReport, key_schemas.NameRequest, _A_KEY, refusals=(404,)),
    "/key/regenerate": Operation(
        key_answers.NewKey, key_schemas.RegenerateRequest, _A_KEY_TO_CHANGE, refusals=(404, 409)
    ),
    "/key/<string:key>/regenerate": Operation(
        key_answers.NewKey,
        key_schemas.RegenerateRequest,
        {"properties": {"key": {"type": "null", "description": "The path names the key."}}, **_ROUTES_ONCE},
        refusals=(404, 409),
        may_be_empty=True,
    ),
    "/key/<string:key>/reset_spend": Operation(
        key_answers.ResetSpend, key_schemas.ResetSpendRequest, refusals=(404, 409)
    ),
    "/key/delete": Operation(
        key_answers.DeletedKeys,
        key_schemas.DeleteRequest,
        one_of_fields("keys", "key_aliases", given=_LIST),
        refusals=(404,),
    ),
    "/key/info": Operation(key_answers.KeyInfo, query=queries.KeyInfoQuery, refusals=(404,)),
    "/v2/key/info": Operation(key_answers.KeyInfos, key_schemas.InfoRequest, refusals=(404,)),
    "/key/list": Operation(key_answers.KeyList, query=queries.KeyListQuery),
    "/key/aliases": Operation(key_answers.AliasList, query=queries.AliasesQuery),
    "/user/new": Operation(
        people_answers.NewUser,
        people_schemas.NewUserRequest,
        {
            "anyOf": [
                {"properties": {"auto_create_key": {"enum": [True, None]}}},
                {"properties": {"key_alias": _NULL, "duration": _NULL}},
            ]
        },
        refusals=(404, 409),
        may_be_empty=True,
    ),
    "/user/info": Operation(people_answers.UserInfo, query=queries.UserInfoQuery, refusals=(404,)),
    "/user/update": Operation(
        people_answers.ChangedUser,
        people_schemas.UpdateUserRequest,
        one_of_fields("user_id", "user_email"),
        refusals=(404, 409),
    ),
    "/user/delete": Operation(int, people_schemas.DeleteUsersRequest, refusals=(404,)),
    "/user/list": Operation(people_answers.UserList, query=queries.UserListQuery),
    "/team/new": Operation(people_answers.TeamReport, people_schemas.NewTeamRequest, refusals=(404, 409)),
    "/team/info": Operation(people_answers.TeamInfo, query=queries.TeamInfoQuery, refusals=(404,)),
    "/team/update": Operation(people_answers.ChangedTeam, people_schemas.UpdateTeamRequest, refusals=(404,)),
    "/team/delete": Operation(people_answers.DeletedTeams, people_schemas.DeleteTeamsRequest, refusals=(404,)),
    "/team/list": Operation(tuple[people_answers.TeamReport, ...], query=queries.TeamListQuery),
    "/team/block": Operation(people_answers.TeamReport, people_schemas.TeamRequest, refusals=(404,)),
    "/team/unblock": Operation(people_answers.TeamReport, people_schemas.TeamRequest, refusals=(404,)),
    "/team/member_add": Operation(
        people_answers.AddedMembers,
        people_schemas.AddMembersRequest,
        {"properties": {"member": {"anyOf": [{"type": "array"}, one_of_fields("user_id", "user_email")]}}},
        refusals=(404, 409),
    ),
    "/team/member_update": Operation(
        people_answers.ChangedMember,
        people_schemas.UpdateMemberRequest,
        one_of_fields("user_id", "user_email"),
        refusals=(404,),
    ),
    "/team/member_delete": Operation(
        people_answers.TeamReport,
        people_schemas.RemoveMemberRequest,
        one_of_fields("user_id", "user_email"),
        refusals=(404,),
    ),
    **{f"/{name}/{path}": each for name in ("customer", "end_user") for path, each in _CUSTOMERS.items()},
    **SPEND_OPERATIONS,
    "/audit/list": Operation(answers.AuditList, query=queries.AuditQuery),
    "/": Operation(answers.Welcome, is_open=True),
    "/openapi.json": Operation(dict[str, Any], is_open=True),
    "/metrics": Operation(
        None, is_open=True, refusals=(401, 403), other_types=("text/plain", "application/openmetrics-text")
    ),
    "/health/liveliness": Operation(str, is_open=True, refusals=(503,)),
    "/health/liveness": Operation(str, is_open=True, refusals=(503,)),
    "/health/readiness": Operation(answers.ReadinessReport, is_open=True, failure=answers.Unready),
}
