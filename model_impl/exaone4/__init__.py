"""The EXAONE 4.0 architecture for vLLM: `config` reads a config.json, `architecture` says which layer is what, `model`
computes it.
"""
