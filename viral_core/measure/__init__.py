"""What the paper's figures measure, of any LLaVA or LLaVA-NeXT of transformers; functions take model, processor, images
and prompts and return tidy tables.

- `cknna`, `states`: similarity of visual tokens to the encoder's features, layer by layer (Figure 2(d))
- `attention`: spatial entropy of text-to-image attention (Figure 4)
- `permutation`: shuffled visual features (Table 3)
- `pca`: colours of visual tokens (Figure 5)
- `probes`: what can be read linearly from every layer
- `intervals`: the interval of every number
"""
