"""``--migrate``: brings the database's schema further, and ends."""

from __future__ import annotations

from sqlalchemy.exc import SQLAlchemyError

from twisted_vllm.config.secret import Secret
from twisted_vllm.config.urls import describe_database
from twisted_vllm.storage.engine import make_engine, parse_url, reason_of
from twisted_vllm.storage.errors import StoreError
from twisted_vllm.storage.schema import migrate, state_of
from twisted_vllm.storage.schema_steps import CONTRACT


def run(url: Secret, kind: str) -> int:
    """Run the steps that expand, or all; print what came of it, and return the exit status."""
    try:
        engine = make_engine(parse_url(url), connections=1)
        try:
            migrate(engine, contract=kind == CONTRACT)
            revision, works_with = state_of(engine)
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        print(f"The schema was not changed: {reason_of(error, url)}")
        return 1
    except StoreError as error:
        print(f"The schema was not changed. {error}")
        return 1
    print(f"{describe_database(url)}: schema {revision}. Versions from schema {works_with} on work with it.")
    return 0
