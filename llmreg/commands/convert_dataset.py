"""llmreg_convert_dataset: a raw dataset from the files of a public download."""

import argparse
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from llmreg.commands import shell
from llmreg.errors import BadArgument, UserError
from llmreg.settings import locate_problem

EXAMPLES = """\
  llmreg_convert_dataset learn2reg-abdomen-mrct downloads/AbdomenMRCT
  llmreg_convert_dataset learn2reg-abdomen-mrct downloads/AbdomenMRCT --protocol learn2reg -d 12
  llmreg_convert_dataset sr-reg downloads/SR-Reg
"""


def action(options: argparse.Namespace) -> None:
    """Convert the download with the chosen converter."""
    from llmreg.data.converters.converter import CONVERTERS

    converter = CONVERTERS.get(options.converter)
    chosen = {name: value for name, value in vars(options).items() if name in converter.options.model_fields}
    try:
        converter_options = converter.options(**chosen)
    except ValidationError as error:
        option, problem = locate_problem(error)
        if option not in chosen:
            raise UserError(f"These options do not fit together: {problem}.") from error
        raise BadArgument(option, f"{option} cannot be '{chosen[option]}': {problem}.") from error
    converter.convert(options.path, converter_options, options.id)


def build_parser() -> argparse.ArgumentParser:
    from llmreg.data.converters.converter import CONVERTERS

    parser = shell.create_parser(
        "Make a raw dataset in $llmreg_raw of a public download, with the cases of its protocol held out for testing. "
        "Images are linked where the disk allows it, and never changed.",
        EXAMPLES,
    )
    datasets = parser.add_subparsers(title="datasets", metavar="DATASET", required=True)
    for name, converter in CONVERTERS.parts.items():
        dataset = datasets.add_parser(name, help=shell.literal(converter.summary))
        dataset.set_defaults(converter=name)
        for option, field in converter.options.model_fields.items():
            dataset.add_argument(
                f"--{option}",
                required=field.is_required(),
                default=argparse.SUPPRESS,
                help=shell.literal(field.description or ""),
                **_argument_type(field),
            )
        dataset.add_argument("path", type=Path, metavar="PATH", help="folder of the unpacked download")
        dataset.add_argument(
            "-d",
            "--id",
            type=shell.positive,
            metavar="D",
            help=f"the dataset's id (default: {shell.literal(converter.default_id)})",
        )
    return parser


def _argument_type(field: FieldInfo) -> dict[str, Any]:
    """How argparse reads the values of a field: one of several strings, a file, or a text that pydantic converts."""
    if get_origin(field.annotation) is Literal:
        return {"choices": get_args(field.annotation)}
    return {"metavar": "FILE"} if Path in (field.annotation, *get_args(field.annotation)) else {"metavar": "VALUE"}


main = shell.create_main(build_parser, action)
