"""Runtimes: what turns a prompt into text."""
