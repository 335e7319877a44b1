from __future__ import annotations

import pickle

import pytest

from pope_fast.errors import OverlapError, PopeError, PopeWarning, SchemaError, StateError


def test_every_error_is_a_pope_error() -> None:
    for kind in (SchemaError, OverlapError, StateError):
        assert issubclass(kind, PopeError)
        assert issubclass(kind, ValueError)
    assert issubclass(PopeWarning, UserWarning)
    assert not issubclass(PopeError, ValueError)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "NaN reward"),
        ({"column": "reward"}, "column 'reward': NaN reward"),
        ({"row": 0}, "row 0: NaN reward"),
        (
            {"column": "reward", "row": 17, "remedy": "drop the row"},
            "column 'reward', row 17: NaN reward. Remedy: drop the row.",
        ),
        ({"remedy": "drop it."}, "NaN reward. Remedy: drop it."),
    ],
)
def test_message_joins_what_is_known(given: dict[str, object], text: str) -> None:
    assert str(SchemaError("NaN reward", **given)) == text  # type: ignore[arg-type]


def test_schema_error_survives_pickling() -> None:
    error = SchemaError("NaN reward", column="reward", row=17, remedy="drop the row")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is SchemaError
    assert (copy.message, copy.column, copy.row, copy.remedy) == ("NaN reward", "reward", 17, "drop the row")
    assert str(copy) == str(error)
