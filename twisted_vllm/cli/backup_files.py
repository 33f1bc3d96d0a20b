"""What ``backup`` and ``restore`` do, and what they say."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import NoReturn

import attrs
import click
from sqlalchemy.engine import URL

from twisted_vllm.config.load import load
from twisted_vllm.config.problems import ConfigError
from twisted_vllm.config.settings import Settings
from twisted_vllm.config.urls import describe_database
from twisted_vllm.storage.backup import checking, restoring, writing
from twisted_vllm.storage.backup.manifest import DUMP, SPOOL, SQLITE, USAGE, BackupError, Manifest
from twisted_vllm.storage.backup.place import Place
from twisted_vllm.storage.backup.restoring import Wish
from twisted_vllm.storage.backup.writing import Source
from twisted_vllm.storage.engine import parse_url
from twisted_vllm.storage.errors import StoreError


def check(path: Path) -> None:
    """Read a backup, and say what is in it.

    Raises:
        SystemExit: it is not whole.
    """
    with _explained(f"{path}: "), _shown("read") as show:
        size, done = max(_total(path), 1), 0

        def count(number: int) -> None:
            nonlocal done
            done += number
            show(done, size)

        found = checking.check(path, count)
    click.echo(f"{path} is whole.")
    _describe(found)


def back_up(config: str | None, output: Path) -> None:
    """Write a backup, and say what is in it.

    Raises:
        SystemExit: it cannot be written; nothing is left.
    """
    with _explained(""):
        settings, url = _settings(config)
        writing.check_target(output)
        source = Source(
            settings.spool_directory if settings.ledger.enabled else None,
            settings.sealing_secret,
            version("twisted-vllm"),
        )
        if url.get_backend_name() == "sqlite":
            main = Path(os.path.realpath(str(url.database)))
            if not main.exists():
                raise BackupError(f"There is no database {main}: has the gateway run here, with this configuration?")
            with writing.SqliteParts(main, source) as parts, _shown("backed up") as show:
                found = writing.write(parts, source, output, show)
        else:
            # imported here: SQLite needs no driver
            from twisted_vllm.storage.backup.postgresql import PostgresqlParts

            with (
                tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place,
                PostgresqlParts(url, source, Path(place)) as dumped,
                _shown("backed up") as show,
            ):
                found = writing.write(dumped, source, output, show)
    click.echo(f"{output}: {output.stat().st_size:,} bytes, read back and whole.")
    _describe(found)
    click.echo("Not in it: the configuration, and the environment with the master key and the salt key.")
    if found.seal:
        which = "salt key" if settings.salt_key is not None else "master key"
        click.echo(f"{found.sealed} keys of servers in it are encrypted: a restore needs the {which} of today.")
    elif found.sealed:
        _warn(f"{found.sealed} keys of servers in it are encrypted, and this configuration has no salt key to check")
    for name in found.missing:
        _warn(f"{name} was missing beside the database, and is missing in the backup")


def restore(backup: Path, config: str | None, *, force: bool, keep_spool: bool) -> None:
    """Put a backup in place, and say what was done.

    Raises:
        SystemExit: it cannot be restored; all is as it was.
    """
    with _explained(f"{backup}: "):
        settings, url = _settings(config)
        spool = settings.spool_directory if settings.ledger.enabled else None
        wish = Wish(settings.sealing_secret, force, keep_spool, _warn)
        aside: list[str]
        if url.get_backend_name() == "sqlite":
            place = Place.of(Path(str(url.database)), spool)
            if restoring.finish_interrupted(place):
                click.echo("A restore that was interrupted is completed now.")
            with _shown("restored") as show:
                found, moves = restoring.restore(backup, place, wish, show)
            aside = [target for _, target in moves]
        else:
            # imported here: SQLite needs no driver
            from twisted_vllm.storage.backup import postgresql_restore

            place = Place.of(None, spool)
            if postgresql_restore.finish_before_restore(place, url):
                click.echo("A restore that was interrupted is completed now.")
            with _shown("restored") as show:
                found, aside = postgresql_restore.restore_postgresql(backup, url, place, wish, show)
    click.echo(f"Restored into {describe_database(settings.database_url)}.")
    _describe(found)
    for each in aside:
        click.echo(f"moved aside:    {each}")
    click.echo("Start the gateway: it adds up what the spool has, and migrates an older schema.")


def _settings(config: str | None) -> tuple[Settings, URL]:
    settings = load(file=config, environ=os.environ)
    return settings, parse_url(settings.database_url)


def _describe(found: Manifest) -> None:
    database = "SQLite" if found.database == SQLITE else "PostgreSQL"
    rows = [
        ("as of", f"{found.taken_at}, finished at {found.finished_at}"),
        ("made by", f"vllm-passthrough {found.version}, schema {found.schema}"),
        ("database", f"{database}, {found.bytes - found.bytes_of(SPOOL):,} bytes" + _with_partitions(found)),
        ("spool", f"{found.count_of(SPOOL)} files, {found.bytes_of(SPOOL):,} bytes"),
    ]
    for name, text in rows:
        click.echo(f"{name + ':':16}{text}")


def _with_partitions(found: Manifest) -> str:
    if found.count_of(DUMP):
        return " as pg_dump writes it"
    return f" with {found.count_of(USAGE)} files of the ledger's rows"


def _total(path: Path) -> int:
    return checking.read_header(path).bytes


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)


@contextmanager
def _explained(before: str) -> Iterator[None]:
    """Say errors in one line each and end with status 1; a signal ends as Ctrl-C does, so that nothing is left."""
    former = {number: signal.signal(number, _interrupted) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except BackupError as error:
        text = str(error)
        # what is wrong with a file begins with "it", and follows its name
        problem = f"{before if text.startswith('it') else ''}{text}"
    except (ConfigError, StoreError) as error:
        problem = str(error)
    except OSError as error:
        name = "" if error.filename is None else f"{error.filename}: "
        problem = f"{name}{error.strerror or error}"
    except KeyboardInterrupt:
        problem = "interrupted; nothing was changed, and nothing of it is kept"
    else:
        return
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    click.echo(f"vllm-passthrough: {problem}", err=True)
    raise SystemExit(1) from None


def _interrupted(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@attrs.define
class _Shown:
    """Shows how far something is, once a percent.

    Attributes:
        what: what is done to the bytes.
        last: the percent that was shown last.
    """

    what: str
    last: int = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent != self.last:
            self.last = percent
            click.echo(f"\r{percent:3} % {self.what}", err=True, nl=False)


@contextmanager
def _shown(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show on a terminal how far something is."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    shown = _Shown(what)
    try:
        yield shown
    finally:
        if shown.last >= 0:
            click.echo("\r\x1b[K", err=True, nl=False)
