"""Going to GPUs: what a profile needs, costs, fetches and launches."""
