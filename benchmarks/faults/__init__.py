"""Faults are put into runs, files, inputs and processes, and what comes of them is compared with the right result."""
