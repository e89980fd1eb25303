"""``python -m agentpar.cli``: the command, where no script is installed."""

from agentpar.cli import main

main()
