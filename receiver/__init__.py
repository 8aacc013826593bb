"""The receiver of MetaStudio's live event callbacks."""
