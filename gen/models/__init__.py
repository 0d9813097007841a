"""One file or one folder for each family of models; every model follows `gen.core`'s contract."""
