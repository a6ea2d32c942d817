"""`spiketriton sweep RECIPE key=a,b`: a grid of recipes, trained one after another.

grid.py names the runs and reads their rows, pictures.py draws their gradients.
"""
