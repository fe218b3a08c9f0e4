"""What ``make chaos`` says of what it cannot do."""

from __future__ import annotations

import pytest

from .__main__ import main


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--minutes", "1"], "2 or more"),
        (["--minutes", "nan"], "2 or more"),
        (["--nodes", "3"], "4 to 100"),
        (["--nodes", "101"], "4 to 100"),
    ],
)
def test_a_run_that_could_not_be_judged_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
