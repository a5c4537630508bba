"""Addresses of libraries in PostgreSQL: ``postgresql://user@host/database?library=photos``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from shlex import quote as quote_word
from urllib.parse import parse_qsl, quote, urlencode

from ...errors import AuroraError, short

SCHEMES = ("postgresql://", "postgres://")
PREFIX = "aurora_"  # of the schemas that hold libraries
_LONGEST = 63 - len(PREFIX)  # bytes; PostgreSQL cuts longer names
_OWN = "library"  # the word of the address that is ours, not PostgreSQL's


def is_address(place: object) -> bool:
    return isinstance(place, str) and place.startswith(SCHEMES)


@dataclass(frozen=True)
class Address:
    """Where a library is.

    Printing it shows no password, and neither does an error.
    """

    fields: dict[str, str]  # as libpq calls them; the password may be among them
    library: str  # empty: the only one of the database

    def __str__(self) -> str:
        host, user = self.fields.get("host", ""), self.fields.get("user", "")
        words = {_OWN: self.library} if self.library else {}
        if host.startswith(("/", "@")) or "," in host:  # a socket, or several servers
            words, host = {"host": host, **words}, ""
        place = f"{quote(user)}@" if user else ""
        place += f"[{host}]" if ":" in host else host
        place += f":{self.fields['port']}" if self.fields.get("port") else ""
        asked = f"?{urlencode(words, quote_via=quote, safe='/,@')}" if words else ""
        return f"postgresql://{place}/{quote(self.fields.get('dbname', ''))}{asked}"

    __repr__ = __str__

    @property
    def option(self) -> str:
        """The words by which a command finds the library, without the password."""
        return f"--store {quote_word(str(self))}"

    @property
    def schema(self) -> str:
        return PREFIX + self.library

    def of(self, library: str) -> Address:
        """The address of a library in the same database.

        Raises:
            AuroraError: if it can't have that name.
        """
        if not library.isprintable() or not 0 < len(library.encode(errors="replace")) <= _LONGEST:
            raise AuroraError(
                f"library {short(library)} can't be called so; name it in the address, ?library=NAME, with up to "
                f"{_LONGEST} letters"
            )
        return replace(self, library=library)


def parse_address(text: str) -> Address:
    """The address that a user wrote.

    Raises:
        AuroraError: if it is none; the message does not repeat it, since it may hold a password.
    """
    from psycopg import ProgrammingError
    from psycopg.conninfo import conninfo_to_dict

    place, _, asked = text.partition("?")
    words = parse_qsl(asked, keep_blank_values=True)
    library = [value for name, value in words if name == _OWN]
    rest = urlencode([pair for pair in words if pair[0] != _OWN], quote_via=quote)
    wrong = AuroraError(
        "the address of the store can't be read; it has the form postgresql://USER@HOST/DATABASE?library=NAME, "
        "with the signs / : @ ? % of a password written as %2F %3A %40 %3F %25"
    )
    try:
        given = conninfo_to_dict(f"{place}?{rest}" if rest else place)
    except (ProgrammingError, UnicodeError) as error:
        raise wrong from error
    database = place.partition("://")[2].partition("/")[2]
    ports = str(given.get("port") or "").replace(",", "")
    if "/" in database or "@" in database or (ports and not ports.isdecimal()):  # of a password, probably
        raise wrong
    address = Address({name: str(value) for name, value in given.items() if value is not None}, "")
    return address.of(library[-1]) if library else address
