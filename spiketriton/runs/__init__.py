"""The folder of a run.

Read request.py (what a command asks for: a new run, or one to go on with), folder.py (its files), rows.py and
checkpoint.py (what is in them), same_recipe.py (which keys may change between sessions). boards.py sends rows to
TensorBoard and Weights & Biases, outputs.py keeps commands from overwriting another's files.
"""
