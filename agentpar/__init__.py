"""Agents that work in parallel on your own GPU."""
