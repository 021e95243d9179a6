"""Measures of the code itself: what one must read or touch to follow or change something, and names that moved."""
