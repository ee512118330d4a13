"""Small random checkpoints of many families, with the families' special tokens, through the server and vLLM.

They say nothing sensible: what is looked at is what the server and the grammar alone make certain. `make test-families`
runs all and writes `results.json`, from which docs/families.md is made; the test suite runs some, and gpt-oss' apart.
"""
