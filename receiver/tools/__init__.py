"""Tools for people: a sender that behaves as MetaStudio does, and a doctor for callbacks that are rejected."""
