"""A run on TensorBoard, or on Weights & Biases: `python examples/boards.py tensorboard`, or `wandb`."""

import sys

import spiketriton


def tensorboard(folder):
    """Each number of a row as a scalar: train/loss, eval/test_accuracy, ..."""
    from torch.utils.tensorboard import SummaryWriter  # pip install tensorboard

    writer = SummaryWriter(folder)

    def log(row):
        for name, value in named(row).items():
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return log


def weights_and_biases(**options):
    """The same there, with options of `wandb.init`: project, mode="offline", id and resume of a run that goes on."""
    import wandb  # pip install wandb

    board = wandb.init(**options)
    return lambda row: board.log({"step": row["step"], **named(row)})


def named(row):
    return {
        f"{row['kind']}/{key}": x
        for key, x in row.items()
        if isinstance(x, int | float) and key != "step"
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["tensorboard"]:
        log = tensorboard("runs/board")
    else:
        log = weights_and_biases(project="spiketriton")
    spiketriton.train("quickstart", on_row=log)
