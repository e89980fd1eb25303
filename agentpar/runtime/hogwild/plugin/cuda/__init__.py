"""The plugin's side in a vLLM on CUDA: proven on a CPU only, never run on a GPU so far."""
