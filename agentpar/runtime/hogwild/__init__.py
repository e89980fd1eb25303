"""Workers that share one KV cache while they write (Hogwild! Inference, arXiv 2504.06261)."""
