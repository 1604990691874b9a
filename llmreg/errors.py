"""The exceptions that reach a user as a sentence instead of a traceback.

Every class carries what it is about as attributes, so that a program can react to it. Its message says what is wrong,
with which file, and what to do in terms that hold for Python and the command line alike. It names no option of a
command: :mod:`llmreg.commands.hints` adds those for people who typed one.
"""

import copyreg
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class UserError(Exception):
    """Something the user can mend; the base of all errors that this package raises on purpose.

    The command line prints the message, adds a hint where it knows one, and exits with code 2.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Processes send each other errors. By default they are rebuilt by calling the class with the message alone.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class MissingFile(UserError):
    """A file or folder that is needed does not exist.

    Attributes:
        path: where it was looked for.
        remedy: what to do, a clause.
    """

    def __init__(self, path: Path, remedy: str = "") -> None:
        super().__init__(f"{path} does not exist" + (f": {remedy}." if remedy else "."))
        self.path, self.remedy = path, remedy


class UnreadableFile(UserError):
    """A file exists, but its content cannot be read or is not what it should be.

    Attributes:
        path: the file.
        problem: what is wrong, a clause that continues the path.
        remedy: what to do, a clause.
    """

    def __init__(self, path: Path | str, problem: str, remedy: str = "") -> None:
        super().__init__(f"{path} {problem}" + (f": {remedy}." if remedy else "."))
        self.path, self.problem, self.remedy = path, problem, remedy


class BadImage(UnreadableFile):
    """An image, label map or mask that cannot be used."""


class BadTransform(UnreadableFile):
    """A transform or displacement field that cannot be used."""


class UnclearField(BadTransform):
    """A displacement field of a format that does not fit here, or whose file does not say which format it has."""


class BadTable(UnreadableFile):
    """A table of pairs or landmarks that cannot be used."""


class BadDataset(UnreadableFile):
    """A raw dataset that does not follow the format.

    Attributes:
        key: the entry of ``path``, its description, that is wrong; empty where the whole file or folder is.
    """

    def __init__(self, path: Path, key: str, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: '{key}'" if key else path, problem, remedy)
        self.path, self.key = path, key


class BadDownload(UnreadableFile):
    """A download that cannot be converted to a dataset."""


class BadModelZip(UnreadableFile):
    """A zip of a shared model that is damaged, hostile, or none at all."""

    def __init__(self, path: Path, problem: str, remedy: str | None = None) -> None:
        super().__init__(path, problem, remedy or "get it again from whoever exported it")


class MissingOutput(UserError):
    """A folder of predictions lacks an output that is needed.

    Attributes:
        folder: the folder.
        pair_id: the pair.
        output: what was not saved: field ...
    """

    def __init__(self, folder: Path, pair_id: str, output: str) -> None:
        super().__init__(f"{folder} holds no {output} of {pair_id}: predict again, and save it.")
        self.folder, self.pair_id, self.output = folder, pair_id, output


class MissingFolder(UserError):
    """No environment variable says where a folder is.

    Attributes:
        variable: the folder's own variable.
        common: the variable that names the folder above all.
    """

    def __init__(self, variable: str, common: str) -> None:
        super().__init__(
            f"The environment variable {variable} is not set: set it, or {common} for all folders at once."
        )
        self.variable, self.common = variable, common


class NotWritable(UserError):
    """A file or folder cannot be written.

    Attributes:
        path: what was to be written.
        reason: what the system says.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"Cannot write {path}: {reason}. Choose a folder that you may write to.")
        self.path, self.reason = path, reason


class WouldOverwrite(UserError):
    """A result would replace a file that exists, which was not allowed.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} exists already and is not replaced.")
        self.path = path


class WouldReplaceInput(UserError):
    """A result would replace a file that it is made from.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is read and would be replaced by the result: write the result elsewhere.")
        self.path = path


class HoldsPredictions(WouldOverwrite):
    """A folder holds predictions, which were to be neither replaced nor completed."""


class OtherPredictions(UserError):
    """A folder whose predictions were to be completed holds some of another model, or predicted in another way.

    Attributes:
        folder: the folder.
        difference: what differs, with the value in the folder.
    """

    def __init__(self, folder: Path, difference: str) -> None:
        super().__init__(f"{folder} holds predictions of another model ({difference}): use that one, or replace them.")
        self.folder, self.difference = folder, difference


class UnknownName(UserError, ValueError):
    """Something was named that does not exist among a known set.

    It is a ValueError too, so that pydantic counts it among what is wrong with settings that name something. The
    ``explanation`` is a further sentence of the message.

    Attributes:
        kind: what is named: network, term, configuration ...
        name: the name that was given.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Sequence[str], explanation: str = "") -> None:
        choice = ", ".join(known) or "nothing, since there is none"
        super().__init__(f"There is no {kind} '{name}': choose {choice}. {explanation}".rstrip())
        self.kind, self.name, self.known = kind, name, tuple(known)


class BadArgument(UserError):
    """An argument of a function is missing, or does not fit the others.

    Attributes:
        argument: its name.
        problem: what is wrong, and what to give instead.
    """

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(problem)
        self.argument, self.problem = argument, problem


class Ambiguous(UserError):
    """A choice is needed, because several things fit.

    Attributes:
        kind: what is to be chosen: model, dataset ...
        candidates: what fits.
    """

    def __init__(self, kind: str, candidates: Sequence[str]) -> None:
        super().__init__(f"More than one {kind} fits: choose one of {', '.join(candidates)}.")
        self.kind, self.candidates = kind, tuple(candidates)


class OtherPlans(UserError):
    """A folder holds a model or volumes of plans other than those that are given.

    Attributes:
        folder: the folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} belongs to other plans: give these plans another name, or remove the folder.")
        self.folder = folder


