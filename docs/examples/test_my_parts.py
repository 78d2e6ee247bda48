"""What is one's own, held to the contracts that kdstudy's own parts are held to.

pytest --pyargs test_my_parts        (with this folder on PYTHONPATH)
"""

from trainables.contracts.datasets import DatasetContract
from trainables.contracts.methods import MethodContract
from trainables.contracts.models import ModelContract


class TestMyMethod(MethodContract):
    """Every check of a method."""

    names = ("my_parts:trust",)


class TestMyModel(ModelContract):
    """Every check of a model."""

    names = ("my_parts:linear",)


class TestMyData(DatasetContract):
    """Every check of a data set; the second of the pair is the folder of its files."""

    datasets = (("my_parts:stripes", None),)
