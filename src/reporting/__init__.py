"""What came of runs, as a page to look at."""
