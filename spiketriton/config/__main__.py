"""python -m spiketriton.config: prints docs/recipes.md."""

from spiketriton.config.recipe import main
from spiketriton.errors import run_command

if __name__ == "__main__":
    run_command(main)
