import pytest

from llmreg.commands import shell
from llmreg.errors import UserError


def run(action, argv=(), prepare=lambda parser: None):
    parser = shell.parser("Does a thing.", "  llmreg_thing")
    prepare(parser)
    return shell.run(action, parser, list(argv))


def fails(error):
    def action(options):
        raise error

    return action


def test_success_is_0_a_users_mistake_2_and_an_interruption_130(capsys):
    assert run(lambda options: None) == 0
    assert run(fails(UserError("The file x is missing: add it."))) == 2
    assert capsys.readouterr().err == "error: The file x is missing: add it.\n"
    assert run(fails(KeyboardInterrupt())) == 130


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        run(fails(ZeroDivisionError()))


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many"])
def test_a_count_must_be_positive(text, capsys):
    with pytest.raises(SystemExit) as stop:
        run(lambda options: None, ["--n", text], lambda parser: parser.add_argument("--n", type=shell.positive))
    assert stop.value.code == 2
    assert "whole number from 1" in capsys.readouterr().err
    assert shell.positive("3") == 3
