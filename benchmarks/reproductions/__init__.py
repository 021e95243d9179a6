"""Projects that others published, run again: the rows, the runner and the page."""
