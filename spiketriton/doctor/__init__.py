"""`spiketriton doctor`: whether spiketriton runs correctly on this machine; checkup.py is what it tries."""
