"""Tools: things a plan can call."""
