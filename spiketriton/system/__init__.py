"""What stands below everything: errors, streams, locks, the machine, ranks, and the commands by name.

Read errors.py (`UserError`, and how a command ends), streams.py (output that may be closed or full), commandline.py
(commands and their options). ranks.py is one process, group.py several, torchrun.py their start; plain.py checks what
files hold, consent.py asks before somebody else's code runs.
"""
