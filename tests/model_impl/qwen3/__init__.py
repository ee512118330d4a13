"""Qwen3 as a folder, by `docs/add-a-model.md`: what a second architecture beside EXAONE 4.0 takes."""
