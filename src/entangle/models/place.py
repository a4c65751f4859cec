"""A place: one site in one layer of one model, as the module whose input or output it is."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from entangle.errors import EntangleError
from entangle.models.sites import Layout, Side


class AtlasError(EntangleError):
    """A site that this model does not have, or a model that has no blocks to find.

    Example:
        >>> try:
        ...     en.Atlas(model).place("z", 2)
        ... except en.AtlasError as error:
        ...     print(error)
        ...
        layer 2 was asked for, but model.layers has layers 0 to 1
    """


@dataclass(frozen=True)
class Place:
    """One site in one layer of one model: the input or output of a module.

    Attributes:
        site: One of `resid_pre`, `z`, `attn_out`, `resid_mid`, `mlp_post`, `mlp_out`, `resid_post`.
        layer: Index of the block in its stack.
        path: The module's name in the model.
        module: The module itself.
        side: Whether the site is the module's input or its output.
        size: Numbers a token: `n_heads * d_head` for `z`, else `d_model` or `d_mlp`.
        n_heads: Of `z` only.
        d_head: Of `z` only.
        layout: How the module gets its tokens; `attach` hands every function `[batch pos size]`.
        turn: For a module that is several layers (ALBERT), which of its calls in one forward of `within` this layer is.
        within: The innermost module one call of which runs all these layers.
        block: The layer's block, whose input tells `batch` and `pos` where the module gets them flattened.
        root: The model.
        bypassed: Of `resid_mid`: whether the residual stream goes round the module, and not through it.

    Example:
        >>> place = en.Atlas(model).place("z", 0)
        >>> place.shape, place.side, place.path
        ((4, 8), 'input', 'model.layers.0.self_attn.o_proj')
    """

    site: str
    layer: int
    path: str
    module: nn.Module
    side: Side
    size: int
    n_heads: int | None = None
    d_head: int | None = None
    layout: Layout = "batch pos"
    turn: int | None = None
    within: nn.Module | None = field(default=None, repr=False)
    block: nn.Module | None = field(default=None, repr=False)
    root: nn.Module | None = field(default=None, repr=False)
    bypassed: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one token: `(n_heads, d_head)` for `z`, else `(size,)`."""
        return (self.size,) if self.n_heads is None or self.d_head is None else (self.n_heads, self.d_head)

    @property
    def out_projection(self) -> nn.Module:
        """The linear module that `z` feeds.

        Raises:
            AtlasError: For any other site.
        """
        if self.site != "z":
            raise AtlasError(
                f"only z feeds the attention's output projection, but this place is {self.site}: use atlas.place('z', "
                "layer)"
            )
        return self.module
