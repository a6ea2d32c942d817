"""One call over a window: checked (fire.py), allocated and computed by a backend (passes.py), gradients (gradient.py).

operators.py has the passes as operators, for what traces; recurrent.py is the call of neurons whose spikes come back.
"""
