"""Baselines that a GPT must beat to be worth its time."""
