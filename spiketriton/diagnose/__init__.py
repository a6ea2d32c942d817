"""`spiketriton diagnose RECIPE`: gradients through depth and time, measured and explained.

diagnosed.py takes what is diagnosed, diagnosis.py measures it and tries changes (trials.py, ablations.py), page.py and
picture.py show it; modules.py does so with a network in hand. The package is the function `spiketriton.diagnose`, too.
"""

from spiketriton.system.callable import as_function

as_function(__name__)
