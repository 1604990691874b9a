"""What to type after an error: the library's errors carry data, and the command line knows the options.

A hint that is the same for every error of a class stands in a table; others depend on the error's attributes. A class
that has no hint of its own gets that of its base.
"""

from pathlib import Path

from llmreg import errors
from llmreg.training import training_errors

OUT_OF_MEMORY_HINT = (
    "Free some, or do with less: in training with -c half, or a smaller network (--network, or --set with --as); "
    "in prediction with fewer outputs, or --device cpu."
)
_HINTS: dict[type[Exception], str] = {
    # Files.
    errors.WouldOverwrite: "Choose another --output, or add --overwrite.",
    errors.WouldReplaceInput: "Choose another --output.",
    errors.UnclearField: "llmreg_convert_field converts it; its option --from names the format that the file has.",
    errors.BadDownload: "llmreg_convert_dataset DATASET --help lists its options, such as --protocol and --split.",
    # Planning.
    errors.BadAssignment: "Write --set key=value, and name the changed plans with --as.",
    errors.EditedPlans: "Run llmreg_preprocess to keep it, or plan again with --overwrite.",
    errors.NotEnoughMemory: "Add --memory_gb, or where a language model is in the network, a smaller --llm.",
    errors.OtherPlans: "Name the changed plans with --as.",
    # Training.
    training_errors.HoldsTraining: "Add --continue to resume it.",
    training_errors.TrainingInterrupted: "Resume with --continue.",
    errors.Interrupted: "Run the same command again to resume.",
    training_errors.NothingToTrainOn: "Image similarity: --set loss.similarity=1 --as NAME.",
    training_errors.NonFiniteLoss: "A lower learning rate: --set training.learning_rate=1e-4 --as NAME.",
    errors.DamagedLayers: "Fetch them with llmreg_fetch_llm.",
    # Prediction.
    errors.HoldsPredictions: "Choose another --output, or add --overwrite, or --continue for missing pairs.",
    errors.OtherPredictions: "Add --overwrite, or choose another --output.",
    # The computer.
    errors.DeviceUnavailable: "Add --device cpu.",
    errors.WorkerEnded: "Give a smaller --num_processes.",
}
# The command that makes what is missing, by the step's name.
_COMMANDS = {
    "fingerprint": "llmreg_extract_fingerprint -d {dataset}",
    "plan": "llmreg_plan_and_preprocess -d {dataset}",
    "preprocess": "llmreg_preprocess -d {dataset}",
    "train": "llmreg_train {dataset} FOLD",
    "predict": "llmreg_predict -i IMAGES -o PREDICTIONS",
    "evaluate": "llmreg_evaluate -i PREDICTIONS",
    "fetch_llm": "llmreg_fetch_llm SOURCE",
}
# Options whose names are not those of the arguments that they set.
_OPTIONS = {
    "dataset_id": "-d",
    "inputs": "-i, --labels or --landmarks",
    "label": "--labels",
    "name": "--as, which names plans that are changed with --set",
    "paths": "-i",
}


def hint(error: Exception) -> str:
    """Name the options of commands that help after an error, in a sentence; empty where none does."""
    match error:
        case errors.NotPrepared():
            return f"Type: {_spell_command(error)}."
        case errors.BadArgument(argument=argument):
            return f"See the option {_OPTIONS.get(argument, '--' + argument)}."
        # Of the files of plans, those of a dataset are planned; those in a model's folder belong to its checkpoints.
        case errors.BadPlans(source=source) if Path(source).match("Dataset*/*.json"):
            return "Or replace the file: plan again with --overwrite."
        case errors.MissingOutput(output=output):
            return f"Type: llmreg_predict with --save {output}."
        case errors.MissingFolder(variable=variable):
            return f"Type: export {variable}=/path/to/a/folder."
        case errors.Ambiguous(kind="trained model"):
            return "Give -d, -c, -p or --network, or the model's folder with -m."
        case errors.MissingPackage(purpose="this logger", package=package):
            return f"Or train without --log {package}."
        case errors.MissingPackage(purpose="that method"):
            return "All methods: pip install 'llmreg[peers]'."
        case errors.MissingLayers(source=source, layers=layers):
            return f"Type: llmreg_fetch_llm {source} --layers {' '.join(map(str, layers))}."
    return next((_HINTS[base] for base in type(error).__mro__ if base in _HINTS), "")


def _spell_command(error: errors.NotPrepared) -> str:
    """Spell the command that makes what is missing."""
    command = _COMMANDS[error.step].format(dataset=error.dataset or "DATASET")
    return command if error.plans is None else f"{command} -p {error.plans}"
