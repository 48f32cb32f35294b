"""The command line: psp-fast, or python -m psp_fast."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from psp_fast.configs import (
    Config,
    config_parser,
    config_to_yaml,
    option_parser,
    parse_config,
    parse_options,
    recipe_file,
)
from psp_fast.errors import ConfigError, DataError, PspFastError
from psp_fast.files import check_folder, expanded, free_name, locked
from psp_fast.streams import forgive_lost_output

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_FLAGS = ("-h", "--help", "--print_config", "--dynamic")  # options without a value

_USAGE = """psp-fast COMMAND [options]

commands:
  train       train a network; without arguments, on drawn scenes
  evaluate    measure a trained network on a validation set
  predict     label maps and overlays of images
  submit      label maps of Cityscapes' test set for its server
  convert     weights of other projects to psp_fast's, and to theirs
  export      a trained network as an ONNX file or a torch.export program
  check-data  read a data set and report what is wrong with it
  info        versions, what was built, what each op runs here

psp-fast COMMAND --help tells the options of a command."""


def main(given: Sequence[str] | None = None) -> int:
    """Run one command; the exit code: 0 done, 1 the user's input cannot be used, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if given is None else given)
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "predict": _predict,
        "submit": _submit,
        "convert": _convert,
        "export": _export,
        "check-data": _check_data,
        "info": _info,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"usage: {_USAGE}")
        return 0 if arguments else 2
    if arguments[0] not in commands:
        print(f"psp-fast: error: there is no command {arguments[0]!r}\nusage: {_USAGE}", file=sys.stderr)
        return 2
    if given is None:  # a process of our own
        forgive_lost_output()
    # Users name their own files: only what Pillow refuses to decode, above twice this size, is worth a word.
    warnings.filterwarnings("ignore", "Image size .* could be decompression bomb", RuntimeWarning)
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # psp_fast's own warning says it once
    try:
        return commands[arguments[0]](arguments[1:])
    except (PspFastError, OSError) as error:
        print(f"psp-fast: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except ModuleNotFoundError as error:
        if not error.name or error.name.startswith("psp_fast"):
            raise
        print(
            f"psp-fast: error: the Python module {error.name} is not installed: install psp_fast again with its "
            f"dependencies, or the package that has {error.name}",
            file=sys.stderr,
        )
        return 1
    except (MemoryError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        print(f"psp-fast: error: {reason} ({str(error).splitlines()[0].partition('. ')[0]})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("psp-fast: interrupted", file=sys.stderr)
        return 130


def _reason(error: MemoryError | RuntimeError) -> str | None:
    """What the user can do about an error of torch's; None of one that should not be."""
    from psp_fast.engine import distributed
    from psp_fast.engine.inference import of_memory

    if "DataLoader worker" in str(error):
        return "a process that loads images was killed, as where memory is short: give --train.workers a smaller number"
    if of_memory(error):
        return "there is not enough memory: lower train.batch_size or augment.crop, or evaluate with --eval.mode slide"
    if isinstance(error, RuntimeError) and distributed.of_another_process(error):
        return (
            "another process of this run has ended or does not answer: its own message says why, or it was killed or "
            "stopped"
        )
    return None


def _train(arguments: list[str]) -> int:
    usage = (
        "psp-fast train [RECIPE] [--train.steps N] [--model.layers N] [--any.option VALUE ...]\n"
        "       psp-fast train --resume RUN"
    )
    resumed = _resumed(arguments, usage)
    positional, options = ([], []) if resumed else _separated(arguments)
    recipe = _at_most_one(positional, "RECIPE", "scenes")
    base = _saved_config(resumed) if resumed else recipe_file(recipe)
    parser = config_parser(
        "psp-fast train",
        usage,
        "Train a network. RECIPE is a YAML file or the name of one that comes with psp_fast (default: scenes). "
        "Several GPUs or CPU processes: torchrun --nproc-per-node N -m psp_fast train ...",
    )
    config = parse_config(parser, ["--config", str(base), *options])

    from psp_fast.engine import distributed, run
    from psp_fast.engine.train import Trainer

    ranks, stem = distributed.start(config.device), Path(recipe).stem
    if not ranks.main:
        logging.getLogger("psp_fast").setLevel(logging.ERROR)  # one process tells what was loaded
    resumed = resumed or ranks.from_main(run.before_restart(config, stem) if ranks.main else None)
    with contextlib.ExitStack() as held:
        if resumed and ranks.main:
            held.enter_context(locked(resumed))
        trainer = Trainer(config, ranks, run.checkpoint_to_resume(resumed) if resumed else None)
        made = held.enter_context(run.new_folder(config, stem)) if ranks.main and not resumed else None
        folder = resumed or ranks.from_main(made)
        metrics = trainer.run(folder)
    if ranks.main:
        print(f"{metrics.table()}\n\n{metrics.headline()}")
        print(f"picture: {folder / 'examples.png'}   curves: {folder / 'curves.png'}")
        print(f"weights: {folder / run.LAST}; best, with mIoU {100 * trainer.best:.2f} %: {folder / run.BEST}")
    distributed.stop()  # not after an error: the other processes may be waiting in a collective
    return 0


def _resumed(arguments: Sequence[str], usage: str) -> Path | None:
    """The folder of --resume FOLDER, if that was given."""
    if not any(argument.split("=")[0] == "--resume" for argument in arguments):
        return None
    words = [word for argument in arguments for word in argument.split("=", 1)]
    if len(words) != 2 or words[0] != "--resume":
        raise ConfigError(
            "--resume takes the folder of a run and no other option; to change how the run goes on, edit its "
            f"config.yaml\nusage: {usage}"
        )
    return Path(expanded(words[1]))


def _evaluate(arguments: list[str]) -> int:
    positional, options = _separated(arguments)
    checkpoint = _at_most_one(positional, "CHECKPOINT_OR_RUN")
    usage = "psp-fast evaluate CHECKPOINT_OR_RUN [--data.root DIR] [--eval.mode slide] [--pictures [N]] [--out DIR]"
    description = "Measure a trained network on a validation set. Killed and started again, it goes on where it was."
    parser = config_parser("psp-fast evaluate", usage, description)
    from jsonargparse.typing import NonNegativeInt

    parser.add_argument(
        "--pictures",
        type=NonNegativeInt,
        nargs="?",
        const=5,
        default=0,
        help="also write evaluation.html, with plots and the N best and worst images",
    )
    wanted = _with_saved(checkpoint, options, parser)
    count, config = parse_options(parser, wanted).pictures, parse_config(parser, wanted)

    from psp_fast.engine import distributed, run
    from psp_fast.engine.evaluate import evaluate
    from psp_fast.engine.samples import build_dataset

    ranks = distributed.start(config.device)
    trained = run.load_trained(checkpoint, ranks.device)
    try:
        dataset = build_dataset(config.data, "val", trained.config.model.in_channels)
    except DataError as error:
        if not trained.unnamed:
            raise
        raise DataError(f"{error}; {checkpoint} names no data: give --recipe RECIPE, and --data.root DIR") from error
    trained.check_classes(dataset.classes, checkpoint)
    result = (Path(config.out) if config.out else run.checkpoint_of(checkpoint).parent) / "evaluation.json"
    check_folder(result.parent)
    if count:
        from psp_fast.engine.report import check_report, write_report

        check_report(result.parent, count)
    found = evaluate(trained.model, dataset, config, ranks, result)
    if ranks.main:
        found.warn_of_missing_classes()
        print(f"{found.metrics.table()}\n\nwritten to {result}")
        if count:
            page = write_report(result.parent, str(checkpoint), trained.model, dataset, found, config, count)
            print(f"page: {page}   pictures: {page.parent / 'pictures'}")
    distributed.stop()
    return 0


def _predict(arguments: list[str]) -> int:
    positional, options = _separated(arguments)
    usage = "psp-fast predict CHECKPOINT_OR_RUN IMAGE... [--out DIR] [--eval.mode slide] [--device cpu]"
    checkpoint = positional[0] if positional else ""
    config = _config_for(checkpoint, options, "psp-fast predict", usage, "Label maps and overlays of images.")
    if len(positional) < 2:
        raise ConfigError(f"no image to predict; usage: {usage}")

    from psp_fast.engine import distributed, run
    from psp_fast.engine.predict import predict

    folder = Path(config.out or "predictions")
    check_folder(folder)
    ranks = distributed.start(config.device)
    trained = run.load_trained(checkpoint, ranks.device)
    for path in predict(trained, positional[1:], folder, config, ranks.device):
        print(path)
    return 0


def _submit(arguments: list[str]) -> int:
    positional, options = _separated(arguments)
    usage = "psp-fast submit CHECKPOINT_OR_RUN [--data.root DIR] [--out DIR] [--eval.mode slide]"
    description = "Label maps of Cityscapes' test set, in ids and by the names that its server takes."
    checkpoint = _at_most_one(positional, "CHECKPOINT_OR_RUN")
    config = _config_for(checkpoint, options, "psp-fast submit", usage, description)

    from psp_fast.engine import distributed, run
    from psp_fast.engine.submit import submit

    ranks = distributed.start(config.device)
    trained, folder = run.load_trained(checkpoint, ranks.device), Path(config.out or "submission")
    check_folder(folder)
    written = submit(trained, config, folder, ranks.device)
    print(f"{len(written)} label maps written to {folder}: zip the folder for the server")
    return 0


def _convert(arguments: list[str]) -> int:
    from psp_fast.engine.convert import TARGETS, convert

    parser = option_parser(
        "psp-fast convert",
        "psp-fast convert IN [IN] OUT [--to LAYOUT] [--recipe RECIPE] [--align_corners true] [--bins '[1,2,3,6]']",
        "Read weights of any known project (docs/checkpoints.md) and write them as OUT, a .pth or .safetensors file.",
    )
    parser.add_argument("files", nargs="*", help="the file, or mit-semseg's encoder and decoder, and last OUT")
    parser.add_argument("--to", default="psp_fast", choices=TARGETS, help="whose names OUT has")
    parser.add_argument("--recipe", type=str | None, help="whose data, transforms and evaluation OUT names")
    parser.add_argument("--align_corners", type=bool | None, help="in place of what the layout's convention says")
    parser.add_argument("--bins", type=list[int] | None, help="in place of 1, 2, 3, 6")
    positional, named = _separated(arguments)
    options = parse_options(parser, [*positional, *named])
    if len(options.files) < 2:
        raise ConfigError(f"give the file to read and the file to write; usage: {parser.usage}")
    *files, out = options.files
    overrides = {name: options[name] for name in ("align_corners", "bins") if options[name] is not None}
    config = None
    if options.recipe is not None:
        recipe = config_parser("psp-fast convert", "", "")
        config = parse_config(recipe, ["--config", str(recipe_file(options.recipe))])
    print(convert(files, Path(out), options.to, config, overrides))
    return 0


def _export(arguments: list[str]) -> int:
    parser = option_parser(
        "psp-fast export",
        "psp-fast export CHECKPOINT_OR_RUN OUT [--size '[H,W]'] [--dynamic] [--output labels]",
        "Write a trained network as OUT, for other runtimes: .onnx, or .pt2 for a torch.export program. The file is "
        "run on a random image, and its results are compared with the network's.",
    )
    parser.add_argument("checkpoint", help="a checkpoint, or the folder of a run: its best.pth, or else last.pth")
    parser.add_argument("out", help="the file to write")
    parser.add_argument("--size", type=tuple[int, int] | None, help="of the images, in pixels; null: the training crop")
    parser.add_argument("--dynamic", action="store_true", help="images of any number and size")
    parser.add_argument("--output", choices=("logits", "labels"), default="logits", help="scores, or ids of classes")
    positional, named = _separated(arguments)
    options = parse_options(parser, [*positional, *named])

    import torch

    from psp_fast.engine import run
    from psp_fast.engine.export import export

    check_folder(Path(options.out).parent)
    trained = run.load_trained(options.checkpoint, torch.device("cpu"))
    size = options.size or trained.config.augment.crop
    for agreement in export(trained, options.out, size, dynamic=options.dynamic, output=options.output):
        print(f"as the network, on a random image of {agreement}")
    shape = (
        "any number and size" if options.dynamic else f"(1, {trained.config.model.in_channels}, {size[0]}, {size[1]})"
    )
    print(f"written to {options.out}: {options.output} of images of {shape}")
    return 0


def _check_data(arguments: list[str]) -> int:
    positional, options = _separated(arguments)
    parser = config_parser(
        "psp-fast check-data",
        "psp-fast check-data RECIPE [--data.root DIR] [--data.train_list FILE] [--out DIR]",
        "Read every image and label of a recipe's data set and report what is wrong; the exit code is 1 if "
        "anything is.",
    )
    recipe = _at_most_one(positional, "RECIPE", "scenes")
    config = parse_config(parser, ["--config", str(recipe_file(recipe)), *options])

    from psp_fast.data import check_dataset
    from psp_fast.engine.samples import build_dataset

    folder, ok = Path(config.out or "check-data"), True
    check_folder(folder)
    for split in ("train", "val"):
        report = check_dataset(build_dataset(config.data, split, config.model.in_channels))
        picture = free_name(folder / f"classes_{split}.png")
        report.save_histogram(picture)
        print(f"{split}: {report.text()}\nclass histogram: {picture}\n")
        ok = ok and report.ok
    return 0 if ok else 1


def _info(arguments: list[str]) -> int:
    if arguments:
        raise ConfigError(f"psp-fast info takes no arguments, got {' '.join(arguments)}")

    from psp_fast.info import report

    print(report())
    return 0


def _separated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files and names among the arguments, and the options with their values, wherever they stand."""
    positional: list[str] = []
    options: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        if argument == "--":
            return [*positional, *left], options
        if argument == "-" or not argument.startswith("-"):
            positional.append(argument)
            continue
        options.append(argument)
        value = left[:1]
        if "=" in argument or argument in _FLAGS or not value or value[0].startswith("--"):
            continue
        if argument != "--pictures" or value[0].isdecimal():
            options.append(left.pop(0))
    return positional, options


def _at_most_one(positional: Sequence[str], name: str, default: str = "") -> str:
    if len(positional) > 1:
        raise ConfigError(f"expected one {name}, got {' '.join(positional)}")
    return positional[0] if positional else default


def _saved_config(folder: Path) -> Path:
    path = folder / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder} holds no run to resume: there is no {path}")
    return path


def _config_for(checkpoint: str, options: Sequence[str], prog: str, usage: str, description: str) -> Config:
    """The configuration a checkpoint was trained with, changed by options; out is the options' alone."""
    parser = config_parser(prog, usage, description)
    return parse_config(parser, _with_saved(checkpoint, options, parser))


def _with_saved(checkpoint: str, options: Sequence[str], parser: ArgumentParser) -> list[str]:
    """The options, behind those that the checkpoint was trained with, or that --recipe has of data and evaluation."""
    parser.add_argument("--recipe", type=str | None, help="whose data and evaluation replace the checkpoint's")
    recipe = parse_options(parser, options).recipe  # --help, and mistakes in the options, come first
    if not checkpoint:
        raise ConfigError(f"no checkpoint given; usage: {parser.usage}")

    from psp_fast.engine.run import saved_config

    saved = dataclasses.replace(saved_config(checkpoint), out=None)
    if recipe is not None:
        chosen = parse_config(parser, ["--config", str(recipe_file(recipe))])
        saved = dataclasses.replace(saved, data=chosen.data, eval=chosen.eval)
    return ["--config", config_to_yaml(saved), *options]
