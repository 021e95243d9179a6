"""Weights and configurations of other libraries, both ways."""
