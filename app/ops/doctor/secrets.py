"""Connection strings without what is secret in them."""

from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

HIDDEN = "***"

# What libpq itself would not show in a dialogue.
SECRETS = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults() if option.dispchar in (b"*", b"D")}


def shown_url(url: str) -> str:
    """A URL or key=value string as keys and values, secrets hidden; nothing of one that cannot be understood."""
    try:
        given = conninfo_to_dict(url)
    except psycopg.Error:
        return "(not shown: it is no PostgreSQL URL)"
    return make_conninfo(**{key: HIDDEN if key in SECRETS else str(value) for key, value in given.items()})


def hide(message: str, url: str | None) -> str:
    """A message that a driver or server made, without the secrets of the URL."""
    try:
        given = conninfo_to_dict(url or "")
    except psycopg.Error:
        return "DATABASE_URL is no PostgreSQL URL, such as postgresql://user@host/name."
    for secret in (str(value) for key, value in given.items() if key in SECRETS and value):
        message = message.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    return message
