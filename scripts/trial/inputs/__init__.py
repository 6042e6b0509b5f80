"""The bad inputs, kind by kind, each kind beside what must be accepted."""
