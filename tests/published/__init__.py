"""Chat templates as their makers published them, and whether they come out as transformers renders them.

`python -m tests.published.fetch` brings the templates, of which none is ours to hand on, into `runs/templates/`;
`python -m tests.published` compares, and writes `results.json`, from which docs/families.md is made.
"""
