"""What the fault tests share."""

from tests.postgres_server import database, server

__all__ = ["database", "server"]
