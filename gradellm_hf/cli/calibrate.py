"""`gradellm calibrate`: learns how much each head of a model counts."""

import argparse
import sys
from pathlib import Path

from .checks import at_least, check_files, check_folder, check_prompts, seed
from .model_options import add_model_arguments, load_model

_EXAMPLES = """
The model continues some hundred prompts, and tokens are left out one at a time: minutes for a small model on a CPU, once per
model. With --job, the same command continues a calibration that was stopped.

example:
  gradellm calibrate ./my-model --output head_weights.safetensors
  gradellm explain ./my-model --head-weights head_weights.safetensors --prompt "The capital of Italy is"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = _EXAMPLES
    add_model_arguments(parser)
    group = parser.add_argument_group("calibration")
    group.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write the weights to")
    group.add_argument("--prompts", metavar="PROMPTS", help="as for `gradellm dataset` (default: those of the package)")
    group.add_argument("--job", type=Path, metavar="FOLDER", help="a folder for what is measured, to be continued")
    group.add_argument("--num-prompts", type=at_least(2), metavar="N", help="take so many of them, in equal parts of each kind")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of the continuations and draws (default: 0)")


def run(options: argparse.Namespace) -> int:
    from ..calibration import calibrate

    prompts = None if options.prompts is None else Path(options.prompts)
    check_files({"--output": options.output}, {"--prompts": prompts})
    if options.job is not None:
        check_folder("--job", options.job)
    if options.prompts is not None:
        check_prompts(options.prompts, None)
    weights = calibrate(
        load_model(options),
        prompts=options.prompts,
        seed=options.seed,
        num_prompts=options.num_prompts,
        output_dir=options.job,
    )
    weights.save(options.output)
    report, held_out = weights.report, weights.report["held_out"]
    print(f"{options.output}: weights of {weights.feature}s, from {report['ablations']} ablations", file=sys.stderr)
    for name, when in (("as by default", "before"), ("with these weights", "after")):
        rank, pearson = held_out[when]["rank"], held_out[when]["pearson"]
        print(f"{name}: rank correlation {rank:.3f}, Pearson's {pearson:.3f} with leaving one out, in held-out kinds of text")
    return 0
