"""The plugin on vLLM's CPU backend."""
