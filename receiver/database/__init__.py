"""The database of events, SQLite or PostgreSQL: connections, schema, migrations, and what is stored and read."""
