"""The projector: reads deliveries from the journal, parses them, and stores them in the database."""
