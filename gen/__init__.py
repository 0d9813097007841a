"""Generative models in JAX: one file or one folder a family, one contract and one training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen.live import fit
    from gen.trained import Trained, load

__all__ = ["Trained", "fit", "load"]


def __getattr__(name: str) -> Any:
    """Import `fit`, `load` and `Trained` at their first use: `import gen` itself stays quick."""
    if name == "fit":
        from gen import live

        return live.fit
    if name in __all__:
        from gen import trained

        return {"load": trained.load, "Trained": trained.Trained}[name]
    raise AttributeError(f"module 'gen' has no attribute {name!r}")
