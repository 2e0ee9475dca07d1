"""What the paper's figures measure, of any LLaVA or LLaVA-NeXT of transformers; functions take model, processor, images
and prompts and return tidy tables."""
