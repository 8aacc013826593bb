"""What is kept: the journal (before the answer), the database (for people), and the way from one to the other."""
