"""Networks of tests: given modules in place of trained ones."""

from typing import Any

from torch import nn

from methods.networks import NetworkFactory, NetworkSettings


class Given(NetworkFactory):
    """A factory that hands out one module, whatever it is asked for."""

    module: nn.Module

    def __call__(self, scalars: int, outputs: int, extra_inputs: int = 0) -> nn.Module:
        return self.module


def given(module: nn.Module, dim: int = 2, **settings: Any) -> NetworkFactory:
    """The factory of ``module`` for data of a dimension, with network settings."""
    factory = Given(NetworkSettings(**settings), (dim,))
    object.__setattr__(factory, "module", module)
    return factory
