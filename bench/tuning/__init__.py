"""Tuning: what is searched, the trials, and the choice."""
