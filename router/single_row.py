"""One row through all boosters in microseconds, by LightGBM's single-row C interface.

Knows boosters and raw scores; knows nothing of probabilities or scales. ``Booster.predict`` spends
most of a single row's time in Python; the C interface keeps a prepared configuration per booster.
Where a LightGBM build lacks it, the same numbers come from ``Booster.predict``.
"""

import ctypes
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import lightgbm

_RAW_SCORE, _FLOAT32 = 1, 0  # C_API_PREDICT_RAW_SCORE, C_API_DTYPE_FLOAT32


class SingleRowScorer:
    """Raw scores of one row for all boosters; safe to call from several threads."""

    def __init__(self, boosters: "Sequence[lightgbm.Booster]") -> None:
        self._boosters = list(boosters)  # the prepared configurations point into them
        self._n_features = self._boosters[0].num_feature()
        # The prepared configurations share scratch memory: one call at a time.
        self._lock = threading.Lock()
        self._library, self._configs = _prepare(self._boosters, self._n_features)
        if self._configs:
            weakref.finalize(self, _free, self._library, self._configs)
            predict = self._library.LGBM_BoosterPredictForMatSingleRowFast
            self._row = np.zeros(self._n_features, dtype=np.float32)
            self._out = np.zeros(len(self._boosters), dtype=np.float64)
            length = ctypes.c_int64()
            row = ctypes.c_void_p(self._row.ctypes.data)
            step = self._out.itemsize
            self._calls = [
                (
                    predict,
                    (
                        config,
                        row,
                        ctypes.byref(length),
                        ctypes.c_void_p(self._out.ctypes.data + index * step),
                    ),
                )
                for index, config in enumerate(self._configs)
            ]

    @property
    def is_fast(self) -> bool:
        """Whether the C interface was found."""
        return bool(self._configs)

    def __call__(self, row: np.ndarray) -> list[float]:
        """Return K raw scores of a row (F,), which must be finite and of the fitted width."""
        if not self._configs:
            one = row[None]
            return [
                float(np.asarray(booster.predict(one, raw_score=True, num_threads=1))[0])
                for booster in self._boosters
            ]
        with self._lock:
            self._row[:] = row
            for predict, arguments in self._calls:
                if predict(*arguments) != 0:
                    message = self._library.LGBM_GetLastError().decode()
                    raise RuntimeError(f"LightGBM could not predict one row: {message}")
            scores: list[float] = self._out.tolist()
        return scores


def _prepare(boosters: "Sequence[lightgbm.Booster]", n_features: int) -> tuple[Any, list[Any]]:
    from lightgbm import basic

    library = getattr(basic, "_LIB", None)
    handles = [getattr(booster, "_handle", None) for booster in boosters]
    name = "LGBM_BoosterPredictForMatSingleRowFastInit"
    if library is None or None in handles or not hasattr(library, name):
        return None, []
    configs: list[Any] = []
    for handle in handles:
        config = ctypes.c_void_p()
        failed = getattr(library, name)(
            handle,
            ctypes.c_int(_RAW_SCORE),
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_int(_FLOAT32),
            ctypes.c_int32(n_features),
            ctypes.c_char_p(b"num_threads=1"),
            ctypes.byref(config),
        )
        if failed:
            _free(library, configs)
            return None, []
        configs.append(config)
    return library, configs


def _free(library: Any, configs: list[Any]) -> None:
    for config in configs:
        library.LGBM_FastConfigFree(config)
