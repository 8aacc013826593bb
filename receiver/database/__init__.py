"""The database for people, SQLite or PostgreSQL: connections, schema, migrations, reads and writes."""
