"""How many tokens a request of a model may have."""

from __future__ import annotations

from edged.config import Model
from edged.plan.kind import UnfitError


def in_force(model: Model, trained: int | None) -> tuple[int, str | None]:
    """Return the context, and the reason where it is not the one of the configuration.

    A figure that the model itself sets is exact: beyond the trained length it raises UnfitError.
    One that comes from [defaults] is meant for many models, so a shorter model lowers it.
    """
    wanted = model.context
    if trained is None or wanted <= trained:
        return wanted, None
    if not model.context_is_default:
        raise UnfitError(
            f"context = {wanted} is beyond the {trained} tokens that the model was trained on:"
            f" set context = {trained} or less"
        )
    return trained, (
        f"context is {trained}, not the default {wanted}: more the model was not trained on"
    )
