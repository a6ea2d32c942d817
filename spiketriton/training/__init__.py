"""Training: `session.Session` announces a run, makes data and trainer, and shows what came out.

Read session.py, trainer.py (the loop), optim.py (what follows the loss), placement.py (device and precision),
plan.py (when what happens), recording.py (rows). trained.py loads a run for the rooms, weights.py makes one of a file.
"""
