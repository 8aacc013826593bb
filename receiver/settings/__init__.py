"""The settings: their names, types and defaults, and how they are read from a TOML file and the environment."""
