"""What several parts of the trial use."""
