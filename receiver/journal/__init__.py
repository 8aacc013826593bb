"""The write-ahead journal: a local SQLite file that holds each delivery from before its 200 until it is stored."""
