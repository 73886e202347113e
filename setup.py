"""Everything about the package stands in pyproject.toml; here only how it may be installed."""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class EditableOnly(bdist_wheel):
    """Refuse an install away from the repository.

    The commands keep data, runs and the tables they are checked against beside the code, and
    ``preprocess`` is no name for a package of its own in site-packages.
    """

    def run(self) -> None:
        """Refuse; an editable install does not come here."""
        raise SystemExit(
            "fairseq-csp is installed where it stands: clone the repository and run "
            "`pip install -c constraints.txt -e .` in it"
        )


setup(cmdclass={"bdist_wheel": EditableOnly})
