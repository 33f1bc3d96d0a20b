"""Makes the files of partitions on SQLite: new ones, and at the start those that are missing."""

from __future__ import annotations

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from twisted.logger import Logger

from twisted_vllm.config.alert_types import LEDGER_ALERT
from twisted_vllm.storage.engine import begin, make_engine
from twisted_vllm.storage.usage.partitions import (
    Partition,
    all_partitions,
    create_rows_tables,
    file_of,
    files_beside,
    main_file,
    make_directory,
)

_log = Logger()


def make_file(main: Engine, partition: Partition) -> None:
    """Make a partition's file, if there is none, with its tables.

    Args:
        main: of the main database, whose writing lock the caller holds.
        partition: the partition.

    Raises:
        OSError, SQLAlchemyError: it cannot be made.
    """
    make_directory(main_file(main))
    path = file_of(main_file(main), partition)
    if not path.exists():
        # SQLite would apply another file's log to the new one.
        for name in files_beside(path):
            name.unlink(missing_ok=True)
    engine = make_engine(main.url.set(database=str(path)), connections=1)
    try:
        with engine.connect() as connection:
            connection.connection.cursor().execute("PRAGMA journal_mode = WAL").close()
        with begin(engine, None, writes=True) as connection:
            create_rows_tables(connection)
    finally:
        engine.dispose()


def make_missing_files(main: Engine) -> None:
    """Make the files that are missing when the process starts: whoever started it decided to go on without.

    Without them no report could read rows. What cannot be made is logged, and the start goes on.

    Args:
        main: of the main database, which has the newest tables.

    Raises:
        SQLAlchemyError: the main database cannot be read.
    """
    if main.dialect.name != "sqlite":
        return
    with begin(main, None, writes=False) as connection:
        known = all_partitions(connection)
    missing = [each for each in known if not file_of(main_file(main), each).exists()]
    for each in missing:
        path = file_of(main_file(main), each)
        try:
            with begin(main, None, writes=True) as connection:
                # Another process may have dropped it meanwhile, or made it.
                if path.exists() or each not in all_partitions(connection):
                    continue
                make_file(main, each)
        except (OSError, SQLAlchemyError) as error:
            _log.critical(
                "{path} is missing, and cannot be made anew: {reason}. Rows of the ledger wait in the spool",
                path=str(path),
                reason=getattr(error, "strerror", None) or type(error).__name__,
                **LEDGER_ALERT,
            )
        else:
            _log.critical(
                "{path} is missing, and is made anew: the ledger's rows of {name} are lost, and their sums are not",
                path=str(path),
                name=each.name,
                **LEDGER_ALERT,
            )
