"""Reports of runs: an HTML page, and model cards."""
