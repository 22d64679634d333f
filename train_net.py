"""Train a model, or evaluate one with --eval-only; on the CPU, one GPU or several, many machines.

python train_net.py --config-file FILE [--num-gpus N] [--resume | --overwrite] [KEY VALUE ...]
python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS FILE
torchrun --nproc_per_node N train_net.py --config-file FILE [--resume] [KEY VALUE ...]

``proscale train`` and ``proscale evaluate`` are the same as commands.
"""

import proscale  # noqa: F401  first, because it names a missing dependency in one sentence

# isort: split
from proscale.engine.run import argument_parser, main, run, setup
from proscale_cli import errors_in_one_sentence

__all__ = ["argument_parser", "main", "setup"]

if __name__ == "__main__":
    with errors_in_one_sentence("train_net.py"):
        run()
