"""Reinforcement learning in reasoning mode: AGAPO (EXAONE 4.0 report), with GRPO and SFT beside it.

`prompts` (what is asked, and what is dropped) → `rollouts` (our engine answers) → `advantage` → `loss` → `run` (the
loop, its checkpoints and checks). `plot` draws runs beside each other.
"""
