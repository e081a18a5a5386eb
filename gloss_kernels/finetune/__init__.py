"""`gloss-kernels finetune`: fine-tune a text encoder with cross entropy, G-Loss or both.

command -> data (or docstrings) -> encoder -> training (objective, checkpoint) -> evaluation -> plots, comparison.
Nothing is imported here: `gloss-kernels --help` must work without the demo extras.
"""
