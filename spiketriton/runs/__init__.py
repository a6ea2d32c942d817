"""The folder of a run: folder.py, its rows (rows.py), its checkpoints (checkpoint.py); request.py finds or makes it."""
