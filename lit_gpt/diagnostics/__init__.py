"""Verbs that look at text, models and runs. Training imports none of them."""
