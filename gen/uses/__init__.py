"""Uses of trained models, as functions of a model, its state, arrays and a key or a seed."""
