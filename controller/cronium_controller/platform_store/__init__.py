"""The platform's live data: what a script in API mode reads and writes while it runs, and who did what to it.

Apart from `store`, which remembers what was submitted where: writes of scripts must not keep a result from being
stored. SQLite by default, PostgreSQL by URL. Nothing here knows HTTP or tokens' signatures.
"""

from .audit import Entry
from .database import Database, database_url
from .live import Caller, GrantError, LiveExecution, MissingVariableError, SequenceError, Write
from .platform import PlatformStore, Variable
from .quotas import Quota, QuotaError

__all__ = [
    "Caller",
    "Database",
    "Entry",
    "GrantError",
    "LiveExecution",
    "MissingVariableError",
    "PlatformStore",
    "Quota",
    "QuotaError",
    "SequenceError",
    "Variable",
    "Write",
    "database_url",
]
