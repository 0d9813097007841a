"""Boltzmann machines: restricted, deep, general; and deep belief nets."""

from gen.models.boltzmann.dbm import DBM
from gen.models.boltzmann.dbn import DBN
from gen.models.boltzmann.general import BoltzmannMachine
from gen.models.boltzmann.rbm import RBM

__all__ = ["DBM", "DBN", "RBM", "BoltzmannMachine"]
