"""What every API stands on: prompts, sampling, grammars, and the generations that make an answer; knows no API."""
