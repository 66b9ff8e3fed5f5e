"""What the fault tests share."""

from tests.postgres_server import server

__all__ = ["server"]
