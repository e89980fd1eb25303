"""What our Postgres databases have in common: an address, one connection, a transaction.

It must never know what lies in a database, nor which errors its users raise: it says what is wrong.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from agentpar.errors import MissingPackage, UsageError

if TYPE_CHECKING:
    import psycopg

Execute = Callable[..., Any]
"""``execute(statement, *parameters)`` gives a DB-API cursor; a parameter is ``?``."""

# A server that has fallen silent is given up within the time of a lease.
_CONNECTION: dict[str, Any] = {
    "application_name": "agentpar",
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
}


class Database:
    """The database at ``url``, over one connection that is made when it is first needed, and anew
    when it broke. ``what`` lies there ("bank") is for messages; ``settings`` are each session's.

    Raises `UsageError` for an address that is none. What psycopg raises is the caller's to tell.
    """

    def __init__(self, url: str, *, what: str, settings: str) -> None:
        try:
            import psycopg
        except ImportError:
            purpose = f"a {what} in Postgres"
            raise MissingPackage("psycopg", extra="postgres", purpose=purpose) from None
        try:
            known = psycopg.conninfo.conninfo_to_dict(url)
        except psycopg.Error as error:  # its text may show the password
            kind = type(error).__name__
            raise UsageError(
                f"the {what}'s address is none that Postgres knows "
                f"({kind}): write postgresql://user@host:5432/database"
            ) from None
        self._what = what
        self.place = f"{known.get('dbname', '')} on Postgres at {known.get('host', 'localhost')}"
        options = f"{settings} {known.pop('options', None) or ''}"
        self._url = psycopg.conninfo.make_conninfo(**{**_CONNECTION, **known}, options=options)
        self._connection: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Execute]:
        """All of the block, or nothing of it."""
        import psycopg

        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connection = psycopg.connect(self._url)
        try:
            yield partial(_execute, connection)
            connection.commit()
        except BaseException:
            if not connection.closed:
                with contextlib.suppress(psycopg.Error):
                    connection.rollback()
            raise

    def trouble(self, error: psycopg.Error) -> tuple[str, bool]:
        """What is wrong and what to do about it, in words, and whether the server is gone."""
        from psycopg import errors

        it, why = f"the {self._what} {self.place}", said(error)
        if isinstance(error, errors.DiskFull):
            text = f"there is no room for more in {it} ({why}): what it holds is untouched; "
            return text + "make room on its disk", False
        if isinstance(error, errors.ReadOnlySqlTransaction):
            return f"{it} cannot be written ({why}): name a server that may be written to", False
        gone = self._is_gone(error)
        return f"{it} {'is gone' if gone else 'cannot be used'}: {why}", gone

    def _is_gone(self, error: Exception) -> bool:
        """Whether the server cannot be reached, or has ended our session: that comes as an error of
        any kind, and what tells is that the connection is closed."""
        import psycopg

        if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
            return True
        return self._connection is not None and self._connection.closed


def said(error: Exception) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _execute(connection: psycopg.Connection[Any], statement: str, *parameters: Any) -> Any:
    # Without parameters several statements may go at once, and a "%" means itself.
    return connection.execute(statement.replace("?", "%s"), parameters or None)
