"""`spiketriton report RUN`: one self-contained HTML page about a run, made by page.py."""