class NotPrepared(UserError):
    """A step before this one has not been run.

    Attributes:
        path: what is missing.
        step: what makes it: fingerprint, plan, preprocess, train, predict, evaluate, fetch_llm.
        dataset: the dataset's id or name, where there is one.
        plans: the name of the plans, where the step needs one.
    """

    def __init__(self, path: Path | str, step: str, dataset: str | None = None, plans: str | None = None) -> None:
        super().__init__(f"{path} is missing: it is made by the step '{step}', which has to be run first.")
        self.path, self.step, self.dataset, self.plans = path, step, dataset, plans


class BadPlans(UserError):
    """Plans hold a key that is wrong.

    Attributes:
        source: the file, or what the plans are called.
        key: the path of the first wrong key.
        problem: what is expected there, a clause.
        remedy: what to do, a clause.
    """

    def __init__(self, source: Path | str, key: str, problem: str, remedy: str = "correct that key") -> None:
        super().__init__(f"{source}: {key}: {problem}: {remedy}.")
        self.source, self.key, self.problem, self.remedy = source, key, problem, remedy


class BadAssignment(UserError):
    """A change of plans that cannot be made.

    Attributes:
        assignment: the text ``key.path=value``.
        problem: what is wrong with it, a clause that continues the assignment.
    """

    def __init__(self, assignment: str, problem: str) -> None:
        super().__init__(f"'{assignment}' {problem}.")
        self.assignment, self.problem = assignment, problem


class EditedPlans(UserError):
    """Plans that were edited would be replaced.

    Attributes:
        path: their file.
        changes: what changed since they were planned.
    """

    def __init__(self, path: Path, changes: str) -> None:
        super().__init__(
            f"{path} was edited, and what it was planned from has changed since ({changes}): preprocess with it as it "
            "is, or allow that it is replaced."
        )
        self.path, self.changes = path, changes


class BadLanguageModel(UserError):
    """A language model that cannot be found, read or run.

    Attributes:
        source: its name, folder, file or address.
        problem: what is wrong, a clause that continues the source.
        remedy: what to do, a clause.
    """

    def __init__(self, source: str, problem: str, remedy: str) -> None:
        super().__init__(f"The language model {source} {problem}: {remedy}.")
        self.source, self.problem, self.remedy = source, problem, remedy


class MissingLayers(UserError):
    """The layers of a language model are neither in the layer cache nor at their source.

    Attributes:
        source: the language model.
        layers: zero-based indices.
        sha256: digest that they must have.
        folder: the layer cache.
        reason: why they cannot be read from their source.
    """

    def __init__(self, source: str, layers: Sequence[int], sha256: str, folder: Path, reason: str) -> None:
        super().__init__(
            f"Layers {', '.join(map(str, layers))} of the language model '{source}' (sha256 {sha256[:12]}) are not in "
            f"the layer cache {folder}, and not at their source ({reason}): copy their folder into the cache from the "
            "computer that trained with them, or fetch them again."
        )
        self.source, self.layers, self.sha256, self.folder, self.reason = source, tuple(layers), sha256, folder, reason


class DamagedLayers(UnreadableFile):
    """A folder of the layer cache is damaged, or does not hold the weights that its record names."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(folder, problem, "remove it and fetch the layers again")


class NotEnoughMemory(UserError):
    """Nothing that can be trained fits into the memory.

    Attributes:
        needed_gb: what the least needs.
        memory_gb: what there is.
    """

    def __init__(self, needed_gb: float, memory_gb: float) -> None:
        super().__init__(
            f"Not even the smallest network fits into {memory_gb:g} GB (it needs about {needed_gb:.1f}): plan with "
            "more memory or a smaller network."
        )
        self.needed_gb, self.memory_gb = needed_gb, memory_gb


class DeviceUnavailable(UserError):
    """A device cannot be used for computing.

    Attributes:
        device: its name.
        reason: what PyTorch says.
    """

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"The device '{device}' cannot be used ({reason}): use the CPU.")
        self.device, self.reason = device, reason


class MissingPackage(UserError):
    """An optional package is not installed.

    Attributes:
        package: its name on PyPI.
        purpose: what needs it.
        install: the requirement to install.
    """

    def __init__(self, package: str, purpose: str, install: str) -> None:
        super().__init__(f"{package} is not installed, which {purpose} needs: pip install '{install}'.")
        self.package, self.purpose, self.install = package, purpose, install


class WorkerEnded(UserError):
    """A worker process was ended from outside.

    Attributes:
        task: what it worked on.
    """

    def __init__(self, task: str) -> None:
        super().__init__(
            f"A process was ended from outside during '{task}', perhaps for want of memory: use fewer processes."
        )
        self.task = task


class Interrupted(Exception):
    """Work that was stopped by a signal and can be resumed.

    Attributes:
        exit_code: 128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for a termination.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"{signal.Signals(number).name}: {message}")
        self.exit_code = 128 + number
