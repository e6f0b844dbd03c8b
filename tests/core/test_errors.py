"""The error tree: each is ours and the built-in that people catch."""

import pickle

import cascadevl.core.errors as errors


def test_the_users_mistakes_are_also_the_matching_built_ins() -> None:
    for name in ("MessageError", "MediaError", "ConfigError", "SpecMismatch", "CheckpointError"):
        assert issubclass(getattr(errors, name), ValueError)
        assert issubclass(getattr(errors, name), errors.UserError)
    assert issubclass(errors.CheckpointNotFound, FileNotFoundError)
    assert issubclass(errors.MissingExtra, ImportError)
    assert not issubclass(errors.InternalError, errors.UserError)


def test_a_message_prints_as_it_was_written() -> None:
    for kind in (errors.CheckpointNotFound, errors.MissingExtra, errors.ConfigError):
        assert str(kind("There is no model 'x'.")) == "There is no model 'x'."


def test_a_bad_row_comes_back_whole_from_a_worker() -> None:
    problem = errors.DataError(
        where="receipts.jsonl:17", problem="There is no answer.", fix="Write one.", kind="answer"
    )
    again = pickle.loads(pickle.dumps(problem))
    assert str(again) == "receipts.jsonl:17: There is no answer. Write one."
    assert (again.where, again.problem, again.fix, again.kind) == problem.args
