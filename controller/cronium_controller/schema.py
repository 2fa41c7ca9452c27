"""The tables of the controller's database, and what makes those of today of older ones. Only statements.

`database` runs them and owns the file; `store`, `deployments`, `payload_versions` and `deploy.known_builds` work with
the tables.
"""

from typing import Final

VERSION: Final = 5
"""As it stands in the database's `user_version`: a cronium that knows a lower one refuses the file."""

_EXECUTIONS: Final = (
    "CREATE TABLE executions (id VARCHAR(64) NOT NULL, host VARCHAR NOT NULL, address VARCHAR NOT NULL, port INTEGER, "
    "user VARCHAR, identity VARCHAR, payload_sha256 VARCHAR(64) NOT NULL, label VARCHAR NOT NULL, state VARCHAR NOT "
    "NULL, submitted_at FLOAT NOT NULL, finished_at FLOAT, result BLOB, is_acknowledged BOOLEAN NOT NULL, "
    "run_as VARCHAR, mode VARCHAR DEFAULT 'bundled' NOT NULL, fallback BLOB, ways VARCHAR, PRIMARY KEY (id))",
    "CREATE INDEX executions_by_time ON executions (submitted_at)",
)
_HOST_HEALTH: Final = (
    "CREATE TABLE host_health (account VARCHAR NOT NULL, last_success FLOAT, last_failure FLOAT, "
    "consecutive_failures INTEGER NOT NULL, consecutive_successes INTEGER NOT NULL, "
    "total_successes INTEGER NOT NULL, total_failures INTEGER NOT NULL, unreachable INTEGER NOT NULL, "
    "next_try FLOAT NOT NULL, transport VARCHAR, transport_at FLOAT, last_error VARCHAR, PRIMARY KEY (account))"
)
_VERSIONED: Final = (
    "CREATE TABLE events (id VARCHAR(64) NOT NULL, name VARCHAR, payload_version INTEGER DEFAULT 1 NOT NULL, "
    "PRIMARY KEY (id))",
    # A folder is a version and the first twelve digits of a digest: so this is the key by host, version and digest.
    "CREATE TABLE runner_cache (account VARCHAR NOT NULL, root VARCHAR NOT NULL, folder VARCHAR NOT NULL, "
    "version VARCHAR NOT NULL, sha256 VARCHAR(64), architecture VARCHAR NOT NULL, said_version VARCHAR, "
    "tree_sha256 VARCHAR(64), verified_at FLOAT, checked_at FLOAT, is_chosen BOOLEAN DEFAULT 0 NOT NULL, "
    "PRIMARY KEY (account, root, folder))",
    "CREATE TABLE runner_deployments (id INTEGER NOT NULL, host VARCHAR NOT NULL, account VARCHAR NOT NULL, "
    "version VARCHAR, sha256 VARCHAR(64), architecture VARCHAR, deployed_at FLOAT NOT NULL, duration_ms FLOAT "
    "NOT NULL, bytes INTEGER NOT NULL, method VARCHAR NOT NULL, attempts INTEGER NOT NULL, outcome VARCHAR NOT "
    "NULL, error VARCHAR, PRIMARY KEY (id))",
    "CREATE INDEX runner_deployments_by_account ON runner_deployments (account, id)",
    # `tar_hash` is of the uncompressed tar: what decides whether something changed, whatever the compressor.
    "CREATE TABLE runner_payloads (id INTEGER NOT NULL, event_id VARCHAR(64) NOT NULL, version INTEGER NOT "
    "NULL, hash VARCHAR(64) NOT NULL, tar_hash VARCHAR(64) NOT NULL, path VARCHAR(512) NOT NULL, size INTEGER "
    "NOT NULL, created_at FLOAT NOT NULL, is_active BOOLEAN NOT NULL, PRIMARY KEY (id), UNIQUE (event_id, "
    "version), FOREIGN KEY(event_id) REFERENCES events (id))",
)

CREATED: Final = (*_EXECUTIONS, _HOST_HEALTH, *_VERSIONED)
"""What makes the tables of today of an empty database."""

MIGRATIONS: Final = {
    1: ("ALTER TABLE executions ADD COLUMN run_as VARCHAR",),
    2: (
        "ALTER TABLE executions ADD COLUMN mode VARCHAR DEFAULT 'bundled' NOT NULL",
        "ALTER TABLE executions ADD COLUMN fallback BLOB",
    ),
    3: ("ALTER TABLE executions ADD COLUMN ways VARCHAR", _HOST_HEALTH),
    4: _VERSIONED,
}
"""What makes the next version of an older one. A table that changes once more is written out here as it was made."""

ADDITIONS: Final = {
    "run_hosts": (
        # One row for each host of a run. `state` is `waiting` until nothing more can be started there; a host with an
        # execution has a row in `executions`, which then says how it ended.
        "CREATE TABLE run_hosts (run_id VARCHAR(64) NOT NULL, host VARCHAR NOT NULL, execution_id VARCHAR NOT NULL, "
        "state VARCHAR NOT NULL, result BLOB, noted_at FLOAT NOT NULL, "
        "PRIMARY KEY (run_id, host, execution_id)) WITHOUT ROWID",
    ),
    "partial_copies": (
        # Copies of files that are under way or were cut off. `account` is the host's, empty for a folder here; `uid` is
        # the folder's owner there; `owner` is the process that works on it.
        "CREATE TABLE partial_copies (account VARCHAR NOT NULL, folder VARCHAR NOT NULL, target VARCHAR NOT NULL, "
        "key VARCHAR(64) NOT NULL, uid INTEGER, owner VARCHAR NOT NULL, used_at FLOAT NOT NULL, "
        "PRIMARY KEY (account, folder)) WITHOUT ROWID",
    ),
    "known_builds": (
        # What our own binaries install: `listed` is JSON, files with their SHA-256 and links. `sha256` is the binary's.
        "CREATE TABLE known_builds (sha256 VARCHAR(64) NOT NULL, version VARCHAR NOT NULL, "
        "architecture VARCHAR NOT NULL, build_id VARCHAR(12) NOT NULL, listed BLOB NOT NULL, PRIMARY KEY (sha256))",
    ),
}
"""Tables that an older cronium of the same version does not miss, each by its name: made where they are absent."""
