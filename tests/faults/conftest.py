"""What the fault tests share."""

from tests.postgres_server import server
from tests.warm import warm

__all__ = ["server", "warm"]
