"""One file per family of generative models; each follows the contract of `gen.core`."""
