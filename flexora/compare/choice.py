"""``python -m flexora.compare.choice TRIAL ...``: a selector's choice, in a process that its model leaves with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flexora.compare.kept import CHOICE
from flexora.compare.study import instantiated, make_study, study_parser
from flexora.compare.trial import choose
from flexora.errors import FlexoraError
from flexora.usage import measured


def main(arguments: Sequence[str]) -> int:
    """Choose the layers of one trial.

    Args:
        arguments: The trial's name, then the command line of the study.
    """
    name, *rest = arguments
    try:
        study = make_study(instantiated(study_parser(), rest))
        (trial,) = (trial for trial in study.trials if str(trial) == name)
        with measured(study.run_folder(trial).root / CHOICE):
            choose(study, trial)
    except FlexoraError as error:
        print(f"flexora compare: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
