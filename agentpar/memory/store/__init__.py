"""Where a bank's entries lie: SQLite for one host, Postgres for many."""
