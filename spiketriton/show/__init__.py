"""Words, pictures and tables that several commands share; what only one shows is in its room.

words.py has numbers and units, verdict.py the sentences of a verdict, screen.py terminals and pipes, figures.py the
style of pictures, run_pictures.py those of a run.
"""
