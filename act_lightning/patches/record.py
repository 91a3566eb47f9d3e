"""What a patch says about itself: which weights it fits, what it makes of them, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class TensorChange:
    """What a patch does to one stored tensor.

    Attributes:
        name: The parameter's name in the model, which need not be the key it is stored under.
        dtype: The dtype in safetensors' spelling, such as ``BF16``.
        shape: The sizes of the whole tensor.
        rows: How many whole rows are in the patch; of a vector, elements.
        columns: How many whole columns.
        changed: How many elements differ between base and result.
        codecs: How each part is packed, ``raw`` or ``zlib``: ``rows``, ``columns``, ``xor0`` and so on.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: int
    columns: int
    changed: int
    codecs: Mapping[str, str]


@dataclass(frozen=True)
class PatchRecord:
    """The metadata of a patch, JSON under the key ``act_patch``.

    Attributes:
        base: Digest of the weights that it fits; see :func:`~act_lightning.patches.stored.weights_digest`.
        result: Digest of the weights that it makes of them.
        parameters: How many elements the model has in all.
        tensors: What changes, by the key in the base's files; all other tensors keep every bit.
        provenance: How base and tuned model were named, values in which their configs differ, versions, and the
            tuned folder's own record of its transfer and its recipe.
        format: Version of the layout.
    """

    base: str
    result: str
    parameters: int
    tensors: Mapping[str, TensorChange]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PatchRecord:
        """The inverse of :meth:`to_json`; keys of later versions are passed over.

        Raises:
            KeyError: Something is missing.
            TypeError: Something has another form.
        """
        tensors = {
            key: TensorChange(
                str(one["name"]),
                str(one["dtype"]),
                tuple(int(size) for size in one["shape"]),
                int(one["rows"]),
                int(one["columns"]),
                int(one["changed"]),
                dict(one["codecs"]),
            )
            for key, one in values["tensors"].items()
        }
        base, result = str(values["base"]), str(values["result"])
        return cls(base, result, int(values["parameters"]), tensors, dict(values["provenance"]), values["format"])
