"""The way in from other libraries, which nothing of this package needs: ``swap`` replaces another library's neurons by
what peers.py reads of them, and leaky.py is LIF in the words of two of them; fuse.py finds the norms that neurons take
over; draws.py holds the random generators still.
"""
