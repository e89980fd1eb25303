"""The executor: a pure machine that decides, a driver that does."""
